"""`etameter eta audit`: a judge that you choose labels answers; the questions and its replies go through files in OpenAI's batch format."""

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from .answers import FORM, Answer, answers, rows, write
from .audit_key import of_server
from .errors import EtameterError
from .prompts.endpoint import OF_ONE_REQUEST, Failed, connect
from .prompts.endpoint import Answer as Reply
from .prompts.judging import replies_to
from .slack.deep import Judged, deep_eta, fuse
from .slack.judge import LONGEST_CHARACTERS, NOT_ASKED, Case, Question, case_of, labels_in
from .slack.labels import Label
from .slack.tokens import by_length

URL = "/v1/chat/completions"
REPLY = '{"custom_id", "response": {"status_code", "body"}, "error"}'
ARM = "audit"
"""What the judge's own requests are counted under."""
AT_ONCE = 4
Replies = tuple[Reply, ...] | Failed
"""To one question, the last of which counts; or why there is none."""
_PLACES = 4


@dataclass(slots=True)
class Tally:
    """What became of the replies."""

    answers: int = 0
    judged: int = 0
    spans: int = 0
    agreed: int = 0
    replies: int = 0
    unreadable: int = 0

    def __str__(self) -> str:
        agreed = f"{self.agreed} of {self.spans} spans labelled alike in both orders" if self.spans else "no span asked"
        lost = f"; {self.unreadable} replies missing or without a label" if self.unreadable else ""
        return f"{self.judged} of {self.answers} responses judged, {agreed}{lost}"


def write_questions(file: Path, out: Path, model: str) -> str:
    """Write the questions about FILE's answers; what was written, in one line. Raises EtameterError."""
    lines = [
        {"custom_id": _custom_id(answer, question), "method": "POST", "url": URL, "body": question.body(model)}
        for answer in answers(file)
        for question in case_of(answer.prompt, answer.response).questions
    ]
    if not write(out, lines, file):
        raise EtameterError(f"{file} has nothing to judge", f"give lines with responses in them: {FORM}")
    return f"{len(lines)} questions, in {out}: run them as a batch, and give what comes back as --batch-in"


def read_replies(file: Path, replies: Path, out: Path) -> str:
    """Write what the judge's replies say of FILE's answers, a line each; how many could be judged, in one line.

    Raises:
        EtameterError: a file can't be read or written, or no reply is to a question about these answers.
    """
    told: dict[str, str | None] = {}
    for line, row in rows(replies, REPLY):
        identity, text = _reply(row, replies, line)
        if text is not None or identity not in told:  # what failed may have been asked again
            told[identity] = text
    results, tally = _judged(file, told)
    if not tally.replies:
        remedy = f"ask again, with --batch-out: the questions belong to {file} as it is now"
        raise EtameterError(f"no reply in {replies} is to a question about {file}", remedy)
    write(out, results, file, replies)
    return f"{tally}, in {out}"


def ask(file: Path, url: str, model: str | None, out: Path) -> str:
    """Ask the server at `url`, under the arm `audit`, and write what its replies say; how many could be judged, and for how many joules.

    Raises:
        EtameterError: a file can't be read or written, or the server is away or answers nothing.
    """
    questions = {
        _custom_id(answer, question): question
        for answer in answers(file)
        for question in case_of(answer.prompt, answer.response).questions
    }
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("asking the judge", total=len(questions))
        replies = asyncio.run(_asked(questions, url, model, lambda: progress.advance(bar)))
    told = {identity: found[-1].text for identity, found in replies.items() if isinstance(found, tuple)}
    results, tally = _judged(file, told)
    write(out, results, file)
    failures = [found for found in replies.values() if isinstance(found, Failed)]
    why = f" ({failures[0].message})" if failures else ""
    return f"{tally}{why}, {_joules(replies.values())}, in {out}"


async def _asked(
    questions: Mapping[str, Question], url: str, model: str | None, tell: Callable[[], None]
) -> dict[str, Replies]:
    """The judge's replies to each question, or why it has none. What would befall all others ends the asking; raised is it where nothing came before."""
    gate = asyncio.Semaphore(AT_ONCE)
    ended: list[Failed] = []
    async with connect(url.rstrip("/").removesuffix("/v1"), run=ARM, audit_key=of_server(url)) as judge:
        name = model or (await judge.models())[0]

        async def one(question: Question) -> Replies:
            async with gate:
                if ended:
                    return ended[0]
                try:
                    return await replies_to(question, name, lambda body: judge.chat(body, ARM))
                except Failed as failed:
                    if failed.fault not in OF_ONE_REQUEST:
                        ended.append(failed)
                    return failed
                finally:
                    tell()

        found = await asyncio.gather(*map(one, questions.values()))
        if ended and not any(isinstance(each, tuple) for each in found):
            raise ended[0]
        return dict(zip(questions, found, strict=True))


def _joules(replies: Collection[Replies]) -> str:
    """What the judging took, as far as the judge's server meters itself."""
    energies = [[reply.energy for reply in found] for found in replies if isinstance(found, tuple)]
    known = [[energy for energy in of if energy is not None] for of in energies if None not in of]
    if not known:
        return "energy of the judge unknown"
    sources = "+".join(sorted({str(energy["source"]) for of in known for energy in of}))
    known_j = sum(float(energy["energy_joules"]) for of in known for energy in of)
    return f"{known_j:.1f} J for {len(known)} of {len(replies)} questions (source={sources})"


def _judged(file: Path, told: Mapping[str, str | None]) -> tuple[list[dict[str, object]], Tally]:
    tally = Tally()
    return [_judge(answer, told, tally) for answer in answers(file)], tally


def _judge(answer: Answer, told: Mapping[str, str | None], tally: Tally) -> dict[str, object]:
    case = case_of(answer.prompt, answer.response)
    labels: tuple[dict[int, Label], dict[int, Label]] = ({}, {})
    for question in case.questions:
        reply = told.get(key := _custom_id(answer, question))
        found = labels_in(reply, question) if reply is not None else {}
        labels[question.backwards].update(found)
        tally.replies += key in told
        tally.unreadable += not found
    judged = fuse(case.spans, *labels)
    asked = {number for question in case.questions for number in question.spans}
    tally.answers += 1
    tally.spans += len(asked)
    tally.agreed += sum(judged[number - 1].label is not None for number in asked)
    tally.judged += any(span.p_slack in {0.0, 1.0} for span in judged)
    return _result(answer, case, judged)


def _result(answer: Answer, case: Case, judged: tuple[Judged, ...]) -> dict[str, object]:
    eta = deep_eta(judged, by_length(judged, len(answer.response)).tokens)
    return {
        "id": answer.id,
        "eta_strict": _rounded(eta.strict),
        "eta_lenient": _rounded(eta.lenient),
        "method": eta.method,
        "bound": None,
        "interval": None if eta.interval is None else [_rounded(end) for end in eta.interval],
        "unclassified": _rounded(eta.unclassified),
        "unit": "characters",
        "reason": _reason(answer, case) if eta.lenient is None else None,
        "spans": [[span.start, span.end, span.label, span.p_required, span.p_slack] for span in judged],
    }


def _reason(answer: Answer, case: Case) -> str:
    if case.questions:
        return "not_judged"
    if all(span.kind in NOT_ASKED for span in case.spans):
        return "no_text"
    assert len(answer.prompt) + len(answer.response) > LONGEST_CHARACTERS
    return "too_long"


def _custom_id(answer: Answer, question: Question) -> str:
    return f"{answer.line}-{question.id}"


def _reply(row: Mapping[str, Any], file: Path, line: int) -> tuple[str, str | None]:
    """The question's id, and what the judge said; None where it failed."""
    identity = row.get("custom_id")
    if not isinstance(identity, str):
        raise EtameterError(f'{file}:{line} has no "custom_id"', f"give the replies of a batch, a line each: {REPLY}")
    match row.get("response"):
        case {"status_code": 200, "body": {"choices": [{"message": {"content": str(text)}}, *_]}}:
            return identity, text
        case {"body": {"choices": [{"message": {"content": [*parts]}}, *_]}}:
            texts = [part["text"] for part in parts if isinstance(part, dict) and isinstance(part.get("text"), str)]
            return identity, "".join(texts)
        case _:
            return identity, None


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _PLACES)
