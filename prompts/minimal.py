"""The least of an answer in code that still passes its task's tests, and the least of a tool call: what an answer that isn't prose has beyond that.

From correct code goes, as long as the tests pass: prose around it, comments, docstrings and type hints, and then statements, by delta debugging. What is left is written by
`ast.unparse`. Its share is by words and marks, which don't depend on how code is laid out. The tests run in the sandbox of the checkers.
"""

import ast
import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import ValidationError

from etameter.answers import rows
from etameter.errors import EtameterError
from etameter.records import Source, weakest
from etameter.slack.calls import least
from etameter.slack.deletion import delete
from etameter.slack.segment import Span

from . import checkers
from .checkers import Code, CodeTest, Verdict
from .checkers.code import source_of
from .endpoint import energy_in

FORM: Final = '{"id", "request": {…}, "answer": {…}, "checker": {"kind": "code", …}}, request and answer as they went over the wire; for calls of tools, in place of a checker, perhaps "calls": [{"name", "arguments"}]'
MOST_CHECKS: Final = 60
_TOKEN: Final = re.compile(r"\w+|[^\w\s]")

Reason = Literal["no_code_or_call", "wrong_answer", "checker_not_run", "call_unknown"]
Checks = Callable[[str], Verdict]


@dataclass(frozen=True, slots=True)
class Least:
    """What is left of an answer."""

    text: str
    eta: float
    checks: int
    minimal: bool
    """False where the checks were spent before every single statement had been tried: then η may be too high."""


@dataclass(frozen=True, slots=True)
class Found:
    """Of one answer. Shares that aren't known are None, with a reason."""

    id: object
    kind: Literal["code", "call"] | None
    eta: float | None
    output_tokens: int | None
    beyond_tokens: float | None
    beyond_j: float | None
    """Of the output's joules, less what rejected drafts took, divided among its tokens alike."""
    source: Source | None
    minimal: bool
    checks: int
    reason: Reason | None


def least_code(answer: str, checker: Code | CodeTest, most_checks: int = MOST_CHECKS) -> Least | Reason:
    """Of code that defines all that its checker calls; a reason where it isn't correct. `most_checks` is 2 or more."""
    verdict = checker.check(answer)
    if verdict.correct is not True:
        return "wrong_answer" if verdict.correct is False else "checker_not_run"
    source = source_of(answer, checker.entry)
    if source is None:  # it only goes on with what the task began
        return "no_code_or_call"
    try:
        text, checks, minimal = _reduced(source, checker, most_checks)
    except RecursionError:  # deeper than `ast.unparse` goes: all of it is kept
        text, checks, minimal = source, 1, False
    return Least(text, min(_size(text) / _size(answer), 1.0), checks, minimal)


def _reduced(source: str, checker: Code | CodeTest, most_checks: int) -> tuple[str, int, bool]:
    """As `Least` has it, of correct code, which was checked once."""
    kept, checks = ast.parse(source), 1
    for strip in (_bare, _plain):
        candidate = strip(ast.parse(source))
        checks += 1
        if checker.check(ast.unparse(candidate)).correct is True:
            kept = candidate
            break
        if checks >= most_checks:
            break
    count = sum(isinstance(node, ast.stmt) for node in ast.walk(kept))
    names = [f"{number} " for number in range(count)]
    ends = [sum(map(len, names[: place + 1])) for place in range(count)]
    spans = [Span(end - len(name), end, "code") for name, end in zip(names, ends, strict=True)]

    def passes(left: str) -> bool:
        return checker.check(ast.unparse(_with(kept, {int(name) for name in left.split()}))).correct is True

    minimal = checks < most_checks
    if minimal:
        found = delete("".join(names), spans, passes, most_checks - checks)
        checks, minimal = checks + found.checks, found.minimal
        kept = _with(kept, set(found.kept)) if found.passes else kept
    return ast.unparse(kept), checks, minimal


def _size(text: str) -> int:
    return len(_TOKEN.findall(text))


def _bare(tree: ast.Module) -> ast.Module:
    """Without docstrings and type hints."""
    return _without_docstrings(_Unhinted().visit(tree))


def _plain(tree: ast.Module) -> ast.Module:
    """Without docstrings: hints may be more than hints, as a dataclass's are."""
    return _without_docstrings(tree)


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and ast.get_docstring(
            node, clean=False
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.fix_missing_locations(tree)


class _Unhinted(ast.NodeTransformer):
    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:  # the name is the library's
        node.returns = None
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:  # the name is the library's
        if node.value is None:
            return ast.Pass()
        return ast.Assign(targets=[node.target], value=node.value)


def _with(tree: ast.Module, kept: Collection[int]) -> ast.Module:
    """A copy with these of its statements alone, in the order of `ast.walk`; a block that would be empty gets a `pass`."""
    copy = ast.parse(ast.unparse(tree))
    going = {id(node) for number, node in enumerate(_statements(copy)) if number not in kept}
    for node in ast.walk(copy):
        for name in ("body", "orelse", "finalbody"):
            block = getattr(node, name, None)
            if isinstance(block, list):
                left = [each for each in block if id(each) not in going]
                needs = name == "body" and not left and not isinstance(node, ast.Module)
                setattr(node, name, [ast.Pass()] if needs else left)
    return ast.fix_missing_locations(copy)


def _statements(tree: ast.AST) -> list[ast.stmt]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.stmt)]


def look(file: Path) -> list[Found]:
    """At each of FILE's answers. Raises EtameterError for a line that is none."""
    return [_look_at(row, f"{file}:{line}", line) for line, row in rows(file, FORM)]


def _look_at(row: Mapping[str, Any], place: str, line: int) -> Found:
    match row:
        case {"request": dict(request), "answer": {"choices": [{"message": dict(message)}, *_]}}:
            answer: dict[str, Any] = row["answer"]
        case _:
            raise EtameterError(f"{place} is no request with its answer", f"give {FORM}")
    usage = answer.get("usage")
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    try:
        energy = energy_in(answer)
    except ValueError as error:
        raise EtameterError(f"{place} has an energy that is none ({error})", "give what the server said") from None
    kind: Literal["code", "call"] | None = "call" if message.get("tool_calls") else None
    eta: float | None = None
    reason: Reason | None = "no_code_or_call"
    minimal, checks = True, 0
    if kind == "call":
        schemas = _schemas(request.get("tools"))
        eta = eta_of_calls(request.get("tools"), message)
        reason = None if eta is not None else "call_unknown"
        if eta is not None and "calls" in row and not _are(message["tool_calls"], _wanted(row, place), schemas):
            eta, reason = None, "wrong_answer"
    elif isinstance(checker := _checker(row, place), Code | CodeTest):
        kind = "code"
        found = least_code(str(message.get("content") or ""), checker)
        if isinstance(found, Least):
            eta, reason, minimal, checks = found.eta, None, found.minimal, found.checks
        else:
            reason = found
    output_j = None if energy is None else energy.get("output_joules")
    beyond = None if eta is None else 1.0 - eta
    return Found(
        id=row.get("id", line),
        kind=kind,
        eta=eta,
        output_tokens=tokens if isinstance(tokens, int) else None,
        beyond_tokens=None if beyond is None or not isinstance(tokens, int) else beyond * tokens,
        beyond_j=None
        if beyond is None or energy is None or output_j is None
        else beyond * max(output_j - (energy.get("draft_waste_joules") or 0.0), 0.0),
        source=None if energy is None else energy["source"],
        minimal=minimal,
        checks=checks,
        reason=reason,
    )


def _checker(row: Mapping[str, Any], place: str) -> checkers.Checker | None:
    if row.get("checker") is None:
        return None
    try:
        return checkers.parse(json.dumps(row["checker"]))
    except ValidationError as error:
        raise EtameterError(f"{place}: {error.errors()[0]['msg']}", "see docs/tasks.md for the kinds") from error


def eta_of_calls(tools: object, message: Mapping[str, Any]) -> float | None:
    """Of all calls of an answer that says nothing else; None where one is of no known tool, or no JSON."""
    schemas = _schemas(tools)
    least_characters = characters = 0
    calls = message["tool_calls"]
    for call in calls if isinstance(calls, list) else (None,):
        match call:
            case {"function": {"name": str(name), "arguments": str(arguments)}} if name in schemas:
                found = least(arguments, schemas[name])
            case _:
                return None
        if found is None:
            return None
        least_characters += len(name) + min(len(found.minimal), found.characters)
        characters += len(name) + found.characters
    return least_characters / (characters + len(message.get("content") or ""))


def _schemas(tools: object) -> dict[str, Mapping[str, Any]]:
    """Of the tools, by their names."""
    schemas: dict[str, Mapping[str, Any]] = {}
    for tool in tools if isinstance(tools, list) else ():
        match tool:
            case {"function": {"name": str(name), "parameters": dict(parameters)}}:
                schemas[name] = parameters
            case {"function": {"name": str(name)}}:
                schemas[name] = {}
    return schemas


def _wanted(row: Mapping[str, Any], place: str) -> list[tuple[str, str]]:
    """Names and arguments, in JSON, of the calls that are right."""
    calls = row["calls"]
    if not isinstance(calls, list):
        raise EtameterError(f"{place} has calls that are no list", f"give {FORM}")
    wanted = []
    for call in calls:
        match call:
            case {"name": str(name), "arguments": dict(arguments)}:
                wanted.append((name, json.dumps(arguments)))
            case _:
                raise EtameterError(f"{place} has the call {call!r}", f"give {FORM}")
    return wanted


def _are(calls: list[Any], wanted: list[tuple[str, str]], schemas: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the calls do what is wanted: what they have beyond the least makes no difference, nor does their order."""
    made = [(call["function"]["name"], call["function"]["arguments"]) for call in calls]
    one, other = (
        sorted((name, json.dumps(_meant(arguments, schemas.get(name, {})), sort_keys=True)) for name, arguments in each)
        for each in (made, wanted)
    )
    return one == other


def _meant(arguments: str, schema: Mapping[str, Any]) -> object:
    found = least(arguments, schema)
    assert found is not None, "it was read before"
    return json.loads(found.minimal, parse_float=_whole)


def _whole(told: str) -> int | float:
    """JSON has numbers, and none of another kind for being written with a point: 1.0 is 1."""
    number = float(told)
    return int(number) if number.is_integer() else number


def as_row(found: Found) -> dict[str, object]:
    """As JSON has it."""
    names = {"eta": "eta_minimal", "beyond_j": "beyond_joules"}
    return {names.get(name, name): getattr(found, name) for name in Found.__slots__}


def summary(found: list[Found]) -> str:
    """In a few lines."""
    lines = []
    for kind, what in (("code", "code that passes"), ("call", "calls of tools")):
        told = [each for each in found if each.kind == kind and each.eta is not None]
        if not told:
            continue
        mean = sum(each.eta or 0.0 for each in told) / len(told)
        lines.append(f"{what}: {len(told)} answers, η_minimal {mean:.2f} on average, at most")
        known = [each for each in told if each.beyond_j is not None and each.source is not None]
        if known:
            source = weakest(frozenset(each.source for each in known if each.source is not None))
            joules = sum(each.beyond_j or 0.0 for each in known)
            lines.append(f"  beyond the least: {joules:.1f} J of {len(known)} answers (source={source})")
    reasons = [each.reason for each in found if each.reason is not None]
    lines += [f"{reasons.count(reason)} not known: {reason}" for reason in sorted(set(reasons))]
    return "\n".join(lines)
