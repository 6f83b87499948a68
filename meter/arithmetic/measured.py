"""What was measured, in the place of what the documents assume: by a comparison of arms, by a night, or of a model's next tokens; and a day's curve of prices."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, NamedTuple

from etameter import units
from etameter.arithmetic.rows import WEAKEST_FIRST, Inputs, Origin, with_value
from etameter.errors import InputError
from etameter.prompts.nightly.night import Night
from etameter.prompts.tables import BlockRow, Outcome, kept

ENTRACE: Final = "entrace"
CONTROL: Final = "unconstrained"
_REPORTS: Final = "give what `etameter eta branching --json` or `etameter demo --json` prints"


class Figure(NamedTuple):
    value: float
    unit: str
    interval: tuple[float, float] | None = None


def with_run(
    inputs: Inputs,
    analysis: Mapping[str, Any],
    blocks: Sequence[BlockRow],
    outcomes: Sequence[Outcome],
    boards: int = 1,
) -> Inputs:
    """The inputs, those replaced that a run tells. What it doesn't tell stays as it was.

    `analysis` is that of `run.json`; blocks and outcomes are its tables; `boards` are those whose counters were read.

    Raises:
        InputError: nothing was measured.
    """
    source, parts = analysis["source"], [part for part in analysis["parts"] if part["headline"]]
    if source is None or not parts:
        raise InputError("the run has no measured headline part", "name one whose arms were asked by themselves")
    part, control = parts[0], analysis["control"]
    good, counted = kept(blocks, [one for one in outcomes if one.part == part["part"]])
    held = [one for one in counted if one.arm == control]
    ran = [row for row in good if row.part == part["part"] and row.arm == control]
    found = dict(_of_answers(held)) | dict(_of_blocks(ran, held, boards)) | dict(_of_analysis(part, control, counted))
    return _all_replaced(inputs, ((name, figure, source) for name, figure in found.items()))


_OF_STAGE: Final = (
    ("j_per_token", "wh_per_token", "J/token"),
    ("j_per_prompt_token", "j_per_prompt_token", "J/token"),
    ("j_per_output_token", "j_per_output_token", "J/token"),
    ("j_per_correct_answer", "answer_energy", "J/answer"),
    ("j_per_question", "query_joules", "J/query"),
    ("accuracy", "success", "1"),
    ("mfu", "mfu_measured", "1"),
)
_OF_BOARDS: Final = (
    ("tokens_per_s", "tokens_per_s", "token/s/GPU"),
    ("power_w", "gpu_power", "W/GPU"),
    ("requests_per_s", "query_rate", "query/s/GPU"),
    ("coefficient_idle_w", "cost_p0", "W/GPU"),
)
"""Figures of all boards together."""
_OF_METER: Final = (
    ("coefficient_pass_j", "cost_c", "J"),
    ("coefficient_prefill_j", "cost_a", "J/token"),
    ("coefficient_decode_j", "cost_b", "J/token"),
    ("coefficient_context_j", "cost_d", "J/token"),
    ("eta_reliability", "reliability_measured", "1"),
)
_OF_ARMS: Final = (
    ("entrace", "eta_after"),
    *((name, f"eta_measured_{name}") for name in ("entrace", "seed", "deterministic")),
)


def with_night(inputs: Inputs, night: Night) -> Inputs:
    """The inputs, those replaced that a night tells: by the stage that stands for it, its arms, and the meter beside it.

    Questions are those of a recorded load, where the night played one. What a night doesn't know stays as it was.
    """
    stage, boards = night.stands_for_it(), len(night.run.hardware.get("boards") or ()) or 1
    recorded = next((row.stage for row in night.stages if row.kind == "recorded"), stage)
    wanted = [(stage, *each, 1) for each in _OF_STAGE]
    wanted += [(stage, *each, boards) for each in _OF_BOARDS]
    wanted += [("meter", *each, 1) for each in _OF_METER] + [("meter", *_OF_BOARDS[-1], boards)]
    wanted += [(stage, "eta_task", name, "1", 1) for name in ("eta_before", "eta_measured_control")]
    wanted += [(f"ab-fixed/{arm}", "eta_task", name, "1", 1) for arm, name in _OF_ARMS]
    wanted += [(f"ab-fixed/{ENTRACE}", "saving", "saving_measured", "1", 1)]
    if recorded != stage:
        wanted += [(recorded, "j_per_question", "query_joules", "J/query", 1)]
        wanted += [(recorded, "requests_per_s", "query_rate", "query/s/GPU", boards)]
    known = {(each.stage, each.metric): each for each in night.figures}
    found = []
    for of, metric, name, unit, shared in wanted:
        figure = known.get((of, metric))
        if figure is not None and figure.value is not None:
            ends = None if figure.low is None or figure.high is None else (figure.low / shared, figure.high / shared)
            found.append((name, Figure(figure.value / shared, unit, ends), figure.source))
    if not found:
        raise InputError(
            f"the night {night.run.run_id} knows nothing of its stage {stage}", "name one that has ended well"
        )
    return _all_replaced(inputs, found)


def with_demo(inputs: Inputs, told: Mapping[str, Any]) -> Inputs:
    """The inputs, those replaced that `etameter demo --json` tells: by attributed joules of the arm that nothing was asked of.

    Raises:
        InputError: it is no such report, or not all of its requests have joules.
    """
    try:
        arm, sources = told["arms"][CONTROL], told["source"].split("+")
        whole = arm["requests"] and not arm["requests_without_energy"] + arm["requests_metered_in_part"]
        checked = arm["requests"] - arm["not_checked"]
        energy_j, per_correct, tokens = arm["energy_joules"], arm["joules_per_correct"], arm["output_tokens"]
        correct = arm["correct"]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"the report tells no joules of {CONTROL} ({error})", _REPORTS) from error
    if not whole or not tokens:
        raise InputError(f"not all requests of {CONTROL} have joules", "ask the demo again")
    source: Origin = next(each for each in WEAKEST_FIRST if each in sources)
    found = {
        "wh_per_token": Figure(energy_j / tokens, "J/token"),
        "query_joules": Figure(energy_j / arm["requests"], "J/query"),
        "long_answer": Figure(tokens / arm["requests"], "token/answer"),
    }
    if per_correct is not None and correct:
        found["answer_energy"] = Figure(per_correct, "J/answer")
        found["success"] = Figure(correct / checked, "1")
    return _all_replaced(inputs, ((name, figure, source) for name, figure in found.items()))


def with_branching(inputs: Inputs, report: Mapping[str, Any]) -> Inputs:
    """The inputs with the bits that a token has, of what `etameter eta branching --json` prints: entropies there are in nats.

    Raises:
        InputError: it is no such report.
    """
    try:
        groups = [group for group in report["groups"].values() if group is not None]
        tokens = sum(group["tokens"] for group in groups)
        low, high = (
            sum(group[end] * group["tokens"] for group in groups) / tokens / math.log(2) for end in ("low", "high")
        )
    except (KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise InputError(f"there is no entropy of tokens in the report ({error})", _REPORTS) from error
    figure = Figure((low + high) / 2, "bit/token", (low, high))
    return _all_replaced(inputs, (("entropy_measured", figure, "measured"), ("bits_per_token", figure, "measured")))


def with_curve(inputs: Inputs, curve: Sequence[float]) -> Inputs:
    """The inputs with what the cheapest hours come to that hold the load: at a utilisation of u it fits into 24 h · u.

    `curve`: money or grams of a kWh, of equal parts of a day.

    Raises:
        InputError: the day's mean is not above zero.
    """
    mean = math.fsum(curve) / len(curve) if curve else 0.0
    if not mean > 0:
        raise InputError(f"the curve has a mean of {mean:g}", "give hour,value of a day, in money or grams of a kWh")
    utilisation = inputs["utilisation"].value
    assert utilisation is not None
    room = len(curve) * utilisation
    taken = [value * min(max(room - place, 0.0), 1.0) for place, value in enumerate(sorted(curve))]
    return with_value(inputs, "cheap_hours", max(math.fsum(taken) / room / mean, 0.0))


def _all_replaced(inputs: Inputs, found: Iterable[tuple[str, Figure, Origin]]) -> Inputs:
    for name, figure, source in found:
        if math.isfinite(figure.value):
            inputs = _replaced(inputs, name, figure, source)
    return inputs


def _replaced(inputs: Inputs, name: str, figure: Figure, source: Origin) -> Inputs:
    """Value and interval, in the input's own unit."""
    changed = with_value(inputs, name, figure.value, figure.unit, source)
    if figure.interval is None:
        return {**changed, name: replace(changed[name], span=None)}
    scale = units.unit(figure.unit).scale / units.unit(changed[name].unit).scale
    low, high = figure.interval
    return {**changed, name: replace(changed[name], span=(scale * low, scale * high))}


def _of_answers(held: Sequence[Outcome]) -> Iterator[tuple[str, Figure]]:
    """By attributed joules. The first token of each turn carries no output energy."""
    output_j, prompt_j = _sum(one.output_j for one in held), _sum(one.prompt_j for one in held)
    prompt, cached = _sum(one.prompt_tokens for one in held), _sum(one.cached_tokens for one in held)
    output, turns = _sum(one.output_tokens for one in held), sum(one.turns for one in held)
    if output_j and output and output > turns:
        yield "j_per_output_token", Figure(output_j / (output - turns), "J/token")
    if prompt_j and prompt is not None and cached is not None and prompt > cached:
        yield "j_per_prompt_token", Figure(prompt_j / (prompt - cached), "J/token")
    if prompt and cached is not None:
        yield "cached_share", Figure(cached / prompt, "1")
    if prompt is not None and cached is not None and output:
        yield "prompt_per_output", Figure((prompt - cached) / output, "1")
    checked = [one.correct for one in held if one.correct is not None]
    if any(checked):
        yield "success", Figure(sum(checked) / len(checked), "1")
    if prompt is not None and held:
        yield "kv_prompt_tokens", Figure(prompt / len(held), "token/answer")
    if output and held:
        yield "long_answer", Figure(output / len(held), "token/answer")


def _of_blocks(ran: Sequence[BlockRow], held: Sequence[Outcome], boards: int) -> Iterator[tuple[str, Figure]]:
    """By counters: all that the boards took while the control was asked."""
    energy_j, seconds = _sum(row.energy_j for row in ran), sum(row.end_ns - row.start_ns for row in ran) * 1e-9
    output = _sum(one.output_tokens for one in held)
    if energy_j and output:
        yield "wh_per_token", Figure(energy_j / output, "J/token")
    if energy_j and seconds > 0:
        yield "gpu_power", Figure(energy_j / seconds / boards, "W/GPU")
    if energy_j and held:
        yield "query_joules", Figure(energy_j / len(held), "J/query")
    if output and seconds > 0:
        yield "tokens_per_s", Figure(output / seconds / boards, "token/s/GPU")
        yield "query_rate", Figure(len(held) / seconds / boards, "query/s/GPU")


def _of_analysis(part: Mapping[str, Any], control: str, outcomes: Sequence[Outcome]) -> Iterator[tuple[str, Figure]]:
    """η by task, where it could be had; joules per correct answer; the saving of `entrace`."""
    for arm in part["arms"]:
        if arm["arm"] == control and arm["joules_per_correct"] is not None:
            yield "answer_energy", Figure(arm["joules_per_correct"], "J/answer")
    for finding in part["findings"]:
        task = next((each for each in finding["eta"] if each["method"] == "task"), None)
        if task is not None and task["arm"] is not None and task["control"] is not None:
            yield "eta_measured_control", Figure(task["control"], "1")
            yield "eta_before", Figure(task["control"], "1")
            if finding["arm"] in {ENTRACE, "seed", "deterministic"}:
                interval = None if task["low"] is None else (task["low"], task["high"])
                yield f"eta_measured_{finding['arm']}", Figure(task["arm"], "1", interval)
                if finding["arm"] == ENTRACE:
                    yield "eta_after", Figure(task["arm"], "1", interval)
        reliability = next((each.get("reliability") for each in finding["eta"] if each["method"] == "fast"), None)
        if reliability is not None:
            yield "reliability_measured", Figure(reliability, "1")
        if finding["arm"] == ENTRACE:
            saving = finding["saving"]
            if saving is not None:
                yield "saving_measured", Figure(saving["saving"], "1", (saving["low"], saving["high"]))
            short = [one for one in outcomes if one.arm == ENTRACE]
            tokens = _sum(one.output_tokens for one in short)
            if short and tokens:
                yield "short_answer", Figure(tokens / len(short), "token/answer")


def _sum(values: Iterable[float | None]) -> float | None:
    """None where one isn't known."""
    known = list(values)
    given = [value for value in known if value is not None]
    return math.fsum(given) if len(given) == len(known) else None
