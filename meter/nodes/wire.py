"""What a sampler and a meter on two machines say to each other: lines of JSON. Pure.

    sampler → meter   {"etameter": "sampler", "version": 1, "challenge": …}
    meter → sampler   {"challenge": …, "proof": …}
    sampler → meter   {"proof": …, "boot_id": …, "counters": [{"gpu_uuid": …, …}, …]}      or  {"refused": "why"}
    meter → sampler   {"ping": number}                                                 four times a second
    sampler → meter   {"pong": number, "received_ns": …, "sent_ns": …}
                      ["edge", gpu_uuid, t_ns, half_width_ns, energy_mj, power_w, deviation_ns, unread_ns] and other findings
                      {"throttled": {…}, "missed_edges": {…}, "awaited": […]}           once a second

Either side proves that it knows the token by a keyed hash of both challenges, so that the token itself never travels. Instants are of the sampler's
own CLOCK_MONOTONIC.
"""

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any, Literal

from etameter.counters import Kind, Scope
from etameter.records import SENSED, SENSED_AS, Conditions, Finding, Source

VERSION = 1
LINE_LIMIT_BYTES = 1 << 20
ASKED_LIMIT_BYTES = 4096
"""A meter says no more in a line: who has come may not have shown the token yet."""

Role = Literal["meter", "sampler"]


@dataclass(frozen=True, slots=True)
class RemoteCounter:
    """A counter of another machine, as its sampler describes it."""

    gpu_uuid: str
    parts: tuple[str, ...]
    board_name: str
    scope: Scope
    kind: Kind
    source: Source
    limit_w: float | None

    def power_limit_w(self) -> float | None:
        """When the sampler was last asked."""
        return self.limit_w


def proof(token: str, role: Role, challenges: tuple[str, str]) -> str:
    """What only who knows the token can say, as `role`, of the challenges of the sampler and the meter."""
    return hmac.new(token.encode(), _bytes("|".join([role, *challenges])), hashlib.sha256).hexdigest()


def is_proof(told: object, token: str, role: Role, challenges: tuple[str, str]) -> bool:
    return isinstance(told, str) and hmac.compare_digest(_bytes(told), _bytes(proof(token, role, challenges)))


def _bytes(text: str) -> bytes:
    """Of any text that JSON can hold, halves of characters too."""
    return text.encode(errors="surrogatepass")


def line(message: Mapping[str, Any] | Finding | Conditions) -> bytes:
    """A message as it travels."""
    told = message if isinstance(message, Mapping) else [SENSED_AS[type(message)], *astuple(message)]
    return json.dumps(told, separators=(",", ":")).encode() + b"\n"


def message_of(text: bytes) -> Mapping[str, Any] | Finding | Conditions:
    """Raises ValueError for what no `line` is."""
    try:
        told = json.loads(text)
    except RecursionError as error:
        raise ValueError(f"{text[:80]!r} is too deep for a message") from error
    if isinstance(told, dict):
        return told
    try:
        tag, *values = told
        return SENSED[tag](*(tuple(value) if isinstance(value, list) else value for value in values))
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{text[:80]!r} is no message of a sampler") from error


def object_of(text: bytes) -> Mapping[str, Any]:
    """Raises ValueError for any other message."""
    told = message_of(text)
    if isinstance(told, dict):
        return told
    raise ValueError(f"{text[:80]!r} is not what is awaited here")


def counter_of(told: Mapping[str, Any]) -> RemoteCounter:
    """Raises ValueError where it describes none."""
    try:
        return RemoteCounter(**{**told, "parts": tuple(told["parts"])})
    except (TypeError, KeyError) as error:
        raise ValueError(f"{told!r} describes no counter") from error
