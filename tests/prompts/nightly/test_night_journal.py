"""What a journal says comes back; what was cut off is known; nobody else writes it."""

import json
from pathlib import Path

import pytest

from etameter.errors import NightError
from etameter.prompts.nightly import journal
from etameter.prompts.nightly.journal import Ending, Journal
from etameter.prompts.nightly.night import JOURNAL_FILE
from tests.prompts.nightly.laid_out import figure, stage_row

pytestmark = pytest.mark.unit

HEAD = {"run_id": "r", "name": "nightly", "config_hash": "c0ffee"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    journal.begin(tmp_path / "r", HEAD)
    return tmp_path / "r" / JOURNAL_FILE


def test_the_first_line_has_the_run_and_the_hash(path: Path) -> None:
    assert json.loads(path.read_text()) == {"kind": "night", "version": 1, **HEAD}


def test_everything_comes_back(path: Path) -> None:
    row, of_arm, found = stage_row(), stage_row(stage="ab-fixed/concise", kind="ab"), figure()
    with Journal(path) as kept:
        kept.session({"source": "simulated"})
        assert kept.session_number == 0
        assert kept.begin("batch-8") == 0
        kept.window(row)
        kept.end("batch-8", [found])
        kept.begin("ab-fixed")
        kept.window(of_arm)
        kept.note("clock", {"wall_s": 3.0})
        kept.warmed_up({"level": True})
        kept.doctor({"can_measure": True})
        kept.close_with(Ending("complete", "", "", 0), "then")
        written = kept.told
    told = journal.load(path.parent)
    assert told == written
    assert told.windows == {"batch-8": [row], "ab-fixed/concise": [of_arm]}
    assert told.figures == {"batch-8": (found,)}
    assert told.of("clock") == [{"about": "clock", "wall_s": 3.0}]
    assert (told.head["ended"], told.ending) == ("then", Ending("complete", "", "", 0))


def test_windows_that_did_not_count_are_of_their_attempt_alone(path: Path) -> None:
    """Killed between that note and the stage's end: the stage is run again, and may go well."""
    with Journal(path) as kept:
        for stage in ("batch-1", "batch-8"):
            kept.begin(stage)
            kept.note(journal.SPOILED, {"stage": stage, "rules": ["throttled"], "reason": "2 of 10 windows count"})
            kept.note("clock", {"wall_s": 3.0})
    with Journal(path) as kept:
        assert len(kept.told.of(journal.SPOILED)) == 2
        kept.begin("batch-8")
    told = journal.load(path.parent)
    assert [note["stage"] for note in told.of(journal.SPOILED)] == ["batch-1"]
    assert len(told.of("clock")) == 2


def test_a_stage_that_was_cut_off_begins_anew(path: Path) -> None:
    with Journal(path) as kept:
        kept.begin("ab-fixed")
        kept.window(stage_row(stage="ab-fixed/concise"))
        kept.begin("ab")
        kept.window(stage_row(stage="ab"))
    with Journal(path) as kept:
        assert kept.begin("ab-fixed") == 1
        assert kept.told.windows == {"ab": [stage_row(stage="ab")]}
        assert kept.told.figures == {}


@pytest.mark.parametrize("cut", range(1, 40, 7))
def test_a_last_line_that_was_cut_off_is_dropped(cut: int, path: Path) -> None:
    with Journal(path) as kept:
        kept.begin("batch-8")
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"kind": "window", "row": {"stage": "batch-8"'[:cut])
    with Journal(path) as kept:
        assert kept.told.begun == {"batch-8": 1}
    assert path.read_bytes() == whole


def test_two_do_not_write_one_journal(path: Path) -> None:
    with Journal(path), pytest.raises(NightError, match="going on already"):
        Journal(path)
    Journal(path).__exit__(None, None, None)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is damaged"),
        ('{"kind": "plan", "version": 1}\n', "no journal of version 1"),
        ('{"kind": "night", "version": 2}\n', "no journal of version 1"),
        ('{"kind": "night", "version": 1}\n{"kind": "colour"}\n', "a line of kind colour"),
        ('{"kind": "night", "version": 1}\nnonsense\n', "is damaged"),
    ],
)
def test_what_is_no_journal_is_refused(content: str, said: str, path: Path) -> None:
    path.write_text(content)
    with pytest.raises(NightError, match=said):
        Journal(path)


def test_a_folder_that_is_there_is_no_new_run(path: Path) -> None:
    with pytest.raises(NightError, match="set nightly"):
        journal.begin(path.parent, HEAD)
