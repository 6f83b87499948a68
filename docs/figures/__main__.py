"""Draws the README's figures again from docs/measurements: `make figures`. With --check it only says which are not what it would draw."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from . import answers, energies, running
from .keep import MEASUREMENTS
from .picture import Picture, svg

IMAGES = Path(__file__).parents[1] / "images" / "figures"
PICTURES = (
    Picture(
        "h100",
        "h100",
        "Joules per output token over the batch on an H100, and a request's own work alone and in company",
        "Left: measured joules per output token fall from 2.84 at one request to 0.055 at 256. Right: the joules of a request's own work, alone with its "
        "interval and at once with others, for 8 and 32 requests: they agree.",
        3.1,
        energies.h100,
    ),
    Picture(
        "published",
        "published",
        "Predicted against published joules per output token, over batch",
        "Left: four models' published joules per output token fall as the batch grows, and the cost model's curves follow them. "
        "Right: the relative error of every held-out batch of all configurations, spread around nought.",
        3.5,
        energies.published,
    ),
    Picture(
        "attribution",
        "attribution",
        "A request's metered joules against the truth, for etameter, a division by tokens, and an equal split",
        "Ratio of metered to true joules over true joules, a point a request: etameter's lie on 1, those by tokens scatter around it, "
        "those of an equal split are off by factors. The last panel shows etameter's again, enlarged, with its intervals.",
        2.9,
        energies.attribution,
    ),
    Picture(
        "faults",
        "faults",
        "What four meters tell under seven faults of the sensor, and under none",
        "A table: for each fault and meter the joules by which the figure is wrong, or that none is given.",
        3.3,
        running.faults,
    ),
    Picture(
        "overhead",
        "overhead",
        "What metering costs the server",
        "Microseconds of processor time for a step of the scheduler and for a streamed chunk, beside their goals.",
        2.7,
        running.overhead,
    ),
    Picture(
        "survival",
        "survival",
        "A stream goes on while its meter is killed",
        "Tokens received over time, with and without a SIGKILL of the meter in their midst: the curves rise alike.",
        3.1,
        running.survival,
    ),
    Picture(
        "answers",
        "survival",
        "One question answered under two arms, with the joules of each span",
        "The spans of both answers, each with a bar of its joules; spans named as slack are marked.",
        4.0,
        answers.pair,
    ),
)


def drawn(picture: Picture) -> str:
    """The SVG file's text, from what is kept of its benchmark."""
    record: dict[str, Any] = json.loads((MEASUREMENTS / f"{picture.benchmark}.json").read_text())
    return svg(picture, record)


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="docs.figures", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, and fail where a figure is stale")
    check = parser.parse_args().check
    stale = 0
    for picture in PICTURES:
        file, text = IMAGES / f"{picture.name}.svg", drawn(picture)
        if file.exists() and file.read_text() == text:
            continue
        stale += 1
        print(f"{'stale' if check else 'drawn'}: {file.name}")
        if not check:
            file.write_text(text)
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
