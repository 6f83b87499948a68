"""What is written when a night has ended: its verdict, for programs and for people, in the night's own folder."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from etameter.footprint import Footprint

from . import outlets
from .history import VERDICT_FILE
from .night import Night
from .page import page
from .verdict import Verdict

PAGE_FILE: Final = "report.html"
MARKDOWN_FILE: Final = "report.md"
JUNIT_FILE: Final = "junit.xml"


def conclude(night: Night, verdict: Verdict, before: Sequence[Night], folder: Path, footprint: Footprint) -> None:
    """Writes what came of the night. `before`: the nights of its job, oldest first.

    Raises:
        ExperimentError: matplotlib isn't installed.
        OSError: as of a full disk.
    """
    told = json.dumps(outlets.told(night, verdict), ensure_ascii=False, indent=1, allow_nan=False)
    written = {
        MARKDOWN_FILE: outlets.markdown(night, verdict),
        JUNIT_FILE: outlets.junit(night, verdict),
        PAGE_FILE: page(night, verdict, before, footprint),
        VERDICT_FILE: f"{told}\n",
    }
    for name, text in written.items():
        building = folder / f".{name}"
        building.write_text(text, encoding="utf-8")
        building.rename(folder / name)
