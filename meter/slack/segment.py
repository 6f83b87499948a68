"""Cuts an output into spans: sentences, list items, headings, rows and whole blocks.

The spans tile the text: the first begins at 0, each begins where the one before ends, the last ends with the text. White
space belongs to the span before it. Lines are cut once they are whole, so a stream gives the same spans as the text at
once, however it is chunked, and every character is looked at a bounded number of times. Markdown is a guide, not a
grammar: what is broken or never closed is still a span (an open fence runs to the end).
"""

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal[
    "sentence", "item", "heading", "rule", "row", "code", "math", "data", "markup", "tool_call", "reasoning", "blank"
]


@dataclass(frozen=True, slots=True)
class Span:
    """Characters `start` to `end` of a text, and what they look like."""

    start: int
    end: int
    kind: Kind


# What opens a block at the beginning of a line, what closes it anywhere after, and what it is then.
_BLOCKS: Final[tuple[tuple[str, str, Kind], ...]] = (
    ("<think>", "</think>", "reasoning"),
    ("<thinking>", "</thinking>", "reasoning"),
    ("<reasoning>", "</reasoning>", "reasoning"),
    ("[THINK]", "[/THINK]", "reasoning"),
    ("<|channel|>analysis", "<|end|>", "reasoning"),
    ("<tool_call>", "</tool_call>", "tool_call"),
    ("<function_call>", "</function_call>", "tool_call"),
    ("<function=", "</function>", "tool_call"),
    ("<|tool_call_start|>", "<|tool_call_end|>", "tool_call"),
    ("$$", "$$", "math"),
    ("\\[", "\\]", "math"),
    ("\\begin{equation", "\\end{equation", "math"),
    ("\\begin{align", "\\end{align", "math"),
)
_ONE_LINE: Final[tuple[tuple[str, Kind], ...]] = (("[TOOL_CALLS]", "tool_call"), ("<|python_tag|>", "tool_call"))

_FENCE: Final = re.compile(r"(`{3,}|~{3,})")
_HEADING: Final = re.compile(r"#{1,6}\s|(?:\*\*[^*\n]+\*\*|__[^_\n]+__):?\s*$")
_RULE: Final = re.compile(r"([-*_=])(?:[ \t]*\1){2,}\s*$")
_ITEM: Final = re.compile(r"(?:[-*+•◦▪‣–·]|\(?\d{1,3}[.)]|\(?[A-Za-z][.)]|\(?[ivxIVX]{1,4}[.)]|(?:\*\*)\d{1,3}[.)])\s+")
_ROW: Final = re.compile(r"\|[^\n]*\|\s*$")
_MARKUP: Final = re.compile(r"</?[A-Za-z][\w-]{0,30}(?:\s[^>\n]*)?/?>|<!--|<!DOCTYPE", re.IGNORECASE)
_DATA: Final = re.compile(r'(?:\{|\[)\s*$|\{\s*["\'}]|\[\s*(?:\{|"|-?\d+\s*[,\]]|\])')
_CODE: Final = re.compile(
    r"(?:(?:def|class|for|while|if|elif|else|try|except|with)\b[^\n]*:"
    r"|(?:import|from)\s+[\w.]+(?:\s+(?:import|as)\s+[\w., *]+)?;?"
    r"|(?:return|print|printf|console\.log)\b\s*\(?[^.\n]*\)?;?"
    r"|#include\s*[<\"][^\n]*|(?:public|private|static|const|let|var|int|void|char|bool)\s[^\n]*[;{]"
    r"|[\w.\[\]]+\s*(?:[-+*/]?=)\s*[^\n]*[\])\"';\w]|[\w.]+\([^\n]*\);?|[{}\]);]+,?|[^\n]*[;{])\s*$"
)
_INDENT: Final = 2

# A sentence ends at its mark where white space follows and then no small letter; in scripts without spaces, at the mark.
_END: Final = re.compile(r"(?<![.!?…。！？।؟۔])(?:[.!?…]++[\"'”’»)\]]*+(?=[ \t])|[。！？।؟۔]++[」』”’）]*+)[ \t]*+")
_NO_END: Final = re.compile(
    r"(?:^|[\s(\"“‘*_])(?:[A-Za-z]|e\.g|i\.e|a\.k\.a|cf|vs|etc|approx|ca|No|no|Nos|Fig|Eq|Vol|pp|Ch|Sec|al"
    r"|Dr|Mr|Mrs|Ms|Prof|St|Sr|Jr|Gen|Col|Lt|Rev|Hon|Inc|Ltd|Co|Corp|U\.S|U\.K|E\.U|a\.m|p\.m|Ph\.D|Jan|Feb|Mar|Apr|Aug|Sept|Oct|Nov|Dec)\.$"
)
_LOOK_BACK: Final = 12


class Segmenter:
    """Cuts a stream: `feed` gives the spans that closed, `finish` those that were still open."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._line: list[str] = []  # pieces of the line that is not whole yet
        self._line_start = 0
        self._length = 0
        self._open: tuple[int, Kind] | None = None  # start and kind of the last span
        self._closer: str | None = None  # what ends the block that is open
        self._fence: str | None = None
        self._depth: int | None = None  # brackets of the data block that is open

    @property
    def in_block(self) -> bool:
        """Whether what follows, as far as whole lines tell, belongs to a block of code, data or the like that isn't closed."""
        return self._fence is not None or self._closer is not None or self._depth is not None

    def feed(self, chunk: str | bytes) -> list[Span]:
        """Bytes may end in the middle of a character; what is no UTF-8 becomes U+FFFD."""
        text = self._decoder.decode(chunk) if isinstance(chunk, bytes) else chunk
        closed: list[Span] = []
        at = 0
        while (newline := text.find("\n", at)) >= 0:
            self._line.append(text[at : newline + 1])
            closed += self._whole_line()
            at = newline + 1
        if at < len(text):
            self._line.append(text[at:])
        return closed

    def finish(self) -> list[Span]:
        """The rest. The segmenter is spent then."""
        if rest := self._decoder.decode(b"", final=True):
            self._line.append(rest)
        closed = self._whole_line()
        if self._length:
            start, kind = self._open or (0, "blank")
            closed.append(Span(start, self._length, kind))
        return closed

    def _whole_line(self) -> list[Span]:
        line = "".join(self._line)
        self._line.clear()
        closed = []
        for start, kind in self._starts(line):
            if self._open is None:
                self._open = 0, kind  # white space before the first span has no other owner
            else:
                closed.append(Span(self._open[0], self._length + start, self._open[1]))
                self._open = self._length + start, kind
        self._length += len(line)
        return closed

    def _starts(self, line: str) -> Iterator[tuple[int, Kind]]:
        """Where in the line spans begin, and of which kind."""
        at = 0
        if self._closer is not None:
            found = line.find(self._closer)
            if found < 0:
                return
            at = found + len(self._closer)
            self._closer = None
        text = line[at:].strip()
        if not text:
            return
        at = line.index(text[0], at)
        if self._fence is not None:
            if text.startswith(self._fence) and not text.strip(self._fence[0]):
                self._fence = None
            return
        if self._depth is not None:
            self._count_brackets(text)
            return
        if fence := _FENCE.match(text):
            yield at, "code"
            if fence[1] not in text[fence.end() :]:
                self._fence = fence[1]
            return
        for opener, closer, kind in _BLOCKS:
            if text.startswith(opener):
                yield at, kind
                found = line.find(closer, at + len(opener))
                if found < 0:
                    self._closer = closer
                else:
                    yield from self._rest(line, found + len(closer))
                return
        if _DATA.match(text):
            yield at, "data"
            self._depth = 0
            self._count_brackets(text)
            return
        yield from _prose(line, at, text)

    def _rest(self, line: str, at: int) -> Iterator[tuple[int, Kind]]:
        """What follows a block in its own line. It is prose, whatever it looks like: so no line is read more than twice."""
        if text := line[at:].strip(" \t\r\n.,;"):
            yield from _sentences(line, line.index(text[0], at), "sentence")

    def _count_brackets(self, text: str) -> None:
        assert self._depth is not None
        self._depth += sum(text.count(mark) for mark in "{[") - sum(text.count(mark) for mark in "}]")
        if self._depth <= 0:
            self._depth = None


def _prose(line: str, at: int, text: str) -> Iterator[tuple[int, Kind]]:
    indented = at >= _INDENT and not line[:at].strip()
    for opener, kind in _ONE_LINE:
        if text.startswith(opener):
            yield at, kind
            return
    if _RULE.match(text):
        yield at, "rule"
    elif _HEADING.match(text):
        yield at, "heading"
    elif _ROW.match(text):
        yield at, "row"
    elif _MARKUP.match(text):
        yield at, "markup"
    elif item := _ITEM.match(text):
        yield from _sentences(line, at, "item", at + item.end())
    elif len(text) < 400 and _CODE.match(text) and (indented or not _wordy(text)):
        yield at, "code"
    else:
        yield from _sentences(line, at, "sentence")


def _wordy(text: str) -> bool:
    """Five words in a row make no code."""
    return re.search(r"(?:[A-Za-z',]+ ){4}[A-Za-z']+", text) is not None


def _sentences(line: str, at: int, kind: Kind, search_from: int | None = None) -> Iterator[tuple[int, Kind]]:
    yield at, kind
    begun = at
    end = len(line.rstrip())
    for mark in _END.finditer(line, at if search_from is None else search_from, end):
        after = mark.end()
        if (
            after >= end
            or line[after].islower()
            or (line[after] in ",;:)]–—-=+*/<>|%" and line[after : after + 2] != "**")
        ):
            continue
        head = line[max(begun, mark.start() - _LOOK_BACK) : mark.start() + 1]
        if line[mark.start()] == "." and _NO_END.search(head):
            continue
        if end - after <= _LOOK_BACK and not any(character.isalnum() for character in line[after:end]):
            break  # an emoji or two are the tail of their sentence
        yield after, kind
        begun = after


def segment(text: str) -> tuple[Span, ...]:
    """The spans of a whole text; none where it is empty."""
    segmenter = Segmenter()
    return (*segmenter.feed(text), *segmenter.finish())
