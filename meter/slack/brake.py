"""Says, while an answer is written, that nothing but slack will follow: a closing has begun, or the model goes round in a circle.

Two detectors that are sure or silent. A sentence that opens as closings do is shown to the classifier of `fast` at its fifth and ninth word, or at its end, as if the
answer ended there; the answer is over from a calibrated probability of slack on. And words that come again and again without anything between are a
circle. Neither is looked for in blocks of code or data, nor where a text was asked for, which may have its own farewell and its own refrain.

What stood before is not taken back: the words that showed it are said.
"""

import hashlib
import json
import re
from collections import deque
from importlib import resources
from typing import Final, Literal

from .cues import START_PATTERNS
from .fast import Model, label_all, look, shipped
from .features import CREATIVE, plain
from .segment import Segmenter, segment

Cause = Literal["closing", "repetition"]

PEEKS: Final = (5, 9)
SURE: Final = 0.9
"""On answers of models that were left out of the training, nothing that was required came after it: see docs/measurements/eta.md."""
ROUNDS: Final = 3
CIRCLE_WORDS: Final = 24
"""All rounds together have so many words at least, …"""
ROUND_WORDS: Final = 80
"""… and one so many at most."""

_CUES: Final = ("hope", "wish", "offer")
"""Not `sum_up`: many a conclusion of a real answer held something that was required. Nor `if_you`, which begins conditions, too."""
_LOOK_EVERY: Final = 8
_SHOWN_CHARACTERS: Final = 40_000
"""Shown to the classifier in all, of one answer: who has a model write nothing but beginnings of closings would else keep a server busy with them."""
_KEPT_CHARACTERS: Final = 400
"""Of a sentence: enough for the words at which it is looked at."""
_WORD: Final = re.compile(r"\S+(?=\s)")
_MAY_END: Final = re.compile(r"[.!?…][\"'”’»)\]]*\s|\n")


def identity() -> str:
    """Of the detectors. What was measured with others says nothing of these."""
    told = json.dumps([PEEKS, SURE, ROUNDS, CIRCLE_WORDS, ROUND_WORDS, _CUES, _SHOWN_CHARACTERS])
    weights = resources.files("etameter.slack").joinpath("fast.json").read_bytes()
    return hashlib.sha256(told.encode() + weights).hexdigest()[:16]


class Brake:
    """Of one answer to `prompt`."""

    def __init__(self, prompt: str, model: Model | None = None) -> None:
        self._prompt = prompt
        self._model = model or shipped()
        self._over = CREATIVE.search(prompt.lower()[:400]) is not None
        self._segmenter = Segmenter()
        self._said: list[str] = []
        self._length = 0
        self._shown = 0
        self._sentence = ""
        self._sentence_words = 0
        self._word = ""  # the beginning of one
        self._words: deque[str] = deque(maxlen=ROUNDS * ROUND_WORDS)
        self._unseen = 0

    def feed(self, text: str) -> Cause | None:
        """What comes next of the answer. Says, once, why the answer may end here; None while it may not."""
        for piece in re.findall(r"\S*\s?", text):
            if self._over:
                return None
            cause = self._take(piece)
            if cause is not None:
                self._over = True
                return cause
        return None

    def _take(self, piece: str) -> Cause | None:
        """Of one word at most, and the white space that ends it."""
        self._said.append(piece)
        self._length += len(piece)
        self._segmenter.feed(piece)
        if self._segmenter.in_block:
            self._words.clear()
            self._sentence, self._word = "", ""
            return None
        self._sentence = (self._sentence + piece)[-_KEPT_CHARACTERS:]
        self._word += piece
        if not piece[-1:].isspace():
            return None
        word, self._word = self._word.strip(), ""
        cause: Cause | None = None
        if word:
            self._words.append(word)
            self._sentence_words += 1
            cause = "repetition" if self._circles() else "closing" if self._closes(piece) else None
        self._end_sentence(piece)
        return cause

    def _end_sentence(self, piece: str) -> None:
        if piece.endswith("\n"):
            self._sentence, self._sentence_words = "", 0
        elif _MAY_END.search(piece) and len(spans := segment(self._sentence + "A")) > 1:
            self._sentence = self._sentence[spans[-1].start : -1]
            self._sentence_words = len(_WORD.findall(self._sentence))

    def _closes(self, piece: str) -> bool:
        words = self._sentence_words
        is_due = words in PEEKS or (words < PEEKS[-1] and _MAY_END.search(piece) is not None)
        if not is_due or self._shown + self._length > _SHOWN_CHARACTERS:
            return False
        low = plain(self._sentence)
        if not any(START_PATTERNS[name].match(low) for name in _CUES):
            return False
        self._shown += self._length
        last = look(self._prompt, "".join(self._said).rstrip())[-1]
        (found,) = label_all([last], self._model)
        return found.kind == "sentence" and found.p_slack is not None and found.p_slack >= SURE

    def _circles(self) -> bool:
        """Whether the last words are a round that came `ROUNDS` times. Looked at now and then: a circle doesn't end by itself."""
        self._unseen += 1
        if self._unseen < _LOOK_EVERY or len(self._words) < CIRCLE_WORDS:
            return False
        self._unseen = 0
        words = list(self._words)
        for size in range(1, len(words) // ROUNDS + 1):
            tail = words[-max(ROUNDS * size, CIRCLE_WORDS) :]
            if words[-1] == words[-1 - size] and tail[size:] == tail[:-size]:
                return True
        return False
