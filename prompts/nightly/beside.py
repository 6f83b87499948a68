"""codecarbon's tracker beside one stage, where it is installed: what it says of the same seconds, and why that differs."""

import importlib.util
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Final

from etameter.counters import Kind
from etameter.prompts.report.figure import Cell
from etameter.prompts.report.markup import Html, join, tag
from etameter.prompts.report.sections import table

from .wording import number, percent

KWH_J: Final = 3.6e6
PERIOD_S: Final = 1
"""Between two of its looks; its default of 15 s would see a window twice."""

LEAST_S: Final = 10.0


@dataclass(slots=True)
class Beside:
    """What codecarbon said; filled in when the block ends."""

    told_j: dict[str, float] = field(default_factory=dict)
    """cpu, gpu, ram."""
    version: str = ""


def installed() -> bool:
    return importlib.util.find_spec("codecarbon") is not None


@contextmanager
def tracking() -> Iterator[Beside]:
    """Its offline tracker runs while the block does. It asks no network; carbon is not looked at."""
    from codecarbon import OfflineEmissionsTracker

    logging.getLogger("codecarbon").setLevel(logging.CRITICAL)
    told = Beside(version=version("codecarbon"))
    tracker = OfflineEmissionsTracker(
        country_iso_code="FRA",
        save_to_file=False,
        log_level="critical",
        measure_power_secs=PERIOD_S,
        allow_multiple_runs=True,
    )
    tracker.start()
    try:
        yield told
    finally:
        tracker.stop()
        data = tracker.final_emissions_data
        for name in ("cpu", "gpu", "ram"):
            told.told_j[name] = float(getattr(data, f"{name}_energy")) * KWH_J


def compared(beside: Beside, energy_j: float | None, seconds: float, kind: Kind, stage: str) -> dict[str, Any]:
    """Both figures beside each other, for the report."""
    theirs_j = beside.told_j.get("cpu" if kind == "rapl" else "gpu", 0.0)
    return {
        "stage": stage,
        "seconds": seconds,
        "counters_j": energy_j,
        "codecarbon_j": dict(beside.told_j),
        "version": beside.version,
        "difference": None if not energy_j or not theirs_j else theirs_j / energy_j - 1,
        "why": _why(kind, theirs_j, seconds),
    }


def shown(found: Sequence[Mapping[str, Any]], source: str | None) -> Html | None:
    """What `compared` found, for a page; None where codecarbon was not there."""
    if not found:
        return None
    rows: list[tuple[Cell, ...]] = [
        (
            each["stage"],
            number(each["seconds"]),
            f"{number(each['counters_j'])} ({source})",
            ", ".join(f"{part} {number(joules)}" for part, joules in each["codecarbon_j"].items()),
            "–" if each["difference"] is None else percent(each["difference"]),
        )
        for each in found
    ]
    columns = (
        "stage",
        "seconds",
        "our counters, J",
        f"codecarbon {found[0]['version']}, J",
        "by so much it tells more",
    )
    return join(table("The same seconds", columns, rows), *(tag("p", each["why"], class_="note") for each in found))


def _why(kind: Kind, theirs_j: float, seconds: float) -> str:
    if kind == "simulated":
        return (
            "It can't see a simulated board. What it tells is this machine's CPU, mostly from a table of nominal powers, "
            "so that the two figures are of different things."
        )
    if seconds < LEAST_S:
        return f"It looks once a second, and {seconds:.1f} s are too few for that to say anything."
    if not theirs_j:
        return "It found no counter here that it may read, and then counts 0 J."
    if kind == "rapl":
        return (
            "Both read RAPL where it may; without the right to, it takes a nominal power by the CPU's name. It reads once a second and counts from its own start "
            "to its own end; ours counts between two publications of the counter."
        )
    return (
        "Both read NVML's energy counter. It reads once a second, so that up to a second at either end is counted too much or too little, and its thread waits for "
        "Python's; ours knows each publication's instant. Its figure has the GPUs that it sees, ours those of the engine."
    )
