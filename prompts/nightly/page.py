"""A night as one page of HTML, with the nights before it: no script, and nothing from anywhere else."""

from collections.abc import Iterator, Sequence
from typing import Final

from etameter.footprint import Footprint
from etameter.prompts.report import svg
from etameter.prompts.report.figure import Cell
from etameter.prompts.report.markup import Html, join, tag
from etameter.prompts.report.page import document
from etameter.prompts.report.sections import table
from etameter.prompts.report.worldly import Spent, worldly

from .beside import shown
from .foretold import foretold
from .front import front
from .metrics import METRICS
from .night import Night
from .rows import Figure
from .verdict import Change, Verdict
from .wording import SIMULATED, number, percent, sentences

SHOWN_NIGHTS: Final = 60
_HEIGHT_IN: Final = 2.3
_ANSWERS: Final = {"j_per_question": "answers", "j_per_correct_answer": "correct answers"}
_COLOURS: Final = {"worse": svg.SERIES[0], "better": svg.SERIES[2]}


def page(night: Night, verdict: Verdict, before: Sequence[Night], footprint: Footprint) -> str:
    """The whole document. `before`: nights of the same job, oldest first; those that are compared with are drawn.

    Raises:
        ExperimentError: matplotlib isn't installed.
    """
    run = night.run
    title = f"{run.name}, {run.began[:16].replace('T', ' ')}: {verdict.word}"
    heading = join(
        tag("h1", title),
        tag(
            "p",
            f"Model {run.model}, {_boards(night)}, run {run.run_id}, {run.sessions} session(s), ended {run.status}.",
            class_="faint",
        ),
    )
    return document(
        f"etameter: {title}",
        heading,
        SIMULATED if run.source == "simulated" else None,
        list(_sections(night, verdict, before, footprint)),
    )


def _sections(
    night: Night, verdict: Verdict, before: Sequence[Night], footprint: Footprint
) -> Iterator[tuple[str, str, Html]]:
    said = [tag("p", sentence) for sentence in sentences(night.run, verdict)]
    yield "verdict", "What came out", tag("div", *said, class_="verdict")
    compared = [each for each in before if each.run.run_id in verdict.compared][-SHOWN_NIGHTS:]
    drawn = [
        _trend(change, [*compared, night], place)
        for place, change in enumerate(verdict.changes)
        if change.headline and change.value is not None
    ]
    if drawn:
        yield "trends", "Night after night", tag("div", *drawn, class_="figures")
    if verdict.changes:
        yield "changes", "Series by series", _changes(verdict)
    if (made := foretold([*compared, night])) is not None:
        yield "foretold", "What the documents foretell", made
    if (made := worldly(_spent(night), footprint)) is not None:
        yield "world", "Energy, money and CO2", made
    if (made := front(night.run.details.get("sweep", ()), night.run.source)) is not None:
        yield "sweep", "The sweep", made
    if (made := shown(night.run.details.get("codecarbon", ()), night.run.source)) is not None:
        yield "codecarbon", "Beside codecarbon", made
    for stage in dict.fromkeys(figure.stage for figure in night.figures):
        yield f"stage-{stage.replace('/', '-')}", stage, _stage(night, stage)
    yield "conditions", "What it was measured on", _conditions(night)


def _spent(night: Night) -> Iterator[Spent]:
    """By the counters: the whole night, and a thousand answers of each stage."""
    source = night.run.source
    if source is not None:
        yield Spent("the whole night", night.run.energy_j, source)
    for figure in night.figures:
        if figure.metric in _ANSWERS and figure.value is not None:
            yield Spent(f"{figure.stage}: 1,000 {_ANSWERS[figure.metric]}", 1000 * figure.value, figure.source)


def _trend(change: Change, nights: Sequence[Night], place: int) -> Html:
    """A series over the nights: marks with their intervals, those since the change in its colour."""
    told = [
        (each.run.run_id, figure, figure.value)
        for each in nights
        if (figure := _of(each, change)) is not None and figure.value is not None
    ]
    title = f"{change.series}, {change.unit}"
    says = f"{METRICS[change.metric].words.capitalize()}. A mark a night, its line the 95 % interval; {change.word}{_by(change)}."
    name = f"trend-{place}"
    with svg.drawing(_HEIGHT_IN) as drawing:
        axes = drawing.add_subplot()
        for at, (run_id, figure, value) in enumerate(told):
            moved = change.since is not None and run_id >= change.since
            colour = _COLOURS.get(change.word, svg.SERIES[1]) if moved else svg.SERIES[1]
            if figure.low is not None and figure.high is not None:
                axes.plot([at, at], [figure.low, figure.high], color=colour, linewidth=1.2)
            axes.plot(
                [at],
                [value],
                color=colour,
                marker="D" if moved and change.word in _COLOURS else "o",
                markersize=4,
            )
        axes.set_xticks(*_dates([run_id for run_id, _, _ in told]))
        axes.set_xlim(-0.6, max(len(told) - 0.4, 1.0))
        axes.set_ylabel(f"{change.unit}{', SIMULATED' if change.source == 'simulated' else ''}")
        picture = svg.inline(drawing, name, title, says)
    rows: list[tuple[Cell, ...]] = [
        (run_id, number(figure.value), f"[{number(figure.low)}, {number(figure.high)}]", figure.source)
        for run_id, figure, _ in told
    ]
    numbers = tag(
        "details",
        tag("summary", "The same in numbers"),
        table(title, ("run", change.unit, "95 % interval", "source"), rows),
    )
    return tag("figure", tag("h3", title), picture, tag("figcaption", says), numbers, id=f"figure-{name}")


def _dates(run_ids: Sequence[str]) -> tuple[list[int], list[str]]:
    """Some six of them, evenly."""
    step = max(1, (len(run_ids) + 5) // 6)
    places = list(range(0, len(run_ids), step))
    return places, [f"{run_ids[at][4:6]}-{run_ids[at][6:8]}" for at in places]


def _of(night: Night, change: Change) -> Figure | None:
    return next(
        (figure for figure in night.figures if (figure.stage, figure.metric) == (change.stage, change.metric)), None
    )


def _by(change: Change) -> str:
    return "" if change.change is None else f", {percent(change.change)}"


def _changes(verdict: Verdict) -> Html:
    rows: list[tuple[Cell, ...]] = [
        (
            change.series,
            "headline" if change.headline else "explains",
            change.word,
            "–" if change.change is None else percent(change.change),
            "–" if change.low is None or change.high is None else f"[{percent(change.low)}, {percent(change.high)}]",
            f"{change.nights_since} after {change.nights_before}" if change.nights_since else change.reason,
            change.source,
        )
        for change in verdict.changes
    ]
    return table("Against the nights before", ("series", "", "", "change", "95 % interval", "nights", "source"), rows)


def _stage(night: Night, stage: str) -> Html:
    windows = [row for row in night.stages if row.stage == stage]
    excluded = [f"window {row.window}: {row.excluded}" for row in windows if row.excluded]
    rows: list[tuple[Cell, ...]] = [
        (
            figure.metric,
            METRICS[figure.metric].words,
            number(figure.value),
            figure.unit,
            "–" if figure.low is None else f"[{number(figure.low)}, {number(figure.high)}]",
            figure.reason,
            figure.source,
        )
        for figure in night.figures
        if figure.stage == stage
    ]
    made = table(
        f"{len(windows)} windows", ("figure", "what it is", "value", "unit", "95 % interval", "remark", "source"), rows
    )
    return join(made, tag("p", f"Not counted: {'; '.join(excluded)}.", class_="note") if excluded else None)


def _conditions(night: Night) -> Html:
    run = night.run
    told = {
        "boards": _boards(night),
        "processor": f"{run.hardware.get('cpu')}, {run.hardware.get('cores')} cores",
        "driver": run.driver,
        "highest clock": None if run.clock_mhz is None else f"{run.clock_mhz:g} MHz",
        "power cap": None if run.power_cap_w is None else f"{run.power_cap_w:g} W",
        "vLLM": run.vllm,
        "model": f"{run.model} ({run.model_hash or 'files not seen'})",
        "etameter": run.etameter,
        "configuration": run.config_hash,
        "tasks": run.tasks_hash,
        "seed": str(run.seed),
        "counter": run.counter,
        "source": run.source,
        **_raised(night),
        "energy of the run": None if run.energy_j is None else f"{run.energy_j:.6g} J ({run.source})",
    }
    return table(
        "Nights are compared where these agree, but for driver, vLLM and etameter",
        ("", ""),
        [(name, value or "–") for name, value in told.items()],
    )


def _boards(night: Night) -> str:
    boards = night.run.hardware.get("boards") or ()
    return (
        ", ".join(" ".join(filter(None, (str(board.get("board") or "?"), board.get("gpu_uuid")))) for board in boards)
        or "no board"
    )


def _raised(night: Night) -> dict[str, str]:
    """Where a simulated board was told to take more than its model does, to see whether the alarm goes off."""
    told = {
        f"{board['times_energy']:g} times what the model takes"
        for session in night.run.details.get("sessions", ())
        for board in session.get("boards", ())
        if "times_energy" in board
    }
    return {"simulated energy": ", ".join(sorted(told))} if told else {}
