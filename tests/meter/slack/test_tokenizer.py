import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from etameter.slack.tokenizer import LIMIT_BYTES, Tokenizer, file_of, tokenizer_of
from tests.processes import runs
from tests.serving.fake_meter import until

pytestmark = pytest.mark.unit


@pytest.fixture
def words(tmp_path: Path) -> Path:
    tokenizers = pytest.importorskip("tokenizers")
    reader = tokenizers.Tokenizer(tokenizers.models.WordLevel({"Sure": 0, "!": 1, "Blue": 2}, unk_token="!"))
    reader.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    reader.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_tokens_are_told_by_their_characters(words: Path) -> None:
    tokenizer = tokenizer_of(str(words))
    assert tokenizer is not None
    assert tokenizer.offsets("Sure! Blue") == [(0, 4), (4, 5), (6, 10)]
    assert tokenizer.offsets("Blüe\n☃ Sure") == [(0, 4), (5, 6), (7, 11)]  # characters, not bytes
    assert tokenizer.offsets("") == []
    tokenizer.close()


def test_a_text_longer_than_any_pipe_s_buffer_is_told(words: Path) -> None:
    tokenizer = Tokenizer(words / "tokenizer.json")
    assert tokenizer.offsets("Blue " * 50_000) == [(at, at + 4) for at in range(0, 250_000, 5)]
    tokenizer.close()


def test_who_asks_one_that_hangs_is_told_nothing_once_it_is_killed(words: Path) -> None:
    tokenizer = Tokenizer(words / "tokenizer.json")
    os.kill(tokenizer.process_id, signal.SIGSTOP)
    told: list[object] = []
    asking = threading.Thread(target=lambda: told.append(tokenizer.offsets("Blue")))
    asking.start()
    tokenizer.kill()
    asking.join(60)
    assert told == [None]
    tokenizer.close()


def test_a_file_in_the_working_directory_shadows_nothing(words: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (words / "json.py").write_text("")
    monkeypatch.chdir(words)
    tokenizer = Tokenizer(words / "tokenizer.json")
    assert tokenizer.offsets("Blue") == [(0, 4)]
    tokenizer.close()


def test_what_is_no_text_is_not_told_and_the_next_is(words: Path) -> None:
    tokenizer = Tokenizer(words / "tokenizer.json")
    assert tokenizer.offsets("half a pair: \ud800") is None
    assert tokenizer.offsets("Blue") == [(0, 4)]
    tokenizer.close()


def test_a_process_that_was_killed_tells_nothing(words: Path) -> None:
    tokenizer = Tokenizer(words / "tokenizer.json")
    assert tokenizer.offsets("Blue") == [(0, 4)]
    os.kill(tokenizer.process_id, signal.SIGKILL)
    assert [tokenizer.offsets("Blue") for _ in range(3)] == [None] * 3
    tokenizer.close()


def test_a_file_that_is_none_tells_nothing(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    tokenizer = Tokenizer(tmp_path / "tokenizer.json")
    assert tokenizer.offsets("Blue") is None
    tokenizer.close()


def test_it_does_not_outlive_who_asks(words: Path) -> None:
    asks = (
        "import os, signal, sys; from pathlib import Path; from etameter.slack.tokenizer import Tokenizer;"
        "tokenizer = Tokenizer(Path(sys.argv[1])); tokenizer.offsets('Blue');"
        "print(tokenizer.process_id, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run(
        [sys.executable, "-c", asks, str(words / "tokenizer.json")], stdout=subprocess.PIPE, check=False
    )
    assert done.returncode == -signal.SIGKILL
    until(lambda: not runs(int(done.stdout)), 60)


def test_no_file_of_a_fit_size_is_none(tmp_path: Path) -> None:
    assert tokenizer_of(str(tmp_path)) is None
    with (tmp_path / "tokenizer.json").open("wb") as large:
        large.truncate(LIMIT_BYTES + 1)
    assert file_of(str(tmp_path)) is None
