"""Ring records become steps and what is known of their requests.

Steps of one engine never overlap: with asynchronous scheduling step k+1 is dispatched while k runs, so a step begins no earlier than the
one before it ended (`vllm` reports k done before k+1).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from etameter.records import Scheduled, Step, receipt_id_of
from etameter.serving.ring import KEYFRAME_STEPS, Dispatch, Done, Finish, Introduction, Lost, Record, RingHeader, Row

_SIBLING = re.compile(r"^\d+_")  # vLLM names the n samples of one request 0_ID, 1_ID, …


@dataclass(slots=True)
class RequestProgress:
    """What the steps have told of a request so far. The samples of one request (n > 1) are one request."""

    number: int
    """Of its first sample."""
    request_id: str
    receipt_id: str | None
    prompt_tokens: int
    arrival_ns: int
    cached_tokens: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    """Output tokens that decode steps yielded, accepted drafts among them; the last prefill step yields one besides."""
    output_tokens: int = 0
    """Known when it finishes."""
    last_done_ns: int = 0
    """End of the last step it took part in; an asynchronous scheduler runs one more after it has finished."""
    first_token_ns: int | None = None
    finished_ns: int | None = None
    finish_reason: str | None = None
    samples: set[int] = field(default_factory=set)
    open_samples: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Missing:
    """From `start_ns` to `end_ns` the engine may have run steps that nobody recorded."""

    start_ns: int
    end_ns: int


class StepAssembler:
    """Follows one engine's ring. `requests` holds every request seen until `forget` is called for it."""

    def __init__(self, header: RingHeader) -> None:
        self.header = header
        self.requests: dict[str, RequestProgress] = {}
        self.steps: list[Step] = []
        """Completed steps in order of time; the owner takes them out."""
        self.missing: list[Missing] = []
        self._request_of: dict[int, str] = {}
        self._in_flight: dict[int, Dispatch] = {}
        self._last_done_ns = header.created_ns
        self._last_seen_ns = header.created_ns
        self._lost_since_ns: int | None = None
        self._unsure: set[int] = set()
        self._dispatches_since_lost = 0

    @property
    def oldest_in_flight_ns(self) -> int | None:
        """When the oldest step that has not ended was dispatched."""
        return min((dispatch.t_ns for dispatch in self._in_flight.values()), default=None)

    def feed(self, records: Iterable[Record]) -> None:
        for record in records:
            if isinstance(record, Lost):
                self._unsure = set(self._request_of)
                self._dispatches_since_lost = 0
                self._lost_since_ns = self._last_seen_ns if self._lost_since_ns is None else self._lost_since_ns
                self._in_flight.clear()
                continue
            if self._lost_since_ns is not None:
                self.missing.append(Missing(self._lost_since_ns, record.t_ns))
                self._lost_since_ns = None
                self._last_done_ns = record.t_ns
            self._last_seen_ns = record.t_ns
            match record:
                case Dispatch():
                    self._introduce(record.introductions)
                    self._in_flight[record.step_id] = record
                    if self._unsure:
                        self._seek_unsure(record)
                case Done():
                    self._complete(record)
                case Finish():
                    self._finish(record)

    def abandon(self, now_ns: int) -> None:
        """The engine is gone: what it had in flight will never be reported, and its requests are over."""
        oldest_ns = self.oldest_in_flight_ns
        if oldest_ns is not None:
            self.missing.append(Missing(oldest_ns, now_ns))
        self._in_flight.clear()
        for request in self.requests.values():
            if request.finished_ns is None:
                request.finished_ns, request.finish_reason = now_ns, "engine_lost"

    def _seek_unsure(self, dispatch: Dispatch) -> None:
        """The end of a request may be among lost records: one that no step has named since then is over."""
        self._unsure.difference_update(row[0] for row in dispatch.rows)
        self._dispatches_since_lost += 1
        if self._dispatches_since_lost < 2 * KEYFRAME_STEPS:
            return
        for number in self._unsure & self._request_of.keys():
            request = self.requests[self._request_of[number]]
            if number in request.open_samples:
                self._finish(Finish(number, dispatch.t_ns, 0, "records_lost"))
        self._unsure.clear()

    def forget(self, request_id: str) -> None:
        """Nothing more is expected of a request."""
        for number in self.requests.pop(request_id).samples:
            del self._request_of[number]

    def _introduce(self, introductions: Iterable[Introduction]) -> None:
        for number, engine_request_id, prompt_tokens, arrival_ns in introductions:
            if number in self._request_of:
                continue
            request_id = _SIBLING.sub("", engine_request_id)
            self._request_of[number] = request_id
            request = self.requests.setdefault(
                request_id,
                RequestProgress(number, request_id, receipt_id_of(engine_request_id), prompt_tokens, arrival_ns),
            )
            request.samples.add(number)
            request.open_samples.add(number)
            request.finished_ns = request.finish_reason = None

    def _complete(self, done: Done) -> None:
        dispatch = self._in_flight.pop(done.step_id, None)
        if dispatch is None or not dispatch.rows:  # its dispatch was lost, or nothing ran
            return
        accepted = dict(done.accepted)
        start_ns = max(dispatch.t_ns, self._last_done_ns)
        end_ns = max(done.t_ns, start_ns)
        scheduled = tuple(self._scheduled(row, accepted.get(row[0], 0), end_ns) for row in dispatch.rows)
        self.steps.append(Step(done.step_id, self.header.engine, start_ns, end_ns, dispatch.padded_tokens, scheduled))
        self._last_done_ns = end_ns

    def _scheduled(self, row: Row, accepted_tokens: int, done_ns: int) -> Scheduled:
        number, prefill, decode, cached, recomputed, draft, encoder, context, lora = row
        if number not in self._request_of:  # its introduction was lost: it is metered under its number
            self._introduce([Introduction(number, f"{self.header.engine}#{number}", context + prefill, done_ns)])
        request = self.requests[self._request_of[number]]
        request.cached_tokens += cached
        request.prefill_tokens += prefill
        request.decode_tokens += decode + accepted_tokens
        request.last_done_ns = done_ns
        if request.first_token_ns is None and (decode or context + prefill >= request.prompt_tokens):
            request.first_token_ns = done_ns
        return Scheduled(
            request.request_id,
            prefill,
            decode,
            cached,
            recomputed,
            draft,
            accepted_tokens,
            encoder,
            context,
            lora,
        )

    def _finish(self, finish: Finish) -> None:
        request_id = self._request_of.get(finish.number)
        if request_id is None:  # its introduction was lost, and no step since has named it
            return
        request = self.requests[request_id]
        request.open_samples.discard(finish.number)
        request.output_tokens += finish.output_tokens
        if not request.open_samples:
            request.finished_ns, request.finish_reason = finish.t_ns, finish.reason
