"""`etameter nightly` in a hurry, as a process of its own that a test may kill: `python -m tests.prompts.nightly.victim CONFIG`."""

import sys

from etameter import cli
from etameter.prompts import endpoint, report
from etameter.prompts.experiment import Patience
from etameter.prompts.nightly import beside, command, load, runner, switchback

if __name__ == "__main__":
    endpoint._POLL_S = 0.01
    command.DOCTOR_S = 0.2
    runner.REST_S = 0.0  # type: ignore[misc]
    load.BREATH_S = 0.0  # type: ignore[misc]
    switchback.SHORT = Patience(0.1, 0.0, 0.1, 1.0)
    beside.installed = lambda: False
    report.write = lambda *_: []  # type: ignore[assignment]
    command.conclude = lambda *_: None  # type: ignore[assignment]
    cli.main(["nightly", *sys.argv[1:]])
