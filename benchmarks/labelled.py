"""The labelled answers that the shipped weights were made from: lines of {id, prompt, response, spans, model or style, category}.

    python -m benchmarks.labelled --data DIR

says what of them was required, by model or style: shares of tokens, a word or a mark of punctuation being one; strict and lenient η with the half-width of
their 95 % interval by the drawing of answers.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from etameter.slack.labelled import Answer, answer
from etameter.slack.labels import LABELS, LENIENT_SLACK, NAMES
from etameter.slack.task import half_width

FILES = ("slack/dev.jsonl", "slack/dev_public.jsonl")


def load(directory: Path) -> list[Answer]:
    lines = [line for file in FILES for line in (directory / file).read_text().split("\n") if line]
    return [answer(json.loads(line)) for line in lines]


VIEWS = {
    "strict": [LABELS.index("R")],
    "lenient": [LABELS.index(each) for each in LABELS if each not in LENIENT_SLACK],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("ETAMETER_DATA"), required="ETAMETER_DATA" not in os.environ
    )
    answers = load(Path(parser.parse_args().data))
    for group in dict.fromkeys(each.group for each in answers):
        labels = [each.truth[each.truth >= 0] for each in answers if each.group == group]
        truth = np.concatenate(labels)
        shares = {NAMES[label]: float((truth == place).mean()) for place, label in enumerate(LABELS)}
        told = ", ".join(f"{name} {share:.3f}" for name, share in shares.items())
        print(f"{group}: {len(labels)} answers, {len(truth)} tokens: {_etas(labels)}; {told}")
    twice = [each for each in answers if each.public and each.second is not None]
    for rater, labels in (
        ("first", [each.truth for each in twice]),
        ("second", [each.second for each in twice if each.second is not None]),
    ):
        print(f"real models by the {rater} rater: {len(twice)} answers: {_etas(labels)}")


def _etas(labels: list[NDArray[np.int64]]) -> str:
    """Of the tokens of each answer: shares whose label counts, with their half-widths."""
    told = []
    for view, counted in VIEWS.items():
        parts = [(float(np.isin(each, counted).sum()), float(len(each))) for each in labels]
        half = half_width(parts)
        share = sum(required for required, _ in parts) / sum(tokens for _, tokens in parts)
        told.append(f"{view} η {share:.3f} ± {'unknown' if half is None else f'{half:.3f}'}")
    return ", ".join(told)


if __name__ == "__main__":
    main()
