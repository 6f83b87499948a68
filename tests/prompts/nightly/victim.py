"""`etameter nightly` in a hurry, as a process of its own that a test may kill: `python -m tests.prompts.nightly.victim CONFIG`."""

import sys
from types import ModuleType

from etameter import cli
from etameter.prompts import endpoint, report
from etameter.prompts.experiment import Patience
from etameter.prompts.nightly import beside, command, load, runner, steady, switchback

HURRY: tuple[tuple[ModuleType, str, object], ...] = (
    (endpoint, "_POLL_S", 0.01),
    (command, "DOCTOR_S", 0.2),
    (runner, "REST_S", 0.0),
    (load, "BREATH_S", 0.0),
    (steady, "LEVEL_CV", 0.15),
    (switchback, "SHORT", Patience(0.1, 0.0, 0.1, 1.0)),
    (beside, "installed", lambda: False),
    (report, "write", lambda *_: []),
    (command, "conclude", lambda *_: None),
)


def hurry(more: tuple[tuple[ModuleType, str, object], ...] = ()) -> None:
    for module, name, value in (*HURRY, *more):
        setattr(module, name, value)


if __name__ == "__main__":
    hurry()
    cli.main(["nightly", *sys.argv[1:]])
