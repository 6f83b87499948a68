"""Classifies responses beside the meter's event loop, and joins what it finds with what the requests took.

A text is here from when the server tells it until it is classified. What can't be taken, because too much waits, is not classified and counted.
"""

import asyncio
import json
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Final, Protocol, TypeVar

from etameter.backlog import Backlog
from etameter.ledger import RequestRow
from etameter.readings import Found
from etameter.slack import fast
from etameter.slack.calls import cut
from etameter.slack.deep import fuse
from etameter.slack.labels import Label
from etameter.slack.reading import BUSY, FAILED, NO_TEXT, TOO_LONG, Classify, Reading, judged, read
from etameter.slack.segment import segment
from etameter.slack.tokenizer import Tokenizer, tokenizer_of
from etameter.slack.tokens import Counted, Spanned, by_length, by_offsets, by_pieces

logger = logging.getLogger("etameter")

OFF: Final = "classification_off"
"""Reason: `[meter] classify` is false."""
NOT_TOLD: Final = "text_not_told"
"""Reason: the server has not told the texts (yet): it runs without `ETAMETER_CLASSIFY=1`, or lost its meter meanwhile."""
NOT_READ: Final = "not_classified_yet"
WAITING_LIMIT_BYTES: Final = 8 << 20
REMEMBERED: Final = 65_536
UNTOLD_LIMIT: Final = 4096
"""So many settled requests wait for their texts."""
WAIT_S: Final = 0.015
"""A figure that is asked for at the end of its response waits so long for the classification: most of what the server grants."""

_Value = TypeVar("_Value")
_Pieces = list[tuple[int, int]]
"""Characters and tokens of what a stream brought."""


class Sink(Protocol):
    """Where joules and tokens of slack are counted."""

    def classified(self, row: RequestRow, reading: Reading) -> None: ...

    def unclassified(self, cause: str) -> None: ...


class Classifier:
    """Belongs to the meter's event loop; one thread of its own classifies."""

    def __init__(
        self,
        sink: Sink,
        find: Callable[[str], Reading | None],
        *,
        on: bool,
        classify: Classify = fast.classify,
        tokenizer: Callable[[], str | None] = lambda: None,
    ) -> None:
        """`find` looks a reading up in the ledger; `tokenizer` names that of the served model, a folder or a repository, if it is one."""
        self._sink = sink
        self._find = find
        self._tokenizer_named = tokenizer
        self._tokenizer: tuple[str | None, Future[Tokenizer | None] | None] = None, None
        self._classify = classify
        self._thread = ThreadPoolExecutor(1, "etameter-classifier") if on else None
        if self._thread is not None:
            self._thread.submit(classify, "Say hello.", "Hello.")  # the first text takes longest
        self._waiting: dict[str, asyncio.Future[Reading | None]] = {}
        self._waiting_bytes = 0
        self._found: OrderedDict[str, Reading | str] = OrderedDict()
        """Receipt id → what was found, or why nothing was."""
        self._settled: OrderedDict[str, list[RequestRow]] = OrderedDict()
        """Requests that were settled before they were classified."""
        self.backlog: Backlog[Found] = Backlog()
        """What was found, that the ledger doesn't have yet."""

    def told(self, receipt_id: str, message: Mapping[str, Any]) -> None:
        """The server says what a request asked, and what was answered."""
        if self._thread is None or receipt_id in self._waiting:
            return
        if receipt_id in self._found:
            if self._found[receipt_id] == NOT_TOLD:  # its requests were settled so long ago that they are forgotten
                self._note(receipt_id, BUSY)
            return
        prompts, responses = _texts(message.get("prompts")), _texts(message.get("responses"))
        if not responses:
            self._note(receipt_id, TOO_LONG if message.get("reason") == TOO_LONG else NO_TEXT)
            return
        size = sum(map(len, prompts)) + sum(map(len, responses)) + len(json.dumps(message.get("tools")))
        if self._waiting_bytes + size > WAITING_LIMIT_BYTES:
            self._note(receipt_id, BUSY)
            return
        self._waiting_bytes += size
        work = asyncio.get_running_loop().run_in_executor(
            self._thread,
            read,
            receipt_id,
            prompts,
            responses,
            _with_calls(self._classify, message, responses),
            self._counting(message, responses),
        )
        self._waiting[receipt_id] = work
        work.add_done_callback(lambda done: self._done(receipt_id, size, done))

    def ready(self, receipt_id: str) -> Awaitable[None] | None:
        """What to wait for, not for long, until a response is classified; None where there is nothing to wait for."""
        work = self._waiting.get(receipt_id)
        return None if work is None else _briefly(work)

    def of(self, receipt_id: str) -> Reading | str:
        """What was found in a response, or the reason why nothing is known."""
        found = self._found.get(receipt_id) or self._find(receipt_id)
        if found is not None:
            return found
        return OFF if self._thread is None else NOT_READ if receipt_id in self._waiting else NOT_TOLD

    def settled(self, rows: Iterable[RequestRow]) -> None:
        """These requests' energy is known for good: count what of it was slack, now or once it is found."""
        if self._thread is None:
            return
        for row in rows:
            receipt_id = row.record.receipt_id
            if receipt_id is None:
                continue
            found = self.of(receipt_id)
            if isinstance(found, Reading):
                self._join(row, found)
            elif found in {NOT_TOLD, NOT_READ}:
                self._await_text(receipt_id, row)

    def _await_text(self, receipt_id: str, row: RequestRow) -> None:
        """The one that has waited longest may be forgotten for it. Whose text is known already, or is told yet, is counted then."""
        self._settled.setdefault(receipt_id, []).append(row)
        if len(self._settled) > UNTOLD_LIMIT:
            forgotten, _ = self._settled.popitem(last=False)
            if forgotten in self._waiting:
                self._sink.unclassified(BUSY)
            else:
                _remember(self._found, forgotten, NOT_TOLD, REMEMBERED)

    async def judged(
        self, receipt_id: str, message: Mapping[str, Any], forwards: Mapping[int, Label], backwards: Mapping[int, Label]
    ) -> Reading | None:
        """What a judge's two labels of each span come to, by number of the span; `message` is what was told of the one choice of the response."""
        assert self._thread is not None
        responses = _texts(message.get("responses"))
        count = self._counting(message, responses)
        work = self._thread.submit(deep, receipt_id, responses[0], forwards, backwards, count)
        return await asyncio.wrap_future(work)

    def stop(self) -> None:
        """What waits is dropped."""
        if self._thread is not None:
            for work in self._waiting.values():
                work.cancel()
            _kill(self._tokenizer[1])
            self._forget_tokenizer(self._thread)
            self._thread.shutdown(wait=False)

    def _done(self, receipt_id: str, size: int, work: asyncio.Future[Reading | None]) -> None:
        del self._waiting[receipt_id]
        self._waiting_bytes -= size
        if work.cancelled():
            return
        failure = work.exception()
        if failure is not None:
            logger.warning("a response can't be classified: %s", type(failure).__name__)  # what it says may quote it
            self._note(receipt_id, FAILED)
            return
        self._note(receipt_id, work.result() or NO_TEXT)

    def _join(self, row: RequestRow, found: Reading) -> None:
        """Both are known: divide the joules by when they were spent, where that is known, too."""
        spent = by_time([row], found)
        if spent is not found:
            _remember(self._found, spent.receipt_id, spent, REMEMBERED)
            self.backlog.add(spent)
        self._sink.classified(row, replace(spent, parts=found.parts))  # where its spans are is told, and kept no longer

    def _counting(self, message: Mapping[str, Any], responses: Sequence[str]) -> "Counting":
        """With the tokenizer, which the thread reads before the first text of its model."""
        assert self._thread is not None
        named = self._tokenizer_named()
        if named != self._tokenizer[0]:
            self._forget_tokenizer(self._thread)
            self._tokenizer = named, None if named is None else self._thread.submit(tokenizer_of, named)
        return Counting(self._tokenizer[1], pieces_of(message.get("pieces"), responses))

    def _forget_tokenizer(self, thread: ThreadPoolExecutor) -> None:
        """In the thread that asks it, after what was asked before."""
        reading = self._tokenizer[1]
        if reading is not None:
            thread.submit(_close, reading)
        self._tokenizer = None, None

    def _note(self, receipt_id: str, found: Reading | str) -> None:
        _remember(self._found, receipt_id, found, REMEMBERED)
        rows = self._settled.pop(receipt_id, [])
        if isinstance(found, Reading):
            self.backlog.add(found)
            for row in rows:
                self._join(row, found)
        else:
            self._sink.unclassified(found)


def _with_calls(classify: Classify, message: Mapping[str, Any], responses: Sequence[str]) -> Classify:
    """Which knows the schemas of what the responses call, where the server tells them."""
    tools, calls = message.get("tools"), message.get("calls")
    if not isinstance(tools, dict) or not isinstance(calls, list) or len(calls) != len(responses):
        return classify
    schemas = {
        response: [tools[name] for name in names]
        for response, names in zip(responses, calls, strict=True)
        if isinstance(names, list) and all(isinstance(tools.get(str(name)), dict) for name in names)
    }
    return lambda prompt, response: cut(tuple(classify(prompt, response)), response, schemas.get(response, ()))


def by_time(rows: Sequence[RequestRow], found: Reading) -> Reading:
    """What was found with its joules divided by when they were spent, where the response is one request, settled, and that is known."""
    if len(rows) != 1 or not rows[0].energy.settled or rows[0].curve is None:
        return found
    return found.over(rows[0].curve, rows[0].record.output_tokens)


def deep(
    receipt_id: str, response: str, forwards: Mapping[int, Label], backwards: Mapping[int, Label], count: "Counting"
) -> Reading | None:
    """As `Classifier.judged`."""
    spans = fuse(segment(response), forwards, backwards)
    return judged(receipt_id, spans, count(0, response, spans))


class Counting:
    """Counts tokens of spans in the classifier's thread: by the tokenizer, else by what the stream brought, else by length."""

    def __init__(self, tokenizer: Future[Tokenizer | None] | None, pieces: Sequence[_Pieces]) -> None:
        self._tokenizer = tokenizer
        self._pieces = pieces

    def __call__(self, place: int, response: str, spans: Sequence[Spanned]) -> Counted:
        if self._tokenizer is not None and self._tokenizer.exception() is None:
            tokenizer = self._tokenizer.result()
            offsets = None if tokenizer is None else tokenizer.offsets(response)
            if offsets is not None:
                return by_offsets(spans, offsets)
        if self._pieces:
            return by_pieces(spans, self._pieces[place])
        return by_length(spans, len(response))


def _close(reading: Future[Tokenizer | None]) -> None:
    tokenizer = reading.result()
    if tokenizer is not None:
        tokenizer.close()


def _kill(reading: Future[Tokenizer | None] | None) -> None:
    """Were it asked just now and hung, its thread would wait for it, and the meter's end for the thread."""
    if reading is not None and reading.done() and reading.exception() is None and (tokenizer := reading.result()):
        tokenizer.kill()


async def _briefly(work: asyncio.Future[Reading | None]) -> None:
    await asyncio.wait((work,), timeout=WAIT_S)


def _remember(table: "OrderedDict[str, _Value]", receipt_id: str, value: _Value, most: int) -> None:
    table[receipt_id] = value
    if len(table) > most:
        table.popitem(last=False)


def _texts(told: object) -> list[str]:
    return [text for text in told if isinstance(text, str)] if isinstance(told, list) else []


def pieces_of(told: object, responses: Sequence[str]) -> list[_Pieces]:
    """Pieces of each choice; none at all where they aren't those of the responses."""
    if not isinstance(told, list) or len(told) != len(responses):
        return []
    found = []
    for flat, response in zip(told, responses, strict=True):
        if not isinstance(flat, list) or len(flat) % 2 or not all(type(each) is int and each >= 0 for each in flat):
            return []
        if sum(flat[::2]) != len(response) or not sum(flat[1::2]):
            return []
        found.append(list(zip(flat[::2], flat[1::2], strict=True)))
    return found
