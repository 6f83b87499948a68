"""When which audit may be made, and what it may cost: the meter's end of whoever makes them (`etameter audits`).

A keyed hash of its receipt id decides whether a response is to be judged. Its texts wait here, few of them and not for long, until the served
model has nothing else to do, or for another judge until it has. Fresh tasks are asked some times an hour, under the arms that traffic has.
Whoever audits has one job at a time, and one request of it in flight; it is told to pause, and gives that request up, as soon as there is other work.
"""

import hashlib
import math
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

from etameter.config import EtaSection
from etameter.slack.judge import LONGEST_CHARACTERS

AUDIT: Final = "audit"
"""The arm of what audits ask, which is never audited itself."""
IDLE_S: Final = 20.0
"""So long nobody may have asked anything. An experiment's rests, in which it measures idle power, are shorter."""
REST_S: Final = 2.0
"""Between two jobs, so that what the first took is known before the second."""
TASK_EVERY_S: Final = 900.0
WAITING_LIMIT: Final = 64
WAITING_LIMIT_BYTES: Final = 4 << 20
OLDEST_S: Final = 3600.0
"""Texts that have waited longer are dropped."""
MOST_ARMS: Final = 32
"""The latest that traffic had."""
ARM_S: Final = 86_400.0
"""An arm under which nobody has asked for so long is asked no tasks."""
TASK_ANSWERS: Final = 8
"""To each task under each arm: T* needs so many."""
ALONE: Final = 8.0
"""A request that has the board for itself is expected to take so many times the joules a token of the traffic, before that is known."""
_RULES_TOKENS: Final = 1200
_CHARACTERS_A_TOKEN: Final = 4
_REPLY_SHARE: Final = 0.3
"""Of an answer's characters: so many a judge's reply may have."""
_TASK_TOKENS: Final = 400

Send = Callable[[Mapping[str, object]], None]
Kind = Literal["deep", "task"]


@dataclass(frozen=True, slots=True)
class Sampled:
    """A response that is to be judged, with its texts as the server told them."""

    receipt_id: str
    lot: int
    since_s: float
    message: Mapping[str, Any]

    @property
    def prompt(self) -> str:
        return next(iter(self.message["prompts"]), "")

    @property
    def response(self) -> str:
        (response,) = self.message["responses"]
        assert isinstance(response, str)
        return response

    @property
    def characters(self) -> int:
        return len(self.prompt) + len(self.response)


@dataclass(frozen=True, slots=True)
class Job:
    """What is being done. `sampled` is None for a task."""

    number: int
    sampled: Sampled | None

    @property
    def kind(self) -> Kind:
        return "task" if self.sampled is None else "deep"


class Sink(Protocol):
    """What comes of jobs."""

    def came_back(self, job: Job, told: Mapping[str, Any]) -> None:
        """The result, as it was told: nothing of it is checked yet."""

    def dropped(self, cause: str) -> None:
        """A response that was to be judged never will be."""


class Auditing:
    """Belongs to the meter's event loop. `clock` gives seconds."""

    def __init__(
        self, settings: EtaSection, sink: Sink, *, on: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`on`: texts are told to this meter."""
        self._share = settings.share
        self._elsewhere = settings.deep not in {"off", "served"}
        self._on = on and settings.deep != "off"
        self._sink = sink
        self._clock = clock
        self._key = os.urandom(32)
        self._waiting: dict[str, Sampled] = {}
        self._own: OrderedDict[str, None] = OrderedDict()
        """Receipts of audits, whose texts are none to be judged."""
        self._arms: OrderedDict[str, float] = OrderedDict()
        """When somebody asked under each, the latest last."""
        self._send: Send | None = None
        self._job: Job | None = None
        self._paused = False
        self._paused_s = 0.0
        self._jobs = 0
        self._busy_s = self._free_s = clock()
        self._next_task_s = clock() + TASK_EVERY_S / 2
        self._longest_tokens = 0.0
        """That judging one of the responses sampled so far takes."""
        self._at_task_j = 0.0
        """What audits had taken when the last task was begun."""
        self._traffic_j = self._traffic_tokens = self._audit_j = self._audit_tokens = 0.0

    def opened(self, receipt_id: str, arm: str) -> None:
        """A request has come in."""
        if arm != AUDIT:
            self._arms[arm] = self._clock()
            self._arms.move_to_end(arm)
            if len(self._arms) > MOST_ARMS:
                self._arms.popitem(last=False)
            self._disturbed()
            return
        self._own[receipt_id] = None
        if len(self._own) > WAITING_LIMIT:
            self._own.popitem(last=False)

    def is_own(self, receipt_id: str) -> bool:
        """Whether it is an audit that asks."""
        return receipt_id in self._own

    def told(self, receipt_id: str, message: Mapping[str, Any]) -> None:
        """The texts of a response. Those of several choices, and those too long to be judged, are left alone, and all while nobody is there to ask."""
        if not self._on or self._send is None or self.is_own(receipt_id) or not _is_one(message):
            return
        digest = hashlib.blake2b(receipt_id.encode(), key=self._key, digest_size=8).digest()
        sampled = Sampled(receipt_id, int.from_bytes(digest), self._clock(), message)
        if sampled.lot >= self._share * 2**64 or sampled.characters > LONGEST_CHARACTERS:
            return
        self._waiting[receipt_id] = sampled
        self._longest_tokens = max(self._longest_tokens, _judge_tokens(sampled))
        while len(self._waiting) > WAITING_LIMIT or sum(map(_characters, self._waiting.values())) > WAITING_LIMIT_BYTES:
            # Who stays is drawn by lot, or those would be judged that came just before the server was idle.
            self._drop(max(self._waiting.values(), key=lambda each: each.lot), "full")

    def spent(self, arm: str, joules: float, tokens: float) -> None:
        """What a settled interval charged an arm, and for how many tokens of prompt and output."""
        if arm == AUDIT:
            self._audit_j += joules
            self._audit_tokens += tokens
        else:
            self._traffic_j += joules
            self._traffic_tokens += tokens

    def tick(self, running: int) -> None:
        """Some times a second: `running` requests have not ended in the engines."""
        own = self._job is not None and not self._paused and self._uses_server(self._job.kind)
        if running > int(own):
            self._disturbed()
        now_s = self._clock()
        for old in [each for each in self._waiting.values() if now_s - each.since_s > OLDEST_S]:
            self._drop(old, "old")
        if self._send is None:
            return
        if self._paused:
            if self._is_idle():
                self._paused = False
                self._send({"type": "go"})
            elif now_s - self._paused_s > OLDEST_S:
                self._paused_s = math.inf
                self._send({"type": "drop"})
        elif self._job is None and now_s >= self._free_s:
            self._begin()

    def take(self, message: Mapping[str, Any], send: Send) -> None:
        """Whoever audits says that it is there, or what came of its job. The last that came is given the jobs."""
        if send is not self._send:
            self.gone(self._send)
            self._send = send
        job = self._job
        if job is not None and message.get("job") == job.number:
            self._end()
            self._sink.came_back(job, message)

    def gone(self, send: Send | None) -> None:
        """A connection has ended. What it was doing is not done again."""
        if send is not None and send is self._send:
            self._send = None
            if self._job is not None:
                job = self._job
                self._end()
                self._sink.came_back(job, {})

    def _begin(self) -> None:
        """The next job, if there is one that may be done."""
        assert self._send is not None
        now_s = self._clock()
        while self._arms and next(iter(self._arms.values())) < now_s - ARM_S:
            self._arms.popitem(last=False)
        is_tasks_turn = bool(self._on and self._arms and now_s >= self._next_task_s and self._has_judged_enough())
        if is_tasks_turn and self._may("task", self._task_tokens()):
            self._next_task_s = now_s + TASK_EVERY_S
            self._at_task_j = self._audit_j
            self._job = Job(self._jobs, None)
            seed = int.from_bytes(os.urandom(6))
            self._send({"type": "task", "job": self._jobs, "seed": seed, "arms": list(self._arms)})
        elif self._waiting and (self._elsewhere or not is_tasks_turn):
            # All wait until the longest could be paid, or short answers would be judged more often than long ones.
            if not self._may("deep", self._longest_tokens):
                return
            sampled = min(self._waiting.values(), key=lambda each: each.lot)
            del self._waiting[sampled.receipt_id]
            self._job = Job(self._jobs, sampled)
            texts = {"prompt": sampled.prompt, "response": sampled.response}
            self._send({"type": "judge", "job": self._jobs, **texts})
        else:
            return
        self._jobs += 1

    def _may(self, kind: Kind, tokens: float) -> bool:
        """Whether the server has nothing else to do, and the job leaves what audits take within their share."""
        if not self._uses_server(kind):
            return True
        if not self._is_idle() or not self._traffic_tokens:
            return False
        return self._audit_j + tokens * self._a_token_j() <= self._share * self._traffic_j

    def _has_judged_enough(self) -> bool:
        """Whether a task that is due gets what may be spent next: judging has taken as much as a task since the last one, or has nothing to do."""
        if not self._waiting or self._elsewhere:
            return True
        return self._audit_j - self._at_task_j >= 2 * self._task_tokens() * self._a_token_j()

    def _a_token_j(self) -> float:
        """What a token of an audit is expected to take; infinite while nothing is known of any."""
        if self._audit_tokens:
            return self._audit_j / self._audit_tokens
        return ALONE * self._traffic_j / self._traffic_tokens if self._traffic_tokens else math.inf

    def _uses_server(self, kind: Kind) -> bool:
        return kind == "task" or not self._elsewhere

    def _task_tokens(self) -> float:
        judged = 2.0 * (_RULES_TOKENS + _TASK_TOKENS)
        return len(self._arms) * (TASK_ANSWERS * _TASK_TOKENS + judged)

    def _is_idle(self) -> bool:
        return self._clock() - self._busy_s >= IDLE_S

    def _disturbed(self) -> None:
        self._busy_s = self._clock()
        if self._job is not None and not self._paused and self._uses_server(self._job.kind):
            assert self._send is not None
            self._paused, self._paused_s = True, self._busy_s
            self._send({"type": "pause"})

    def _end(self) -> None:
        self._job, self._paused = None, False
        self._free_s = self._clock() + REST_S

    def _drop(self, sampled: Sampled, cause: str) -> None:
        del self._waiting[sampled.receipt_id]
        self._sink.dropped(cause)


def _is_one(message: Mapping[str, Any]) -> bool:
    prompts, responses = message.get("prompts"), message.get("responses")
    texts = [each for told in (prompts, responses) if isinstance(told, list) for each in told]
    return (
        isinstance(prompts, list)
        and isinstance(responses, list)
        and len(prompts) < 2
        and len(responses) == 1
        and all(isinstance(each, str) for each in texts)
        and bool(responses[0].strip())
    )


def _characters(sampled: Sampled) -> int:
    return sampled.characters


def _judge_tokens(sampled: Sampled) -> float:
    """About what judging takes, which is asked twice."""
    reply = _REPLY_SHARE * len(sampled.response)
    return 2.0 * (_RULES_TOKENS + (sampled.characters + reply) / _CHARACTERS_A_TOKEN)
