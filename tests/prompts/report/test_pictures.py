"""The report as a browser shows it."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from docs.pictures import VIEWS, take
from etameter.prompts import report
from tests.prompts.report.ab_run import record

pytestmark = [
    pytest.mark.unit,
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="Chromium is not installed"),
]


def test_a_browser_shows_it_light_and_dark_narrow_and_wide(tmp_path: Path) -> None:
    report.write(record("simulated"), tmp_path)
    lightness: dict[str, int] = {}
    for view in VIEWS[report.PAGE]:
        with Image.open(take(tmp_path / report.PAGE, view, tmp_path)) as picture:
            assert picture.size == (view.width, view.bottom - view.top)
            grey = picture.convert("L").resize((1, 1)).getpixel((0, 0))
            right_edge = picture.convert("RGB").crop((view.width - 4, 0, view.width, view.bottom)).getcolors()
        lightness[view.name] = int(str(grey))
        assert right_edge is not None
        assert len(right_edge) == 1, f"{view.name}: something reaches over the edge"
    assert lightness.pop("report-dark") < 80
    assert min(lightness.values()) > 200
