"""Reads the tokenizer of a served model where it lies on this machine, so that a span's tokens are those that the model wrote.

Only the `tokenizers` library is used, where it is installed; nothing is ever downloaded. A tokenizer takes some nine times its file in memory,
so one larger than `LIMIT_BYTES` is left alone.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

LIMIT_BYTES: Final = 12 << 20
_FILE: Final = "tokenizer.json"
_REPOSITORY: Final = re.compile(r"[\w.-]+/[\w.-]+")


def file_of(named: str) -> Path | None:
    """The tokenizer's file: in the folder that is named, or in the local cache of the repository. None where there is none of a fit size."""
    if _REPOSITORY.fullmatch(named) and not Path(named).is_dir():
        home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
        cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub") / f"models--{named.replace('/', '--')}"
        try:
            snapshot = (cache / "refs" / "main").read_text().strip()
        except OSError:
            return None
        file = cache / "snapshots" / snapshot / _FILE
    else:
        file = Path(named) / _FILE
    try:
        return file if file.stat().st_size <= LIMIT_BYTES else None
    except OSError:
        return None


class Tokenizer:
    """A tokenizer's file, read by a process of its own.

    Whoever reads one holds the interpreter's lock all the while: tenths of a second, on a busy machine more than one, in which no counter could be read and no figure told.
    The process ends with its standard input, so that it never outlives the one that asks.
    """

    def __init__(self, file: Path) -> None:
        # -P: nothing that lies in the working directory is taken for a module.
        command = [sys.executable, "-P", "-m", __name__, str(file)]
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )

    @property
    def process_id(self) -> int:
        return self._process.pid

    def offsets(self, text: str) -> list[tuple[int, int]] | None:
        """Where each token of `text` begins and ends, in characters. Waits for the file to be read.

        None where it can't be told: this is no tokenizer's file, the `tokenizers` library isn't installed or fails at a text, the process has ended, or half a surrogate pair is no text.
        """
        asked, told = self._process.stdin, self._process.stdout
        assert asked is not None
        assert told is not None
        try:
            asked.write(json.dumps(text).encode() + b"\n")
            asked.flush()
        except BrokenPipeError:
            return None
        line = told.readline()
        borders: list[int] | None = json.loads(line) if line.endswith(b"\n") else None
        return None if borders is None else list(zip(borders[::2], borders[1::2], strict=True))

    def kill(self) -> None:
        """End the process at once; whoever asks it meanwhile, in another thread, is told nothing."""
        self._process.kill()

    def close(self) -> None:
        """End the process once it has answered; not while another thread asks."""
        with contextlib.suppress(BrokenPipeError):  # it ended before
            self._process.communicate()


def tokenizer_of(named: str) -> Tokenizer | None:
    """None where there is no file of a fit size."""
    file = file_of(named)
    return None if file is None else Tokenizer(file)


def answer(file: str) -> None:
    """The process: a JSON text a line in, its tokens' borders a line out."""
    from tokenizers import Tokenizer as Reader  # where it is asked for, and nowhere else

    reader = Reader.from_file(file)
    for line in sys.stdin.buffer:
        try:
            borders = reader.encode(json.loads(line), add_special_tokens=False).offsets
        except (TypeError, ValueError):
            borders = None
        told = None if borders is None else [at for border in borders for at in border]
        sys.stdout.write(f"{json.dumps(told)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    answer(sys.argv[1])
