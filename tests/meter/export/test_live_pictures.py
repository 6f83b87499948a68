"""The pictures are of the live page as it is."""

import json
from pathlib import Path

import pytest

from docs import live_pictures as pictures

pytestmark = pytest.mark.unit


def test_no_picture_is_stale() -> None:
    assert pictures.stale() == []


def test_pictures_of_a_changed_page_and_missing_ones_are_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page, images = tmp_path / "page", tmp_path / "images"
    for folder in (page, images):
        folder.mkdir()
    monkeypatch.setattr(pictures, "PAGE", page)
    monkeypatch.setattr(pictures, "IMAGES", images)
    monkeypatch.setattr(pictures, "MANIFEST", images / "live-page.json")
    (page / "page.js").write_text("1")
    assert pictures.main(["--check"]) == 1, "none was drawn"
    for name in pictures.PICTURES:
        (images / f"{name}.png").write_bytes(b"")
    pictures.MANIFEST.write_text(json.dumps(pictures.hashes()))
    assert pictures.main(["--check"]) == 0
    capsys.readouterr()
    (page / "page.js").write_text("2")
    (page / "new.js").write_text("")
    (images / "live-page-phone.png").unlink()
    assert pictures.stale() == ["new.js", "page.js", "live-page-phone.png"]
    assert pictures.main(["--check"]) == 1
    said = "stale: the pictures of the live page (new.js, page.js, live-page-phone.png); run `python -m docs.live_pictures`\n"
    assert capsys.readouterr().err == said


def test_an_unknown_option_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert pictures.main(["--chek"]) == 2
    assert "--chek" in capsys.readouterr().err
