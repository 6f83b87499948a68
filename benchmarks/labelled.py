"""The labelled answers that the shipped weights were made from: lines of {id, prompt, response, spans, model or style, category}.

    python -m benchmarks.labelled --data DIR

says what of them was required, by model or style: shares of tokens, a word or a mark of punctuation being one.
"""

import argparse
import json
import os
from pathlib import Path

import numpy as np

from etameter.slack.labelled import Answer, answer
from etameter.slack.labels import LABELS, NAMES

FILES = ("slack/dev.jsonl", "slack/dev_public.jsonl")


def load(directory: Path) -> list[Answer]:
    lines = [line for file in FILES for line in (directory / file).read_text().split("\n") if line]
    return [answer(json.loads(line)) for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("ETAMETER_DATA"), required="ETAMETER_DATA" not in os.environ
    )
    answers = load(Path(parser.parse_args().data))
    for group in dict.fromkeys(each.group for each in answers):
        of = [each for each in answers if each.group == group]
        truth = np.concatenate([each.truth[each.truth >= 0] for each in of])
        shares = {NAMES[label]: float((truth == place).mean()) for place, label in enumerate(LABELS)}
        told = ", ".join(f"{name} {share:.3f}" for name, share in shares.items())
        print(f"{group}: {len(of)} answers, {len(truth)} tokens: {told}")


if __name__ == "__main__":
    main()
