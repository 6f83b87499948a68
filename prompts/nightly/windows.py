"""Cuts what was asked in a stage by time: which tokens, first tokens and ends of requests fall into which window."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from etameter.prompts.endpoint import Fault


@dataclass(frozen=True, slots=True)
class Reply:
    """What became of one request. Instants are of CLOCK_MONOTONIC."""

    start_ns: int
    end_ns: int
    token_ns: tuple[int, ...] = ()
    """When each output token came; those of one chunk come at once."""
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    finish_reason: str | None = None
    failure: Fault | None = None
    text: str = ""
    reasoning: bool = False
    task: str | None = None
    """None where nothing is checked."""
    correct: bool | None = None
    energy: Mapping[str, Any] | None = None
    receipt_id: str | None = None
    eta_lenient_at_most: float | None = None
    eta_deletion: float | None = None
    lexical_slack: float | None = None

    @property
    def output_tokens(self) -> int:
        return len(self.token_ns)

    @property
    def ttft_s(self) -> float | None:
        return (self.token_ns[0] - self.start_ns) * 1e-9 if self.token_ns else None

    @property
    def itl_s(self) -> float | None:
        """Mean time between its tokens."""
        if self.output_tokens < 2:
            return None
        return (self.token_ns[-1] - self.token_ns[0]) * 1e-9 / (self.output_tokens - 1)


@dataclass(slots=True)
class Window:
    """A span of time, the counters' joules in it, and what came in it."""

    start_ns: int
    end_ns: int
    energy_j: float | None = None
    output_tokens: int = 0
    prompt_tokens: int = 0
    """Of the requests whose first token came."""
    ended: list[Reply] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return (self.end_ns - self.start_ns) * 1e-9

    @property
    def failures(self) -> int:
        return sum(reply.failure is not None for reply in self.ended)

    @property
    def answered(self) -> list[Reply]:
        return [reply for reply in self.ended if reply.failure is None]

    @property
    def correct(self) -> int | None:
        """None where nothing is checked."""
        checked = [reply for reply in self.ended if reply.task is not None]
        return sum(reply.correct is True for reply in checked) if checked else None


NONE: Final = -1


def cut(replies: Sequence[Reply], spans_ns: Sequence[tuple[int, int]]) -> list[Window]:
    """A window for each span; spans are in order and don't overlap. What falls between them is in none. An instant at the edge is in the earlier span."""
    windows = [Window(start_ns, end_ns) for start_ns, end_ns in spans_ns]
    starts_ns = [start_ns for start_ns, _ in spans_ns]

    def place(t_ns: int) -> int:
        number = bisect_right(starts_ns, t_ns - 1) - 1
        return number if number >= 0 and t_ns <= spans_ns[number][1] else NONE

    for reply in replies:
        for t_ns in reply.token_ns:
            if (number := place(t_ns)) != NONE:
                windows[number].output_tokens += 1
        if reply.token_ns and reply.prompt_tokens is not None and (number := place(reply.token_ns[0])) != NONE:
            windows[number].prompt_tokens += reply.prompt_tokens
        if (number := place(reply.end_ns)) != NONE:
            windows[number].ended.append(reply)
    return windows
