"""docs/seeds.md names what there is, all of it that recomputes a claim, and says why where there is nothing."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from etameter.arithmetic import ROWS
from etameter.arithmetic.rows import TITLES
from etameter.cli import app
from etameter.export.catalogue import CATALOGUE
from etameter.prompts.nightly.metrics import METRICS

pytestmark = pytest.mark.unit

SEEDS = Path(__file__).parents[1] / "docs" / "seeds.md"
PARTS = SEEDS.read_text(encoding="utf-8").split("\n## ")[1:]
ROWS_OF = {
    part.split("\n")[0]: re.findall(r"^\| (?!subject|---)(.+?) \| (.+?) \| (.+) \|$", part, re.MULTILINE)
    for part in PARTS
}
NAMES = {row.name for row in ROWS} | {metric.name for metric in CATALOGUE} | set(METRICS)


def test_there_is_a_table_for_each_document() -> None:
    assert list(ROWS_OF) == list(TITLES.values())
    assert all(len(rows) > 10 for rows in ROWS_OF.values())


@pytest.mark.parametrize("row", [row for rows in ROWS_OF.values() for row in rows], ids=lambda row: row[0])
def test_each_subject_names_what_there_is_or_says_why_not(row: tuple[str, str, str]) -> None:
    names = re.findall(r"`([^`]+)`", row[2])
    assert names or "not computable, because" in row[2]
    for name in names:
        assert _is_command(name) if name.startswith("etameter ") else name in NAMES, name


def test_every_row_of_the_arithmetic_stands_under_its_document() -> None:
    for letter, title in TITLES.items():
        told = {name for row in ROWS_OF[title] for name in re.findall(r"`([^`]+)`", row[2])}
        shown = {row.name for row in ROWS if row.document == letter}
        others = {row.name for row in ROWS} - shown
        assert shown <= told
        assert told & others <= {"retry-loop", "retry-cost", "mfu"}, (
            "of what another document names, or a figure of a night"
        )


def test_a_command_or_option_that_is_none_is_seen() -> None:
    assert _is_command("etameter eta classify")
    assert _is_command("etameter arithmetic --curve")
    assert not _is_command("etameter guess")
    assert not _is_command("etameter eta")
    assert not _is_command("etameter arithmetic --curves")


def _is_command(text: str) -> bool:
    command = typer.main.get_command(app)
    words = iter(text.split()[1:])
    for word in words:
        if word.startswith("-"):
            return all(option in _options(command) for option in (word, *words))
        if not isinstance(command, typer.core.TyperGroup) or word not in command.commands:
            return False
        command = command.commands[word]
    return not isinstance(command, typer.core.TyperGroup)


def _options(command: object) -> Iterator[str]:
    for parameter in getattr(command, "params", ()):
        yield from parameter.opts
