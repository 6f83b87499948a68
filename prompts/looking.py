"""Looks at cases with a server's help, one after the other. What is found is told as it comes: a request that fails costs no other case its result."""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol, TypeVar

from etameter.audit_key import of_server
from etameter.auditing import AUDIT
from etameter.errors import EngineError, EtameterError

from .endpoint import OF_ONE_REQUEST, Endpoint, Failed, Fault, connect


class Identified(Protocol):
    """What has a name in its file."""

    @property
    def id(self) -> object: ...


Case = TypeVar("Case", bound=Identified)
Found = TypeVar("Found")
NOT_ASKED: Final = "not_asked"


@dataclass(frozen=True, slots=True)
class Missed:
    """A case that is not measured."""

    id: object
    reason: Fault | Literal["server_unusable", "not_asked"]
    """`not_asked`: of one before it something failed that would have failed of all."""
    error: str


Tell = Callable[[Found | Missed], None]


async def look(
    cases: Sequence[Case],
    url: str,
    model: str | None,
    look_at: Callable[[Endpoint, str, Case], Awaitable[Found]],
    tell: Tell[Found],
) -> None:
    """Tell what is found of each case by asking the server at `url`, under the arm `audit`, or that nothing is. Raises EngineError where it names no model."""
    async with connect(url.rstrip("/").removesuffix("/v1"), run=AUDIT, audit_key=of_server(url)) as endpoint:
        name = model or (await endpoint.models())[0]
        ended: EngineError | None = None
        for case in cases:
            if ended is not None:
                tell(Missed(case.id, NOT_ASKED, ended.message))
                continue
            try:
                tell(await look_at(endpoint, name, case))
            except EngineError as error:
                fault = error.fault if isinstance(error, Failed) else "server_unusable"
                ended = None if fault in OF_ONE_REQUEST else error
                tell(Missed(case.id, fault, error.message))


def show(
    looking: Callable[[Tell[Found]], Coroutine[object, object, None]],
    as_row: Callable[[Found], dict[str, object]],
    summary: Callable[[list[Found | Missed]], str],
    *,
    as_json: bool,
) -> int:
    """Print what is told, a line each as it comes or a summary at the end, however that comes; the exit code, which says whether a case was missed."""
    told: list[Found | Missed] = []

    def tell(each: Found | Missed) -> None:
        told.append(each)
        if isinstance(each, Missed) and each.reason != NOT_ASKED:
            sys.stderr.write(f"etameter: {json.dumps(each.id)} is not measured: {each.error}\n")
        if as_json:
            sys.stdout.write(json.dumps(_row(each) if isinstance(each, Missed) else as_row(each)) + "\n")
            sys.stdout.flush()

    try:
        asyncio.run(looking(tell))
    finally:
        if told and not as_json:
            sys.stdout.write(summary(told) + "\n")
    return EtameterError.exit_code if any(isinstance(each, Missed) for each in told) else 0


def _row(missed: Missed) -> dict[str, object]:
    return {"id": missed.id, "reason": missed.reason, "error": missed.error}
