"""What the slack brake would have ended of the labelled answers, and what was lost by that.

    python -m benchmarks.braking [--data DIR]

The answers of each real model, and a fifth of the imitated ones at a time, are left out of the weights and the calibration that the brake goes
by. Tokens are words and marks of punctuation, labels those of the data: an answer is damaged where something came after its end that was
required. The shares have Clopper-Pearson bounds of 95 %.
"""

import argparse
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.labelled import load
from etameter.prompts.brake import most
from etameter.slack.brake import Brake, Cause
from etameter.slack.fast import CLASSES, Model
from etameter.slack.labelled import TOKEN, Answer
from etameter.slack.labels import LABELS, OPTIONAL, REQUIRED
from etameter.slack.training import NEVER, calibration, fit, folds, left_out, table


@dataclass(frozen=True, slots=True)
class Braked:
    """An answer, and what of it would not have been written."""

    public: bool
    tokens: int
    cause: Cause | None
    saved: int
    required: int
    optional: int


def left_out_models(answers: list[Answer]) -> Iterator[tuple[Model, list[Answer]]]:
    """Models that have not seen the answers that go with them."""
    rows = table(answers)
    for _, members in folds(answers):
        rest = [answer for answer, is_member in zip(answers, members, strict=True) if not is_member]
        learnt = table(rest)
        every = np.ones(len(learnt.tokens), dtype=bool)
        scale, shift = calibration(learnt, left_out(rest, learnt), every)
        model = Model(fit(rows, ~members[rows.answer]), dict.fromkeys(CLASSES, NEVER), NEVER, scale, shift)
        yield model, [answer for answer, is_member in zip(answers, members, strict=True) if is_member]


def braked(answer: Answer, model: Model) -> Braked:
    """Its tokens come one by one."""
    brake = Brake(answer.prompt, model)
    starts = [match.start() for match in TOKEN.finditer(answer.response)]
    cause, end = None, len(starts)
    for place, (start, until) in enumerate(zip(starts, [*starts[1:], len(answer.response)], strict=True)):
        cause = brake.feed(answer.response[start:until])
        if cause is not None:
            end = place + 1
            break
    lost = [LABELS[label] for label in answer.truth[end:] if label >= 0]
    return Braked(answer.public, len(starts), cause, len(starts) - end, lost.count(REQUIRED), lost.count(OPTIONAL))


def told(name: str, found: list[Braked]) -> str:
    ended = [each for each in found if each.cause is not None]
    damaged = sum(each.required > 0 for each in ended)
    causes = ", ".join(f"{sum(each.cause == cause for each in ended)} {cause}" for cause in ("closing", "repetition"))
    saved, tokens = sum(each.saved for each in found), sum(each.tokens for each in found)
    return (
        f"{name}: {len(ended)} of {len(found)} answers ended ({causes}); {saved} of {tokens} tokens not written ({saved / tokens:.2%}); "
        f"{damaged} lost something required (of all answers at most {most(damaged, len(found)):.1%}), "
        f"{sum(each.optional > 0 for each in ended)} something optional"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("ETAMETER_DATA"), required="ETAMETER_DATA" not in os.environ
    )
    found = [
        braked(answer, model)
        for model, answers in left_out_models(load(Path(parser.parse_args().data)))
        for answer in answers
    ]
    print(told("real models", [each for each in found if each.public]))
    print(told("imitated styles", [each for each in found if not each.public]))


if __name__ == "__main__":
    main()
