"""Makes `meter/slack/fast.json`, the weights that name slack, as `etameter.slack.training` finds them.

python -m benchmarks.train_fast --data DIR [--out FILE]
"""

import argparse
import os
from pathlib import Path

from benchmarks.labelled import load
from etameter.slack.training import as_json, train

OUT = Path(__file__).resolve().parent.parent / "meter" / "slack" / "fast.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("ETAMETER_DATA"), required="ETAMETER_DATA" not in os.environ
    )
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    answers = load(Path(options.data))
    model, rows, _ = train(answers)
    trained_on = {
        "answers": len(answers),
        "of_real_models": sum(each.public for each in answers),
        "spans": len(rows.tokens),
        "labels": "by language models; human labels: none yet",
    }
    options.out.write_text(as_json(model, "python -m benchmarks.train_fast", trained_on))
    print(
        f"{options.out}: thresholds {model.thresholds}, slack {model.slack_threshold}, calibration {model.scale:.3f} · log odds {model.shift:+.3f}"
    )


if __name__ == "__main__":
    main()
