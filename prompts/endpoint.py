"""An OpenAI-compatible server, as one who asks it and wants to know what each answer cost."""

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, get_args

import aiohttp

from etameter import config
from etameter.audit_key import HEADER as AUDIT_HEADER
from etameter.errors import EngineError
from etameter.export.receipts import NOT_MEASURED
from etameter.records import Source

ARM_HEADER = "X-Etameter-Arm"
BRAKE_HEADER = "X-Etameter-Brake"
"""`on` or `off` in a request asks for the slack brake, or for none whatever the arm; in a response it says that it was on."""
DETECTORS_HEADER = "X-Etameter-Brake-Detectors"
"""In a response with the slack brake on: which its detectors were."""
RUN_HEADER = "X-Etameter-Run"
"""Says that requests belong to an experiment, so that the same one sent again is no user's retry."""
UNCONSTRAINED = "unconstrained"
"""The arm of what is asked only to see that the server answers."""
NOT_METERED = "not_metered"
"""Why there is no energy where a server says nothing of it."""

_REQUEST_S = 900.0
_KEPT_ALIVE_S = 2.0
"""Servers close connections that idle, uvicorn after 5 s: a question sent down one that just closes is lost, and can't safely be sent again."""
_POLL_S = 0.2
_SAID = 300


_STREAMED = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}

Fault = Literal["timeout", "http_429", "http_5xx", "http_4xx", "refused", "malformed", "server_gone"]
OF_ONE_REQUEST: frozenset[Fault] = frozenset({"refused", "malformed", "http_5xx"})
"""Faults that leave one request without an answer. What else goes wrong goes wrong with all that follow."""


class Failed(EngineError):
    """A request got no answer. `fault` is from a closed set."""

    def __init__(self, fault: Fault, message: str, remedy: str) -> None:
        super().__init__(message, remedy)
        self.fault = fault


class Refused(Failed):
    """The server refuses a request by what is in it, such as more tokens than fit into its context."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One completion, what it took, and what it cost."""

    text: str
    reasoning: str
    """What the server gives apart from the text as its reasoning; its tokens are among the output tokens."""
    prompt_tokens: int
    output_tokens: int
    finish_reason: str
    seconds: float
    energy: Mapping[str, Any] | None
    energy_reason: str | None
    """Why `energy` is None."""
    receipt_id: str | None
    cached_tokens: int | None = None
    """Of the prompt, found in the prefix cache; None where the server doesn't say."""
    braked: str | None = None
    """Why the slack brake ended it, if it did."""
    detectors: str | None = None
    """Of the brake, if it was on."""


class Endpoint:
    """A server under an address like http://HOST:PORT. Made by `connect`."""

    def __init__(self, session: aiohttp.ClientSession, url: str, receipts_url: str | None = None) -> None:
        """`receipts_url` is where `/energy/{receipt_id}` is answered; by default by the server itself."""
        self._session = session
        self.url = url.rstrip("/")
        self._receipts_url = (receipts_url or url).rstrip("/")
        self._receipt_token = config.load().meter.receipt_token

    def at(self, url: str) -> Self:
        """Another server, over the same session."""
        return type(self)(self._session, url)

    async def models(self) -> tuple[str, ...]:
        """Names of what is served: one or more.

        Raises:
            EngineError: it does not say.
        """
        async with self._session.get(f"{self.url}/v1/models") as response:
            if response.status != 200:
                raise EngineError(f"{self.url}/v1/models answers {response.status}", "name the address of a server")
            told = await response.json(content_type=None)
        try:
            return (str(told["data"][0]["id"]), *(str(model["id"]) for model in told["data"][1:]))
        except (TypeError, LookupError) as error:
            raise EngineError(f"{self.url}/v1/models names no model", "name the address of a server") from error

    async def about(self, model: str) -> dict[str, Any]:
        """What the server says of itself: its version, and of a model what it was loaded from and how long its context is.

        What it doesn't say isn't there. Raises aiohttp's errors where it doesn't answer.
        """
        told: dict[str, Any] = {}
        for path in ("version", "v1/models"):
            async with self._session.get(f"{self.url}/{path}") as response:
                said = await response.json(content_type=None) if response.status == 200 else {}
            if isinstance(said, dict):
                told |= {"version": said["version"]} if "version" in said else {}
                about = [each for each in said.get("data", ()) if each.get("id") == model]
                told |= {key: about[0][key] for key in ("root", "max_model_len") if about and key in about[0]}
        return told

    async def greet(self, model: str) -> Answer:
        """One request that is not reported: the first one of a fresh server pays for much that no other does.

        Raises:
            EngineError: as `chat`.
        """
        hello = {"model": model, "messages": [{"role": "user", "content": "Say hello."}]}
        return await self.chat({**hello, "max_tokens": 16, "temperature": 0.0}, UNCONSTRAINED)

    async def chat(self, body: Mapping[str, Any], arm: str) -> Answer:
        """Sends a chat completion, not streamed, under the name of an arm.

        Raises:
            Refused: the server finds fault with the request.
            Failed: the server fails, goes away or takes too long, or its answer is no chat completion.
        """
        began_s = time.monotonic()
        with self._failing(began_s):
            async with self._session.post(
                f"{self.url}/v1/chat/completions", json=dict(body), headers={ARM_HEADER: arm}
            ) as response:
                await _refuse_failure(response)
                told = await response.json(content_type=None)
        return self._read(lambda: told, began_s)

    async def chat_streamed(self, body: Mapping[str, Any], arm: str, *, braked: bool) -> Answer:
        """As `chat`, from a stream; `braked`: one that the server is to end where nothing but slack would follow.

        Raises:
            EngineError: as `chat`, or the server has no brake.
        """
        began_s = time.monotonic()
        headers = {ARM_HEADER: arm, BRAKE_HEADER: "on" if braked else "off"}
        chunks: list[Any] = []
        detectors = None
        with self._failing(began_s):
            async with self._session.post(
                f"{self.url}/v1/chat/completions", json={**body, **_STREAMED}, headers=headers
            ) as response:
                await _refuse_failure(response)
                if braked and response.headers.get(BRAKE_HEADER) != "on":
                    raise EngineError(f"{self.url} has no slack brake", "serve with this version of etameter")
                detectors = response.headers.get(DETECTORS_HEADER)
                chunks += [
                    json.loads(line.removeprefix(b"data: "))
                    async for line in response.content
                    if line.startswith(b"data: {")
                ]
        return replace(self._read(lambda: _joined(chunks), began_s), detectors=detectors)

    @contextmanager
    def _failing(self, began_s: float) -> Iterator[None]:
        """Raises Failed for what a server does wrong meanwhile."""
        try:
            yield
        except TimeoutError as error:
            seconds = time.monotonic() - began_s
            raise Failed("timeout", f"the server does not answer in {seconds:.0f} s", "ask for less") from error
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError) as error:
            raise Failed("server_gone", *_away(error)) from error
        except aiohttp.ClientResponseError as error:
            raise Failed("malformed", f"an answer of {self.url} is no HTTP ({error.status})", "see its log") from error
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Failed("malformed", *_no_json(error)) from error

    def _read(self, told: Callable[[], dict[str, Any]], began_s: float) -> Answer:
        try:
            return _answer(told(), time.monotonic() - began_s)
        except (TypeError, LookupError, AttributeError, ArithmeticError, ValueError) as error:
            raise Failed(
                "malformed",
                f"an answer of {self.url} is no chat completion with usage ({type(error).__name__}: {error})",
                "name the address of an OpenAI-compatible server",
            ) from error

    async def chunks(self, body: Mapping[str, Any], arm: str) -> AsyncIterator[dict[str, Any]]:
        """Sends a chat completion, and gives its chunks as they come: each with the usage so far where the server tells it, the last with the energy.

        Raises:
            Refused: the server finds fault with the request.
            EngineError: the server fails.
        """
        async with self._session.post(
            f"{self.url}/v1/chat/completions", json={**body, **_STREAMED}, headers={ARM_HEADER: arm}
        ) as response:
            await _refuse_failure(response)
            async for line in response.content:
                if line.startswith(b"data: {"):
                    yield json.loads(line.removeprefix(b"data: "))

    async def settled(self, receipt_id: str, deadline_s: float) -> tuple[Mapping[str, Any] | None, str | None]:
        """The energy of a receipt once it is settled, or as it is at the deadline (`time.monotonic`); why there is none, else.

        Nobody waits for a figure that will never be: of what ran while its counter was lost.

        Raises:
            ValueError: what is told can't be an energy.
            EngineError: receipts are only for who bears a token, and the configuration has another or none.
        """
        while True:
            told = await receipt(self._session, self._receipts_url, receipt_id, self._receipt_token)
            told = told if isinstance(told, dict) else {}
            energy = energy_in(told)
            reason = told.get("energy_reason") if energy is None else None
            is_final = reason == NOT_MEASURED or (energy is not None and bool(energy.get("settled")))
            if is_final or time.monotonic() >= deadline_s:
                return energy, reason
            await asyncio.sleep(_POLL_S)


@asynccontextmanager
async def connect(
    url: str,
    receipts_url: str | None = None,
    api_key: str | None = None,
    *,
    run: str | None = None,
    audit_key: str | None = None,
    timeout_s: float = _REQUEST_S,
) -> AsyncIterator[Endpoint]:
    """An endpoint for as long as the block runs. `run` names the experiment that its requests belong to; with `audit_key` they may be under the arm `audit`.

    Raises:
        EngineError: in the block, a server did not answer, or not in JSON.
    """
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    headers |= {} if run is None else {RUN_HEADER: run}
    headers |= {} if audit_key is None else {AUDIT_HEADER: audit_key}
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEPT_ALIVE_S)
    try:
        async with aiohttp.ClientSession(timeout=timeout, connector=connector, headers=headers) as session:
            yield Endpoint(session, url, receipts_url)
    except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError, UnicodeError) as error:
        raise EngineError(f"{error} is no address", "write it as http://HOST:PORT") from error
    except (aiohttp.ClientError, TimeoutError) as error:
        raise EngineError(*_away(error)) from error
    except json.JSONDecodeError as error:
        raise EngineError(*_no_json(error)) from error


def _away(error: Exception) -> tuple[str, str]:
    return f"the server does not answer ({str(error) or type(error).__name__})", "see that it runs, and its log"


def _no_json(error: ValueError | RecursionError) -> tuple[str, str]:
    return f"the server's answer is no JSON ({error})", "name the address of a server"


async def probe(url: str) -> tuple[str, bool]:
    """The first model that a running server serves, which is warmed up by this, and whether its answers tell of energy.

    Raises:
        EngineError: no such server answers at `url`.
    """
    async with connect(url) as endpoint:
        model, *_ = await endpoint.models()
        return model, (await endpoint.greet(model)).energy_reason != NOT_METERED


async def receipt(session: aiohttp.ClientSession, url: str, receipt_id: str, token: str | None) -> Any:
    """What is told of a receipt at `url`, to who bears `token`.

    Raises:
        EngineError: it is not for who bears that.
    """
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    async with session.get(f"{url}/energy/{receipt_id}", headers=headers) as response:
        if response.status == 401:
            raise EngineError(
                f"the receipts of {url} are only for who bears their token",
                "set ETAMETER_METER__RECEIPT_TOKEN to the meter's [meter] receipt_token",
            )
        return await response.json(content_type=None)


async def _refuse_failure(response: aiohttp.ClientResponse) -> None:
    if response.status != 200:
        said = " ".join((await response.text(errors="replace")).split())[:_SAID]
        faults: dict[int, Fault] = {400: "refused", 413: "refused", 422: "refused", 429: "http_429"}
        fault = faults.get(response.status, "http_5xx" if response.status >= 500 else "http_4xx")
        message = f"the server refuses a request ({response.status}: {said})"
        raise (Refused if fault == "refused" else Failed)(fault, message, "mend what it says")


def energy_in(told: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What an answer, a last chunk or a receipt says of energy. Raises ValueError where that can't be one."""
    energy = told.get("energy")
    if energy is None:
        return None
    if not isinstance(energy, dict) or energy.get("source") not in get_args(Source):
        raise ValueError("its energy has no source")
    for name, value in energy.items():
        if name.endswith("_joules") and not (value is None or (_is_number(value) and math.isfinite(value))):
            raise ValueError(f"its {name} is {value!r}")
    if not isinstance(energy.get("receipt_id", ""), str):
        raise ValueError("its receipt_id is no text")  # noqa: TRY004 - of a server's answer, not of a call
    return energy


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _tokens(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} tokens")
    return value


def _words(value: object) -> str:
    """Text; halves of characters, which no file can hold, are replaced."""
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} in place of text")
    return value.encode("utf-8", "replace").decode("utf-8")


def _joined(chunks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What an answer in one piece would say."""
    told: dict[str, Any] = {}
    message: dict[str, str] = {}
    finish_reason = None
    for chunk in chunks:
        told |= {
            name: value for name, value in chunk.items() if name.startswith("energy") or (name == "usage" and value)
        }
        for choice in chunk["choices"]:
            for name, said in choice["delta"].items():
                if isinstance(said, str) and name != "role":
                    message[name] = message.get(name, "") + said
            finish_reason = choice.get("finish_reason") or finish_reason
    return {**told, "choices": [{"message": message, "finish_reason": finish_reason}]}


def _answer(told: dict[str, Any], seconds: float) -> Answer:
    choice, usage, energy = told["choices"][0], told["usage"], energy_in(told)
    message = choice["message"]
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
    reason = told.get("energy_reason", NOT_METERED) if energy is None else None
    return Answer(
        text=_words(message.get("content") or ""),
        reasoning=_words(message.get("reasoning") or message.get("reasoning_content") or ""),
        prompt_tokens=_tokens(usage["prompt_tokens"]),
        output_tokens=_tokens(usage["completion_tokens"]),
        finish_reason=_words(choice.get("finish_reason") or "unknown"),
        seconds=seconds,
        energy=energy,
        energy_reason=reason,
        receipt_id=told.get("energy_receipt_id") if energy is None else energy["receipt_id"],
        cached_tokens=None if cached is None else _tokens(cached),
        braked=told.get("energy_braked") if energy is None else energy.get("braked"),
    )
