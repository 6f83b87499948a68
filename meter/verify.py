"""`etameter verify`: the same work alone and at once on a running server, and whether its receipts add up.

What must hold, and is measured: the receipts of all requests and the joules that nobody pays sum to what the counter says; requests of equal work
pay alike; and a request's own work, beside the passes over the weights that it shares, costs the same alone and in company. What isn't additive,
and must not be, is the shared part: it is what batching saves.
"""

import asyncio
import json
import math
import random
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from . import config
from .errors import EngineError
from .export.receipts import NOT_MEASURED
from .prompts.endpoint import probe, receipt
from .timeline import NORMAL_95

LARGEST_GAP = 0.01
"""Relative: receipts and counters are of the same settled intervals and may differ by rounding, and by requests that still ran."""

_SETTLE_S = 30.0
_POLL_S = 0.2
_REQUEST_S = 900.0
_TOKEN_IDS = (100, 1000)
"""Tokens that any vocabulary has. Both phases draw their own, so that no prefix is cached."""


@dataclass(frozen=True, slots=True)
class Work:
    """What each request asks for."""

    requests: int
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Phase:
    """The receipts of one phase, and what the meter's totals gained in it."""

    counter_j: float
    attributed_j: float
    unassigned_j: float
    pass_j: float | None
    """Fitted cost of one pass over the weights at the end of the phase; None before the first fit."""
    pass_error_j: float
    """Its standard error."""
    finished: int
    """Requests that ended in the phase, whoever sent them."""
    receipts_j: tuple[float, ...]
    errors_j: tuple[float, ...]
    marginal_j: tuple[float, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """Relative figures: 0.01 is 1 %."""

    gap_alone: float
    """What the counter says less receipts and unassigned joules, over what it says."""
    gap_at_once: float
    spread_alone: float
    """Standard deviation over mean of requests of equal work."""
    spread_at_once: float
    saving: float
    """Of the joules that the requests took alone."""
    own_work_alone_j: float | None
    """Per request, without passes over the weights; None where the meter has no fit yet. Below zero where the fit is off by more."""
    own_work_alone_error_j: float | None
    """How far off it may be (95 %), because all the passes that are taken off cost what the fit says."""
    own_work_at_once_j: float | None
    additivity_error: float | None
    """Difference of the two over the energy of a request alone."""
    additivity_uncertainty: float | None
    """Of `additivity_error`, from `own_work_alone_error_j`: a smaller one says nothing."""
    undisturbed: bool

    @property
    def good(self) -> bool:
        return self.undisturbed and max(self.gap_alone, self.gap_at_once) <= LARGEST_GAP


def judge(work: Work, alone: Phase, at_once: Phase) -> Verdict:
    """What two phases of the same work say.

    Alone, each of a request's steps, one per output token, is a pass that is its own, so its marginal joules hold them all; at once only the first
    comer's first ones and the last one's last ones are, and the median leaves them out.
    """
    own_alone_j = error_j = own_at_once_j = additivity_error = uncertainty = None
    if alone.pass_j is not None:
        own_alone_j = statistics.median(alone.marginal_j) - alone.pass_j * work.output_tokens
        error_j = NORMAL_95 * alone.pass_error_j * work.output_tokens
        own_at_once_j = statistics.median(at_once.marginal_j)
        request_j = statistics.fmean(alone.receipts_j)
        additivity_error, uncertainty = abs(own_at_once_j - own_alone_j) / request_j, error_j / request_j
    return Verdict(
        gap_alone=_gap(alone),
        gap_at_once=_gap(at_once),
        spread_alone=_spread(alone.receipts_j),
        spread_at_once=_spread(at_once.receipts_j),
        saving=1.0 - math.fsum(at_once.receipts_j) / math.fsum(alone.receipts_j),
        own_work_alone_j=own_alone_j,
        own_work_alone_error_j=error_j,
        own_work_at_once_j=own_at_once_j,
        additivity_error=additivity_error,
        additivity_uncertainty=uncertainty,
        undisturbed=alone.finished == at_once.finished == work.requests,
    )


def pass_of(
    model: str,
    engines: Sequence[tuple[str, Sequence[str]]],
    passes_j: Mapping[str, float],
    errors_j: Mapping[str, float],
) -> tuple[float | None, float]:
    """Joules of one pass over the weights, and their standard error, from those of the GPUs.

    An engine's GPUs pass together, ranks each for itself.
    """
    own = [gpus for served, gpus in engines if served == model] or [gpus for _, gpus in engines]
    fitted = [gpus for gpus in own if passes_j.keys() >= set(gpus)]
    if not fitted:
        return None, 0.0
    pass_j = statistics.fmean(math.fsum(passes_j[uuid] for uuid in gpus) for gpus in fitted)
    return pass_j, statistics.fmean(math.hypot(*(errors_j[uuid] for uuid in gpus)) for gpus in fitted)


def _gap(phase: Phase) -> float:
    return abs(phase.counter_j - math.fsum(phase.receipts_j) - phase.unassigned_j) / phase.counter_j


def _spread(joules: Sequence[float]) -> float:
    return statistics.stdev(joules) / statistics.fmean(joules) if len(joules) > 1 else 0.0


@dataclass(frozen=True, slots=True)
class Verification:
    """What was asked, of whom, and what came of it."""

    url: str
    model: str
    source: str
    """What the figures are worth."""
    work: Work
    alone: Phase
    at_once: Phase
    verdict: Verdict


async def measure(url: str, meter_url: str, work: Work) -> Verification:
    """Send the work to the server at `url`, one request after the other and then all at once.

    Raises:
        EngineError: no server with etameter in it, no meter at `meter_url`, or a request without a receipt.
    """
    model, metered = await probe(url)
    if not metered:
        raise EngineError(f"the server at {url} runs without etameter", "start it with `etameter serve MODEL`")
    dice = random.Random(time.time_ns())  # noqa: S311  # prompts, not secrets
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_REQUEST_S)) as session:
            run = _Run(session, url, model, meter_url, work, dice)
            alone = await run.phase(at_once=False)
            at_once = await run.phase(at_once=True)
            source = (await run.totals()).source
    except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
        raise EngineError(f"{error} is no address", "write it as http://HOST:PORT") from error
    except (aiohttp.ClientError, TimeoutError) as error:
        raise EngineError(
            f"no answer ({str(error) or type(error).__name__})", f"see that {url} and {meter_url} run"
        ) from error
    return Verification(url, model, source, work, alone, at_once, judge(work, alone, at_once))


@dataclass(frozen=True, slots=True)
class _Totals:
    counter_j: float
    attributed_j: float
    unassigned_j: float
    finished: float
    source: str
    pass_j: float | None
    pass_error_j: float


class _Run:
    def __init__(
        self, session: aiohttp.ClientSession, url: str, model: str, meter_url: str, work: Work, dice: random.Random
    ) -> None:
        self._session, self._url, self._model, self._meter_url = session, url, model, meter_url
        self._work, self._dice = work, dice
        self._token = config.load().meter.receipt_token

    async def phase(self, *, at_once: bool) -> Phase:
        before = await self._at_rest()
        began_s = time.monotonic()
        if at_once:
            receipts = await asyncio.gather(*(self._ask() for _ in range(self._work.requests)))
        else:
            receipts = [await self._ask() for _ in range(self._work.requests)]
        seconds = time.monotonic() - began_s
        energies = [await self._settled(receipt_id) for receipt_id in receipts]
        after = await self._at_rest()
        return Phase(
            counter_j=after.counter_j - before.counter_j,
            attributed_j=after.attributed_j - before.attributed_j,
            unassigned_j=after.unassigned_j - before.unassigned_j,
            pass_j=after.pass_j,
            pass_error_j=after.pass_error_j,
            finished=round(after.finished - before.finished),
            receipts_j=tuple(energy["energy_joules"] for energy in energies),
            errors_j=tuple(energy["error_joules"] for energy in energies),
            marginal_j=tuple(energy["marginal_joules"] for energy in energies),
            seconds=seconds,
        )

    async def totals(self) -> _Totals:
        """The meter's own sums, at this moment."""
        async with self._session.get(f"{self._meter_url}/metrics") as response:
            if response.status != 200:
                raise EngineError(
                    f"{self._meter_url}/metrics answers {response.status}", "name the meter's address (--meter-url)"
                )
            text = await response.text()
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        if not any(sample.name.startswith("etameter_") for sample in samples):
            raise EngineError(f"{self._meter_url}/metrics is not a meter's", "name the meter's address (--meter-url)")

        def added(name: str) -> float:
            return math.fsum(each.value for each in samples if each.name == name)

        passes_j, errors_j = (
            {
                one.labels["gpu_uuid"]: one.value
                for one in samples
                if (one.name, one.labels.get("coefficient")) == (name, "c_j")
            }
            for name in ("etameter_cost_coefficient", "etameter_cost_coefficient_standard_error")
        )
        pass_j, pass_error_j = pass_of(self._model, await self._engines(), passes_j, errors_j)
        return _Totals(
            added("etameter_gpu_energy_joules_total"),
            added("etameter_energy_joules_total"),
            added("etameter_unassigned_joules_total"),
            added("etameter_requests_total"),
            "/".join(sorted({sample.labels["source"] for sample in samples if "source" in sample.labels})) or "unknown",
            pass_j,
            pass_error_j,
        )

    async def _engines(self) -> list[tuple[str, list[str]]]:
        """Model and GPUs of each engine that the meter knows."""
        async with self._session.get(f"{self._meter_url}/health") as response:
            engines = (await response.json(content_type=None))["engines"]
        return [(one["model"], [each["gpu_uuid"] for each in one["devices"]]) for one in engines if one["devices"]]

    async def _at_rest(self) -> _Totals:
        """The sums once a settled interval has gone by in which no request was charged."""
        deadline_s = time.monotonic() + _SETTLE_S
        last = await self.totals()
        while time.monotonic() < deadline_s:
            await asyncio.sleep(_POLL_S)
            now = await self.totals()
            if now.counter_j > last.counter_j and now.attributed_j == last.attributed_j:
                return now
            last = now
        raise EngineError("the server doesn't come to rest", "verify while nobody else uses it")

    async def _ask(self) -> str:
        prompt = [self._dice.randrange(*_TOKEN_IDS) for _ in range(self._work.prompt_tokens)]
        tokens = self._work.output_tokens
        body = {"model": self._model, "prompt": prompt, "max_tokens": tokens, "min_tokens": tokens}
        request = {**body, "ignore_eos": True, "temperature": 0.0}
        async with self._session.post(f"{self._url}/v1/completions", json=request) as response:
            answer = await response.json(content_type=None)
            if response.status != 200:
                said = " ".join(json.dumps(answer).split())[:300]
                raise EngineError(f"the server refuses a request ({response.status}: {said})", "mend what it says")
        with suppress(TypeError, KeyError):
            return str((answer.get("energy") or {}).get("receipt_id") or answer["energy_receipt_id"])
        raise EngineError("a response carries no receipt", "see that the meter runs")

    async def _settled(self, receipt_id: str) -> Mapping[str, Any]:
        deadline_s = time.monotonic() + _SETTLE_S
        while time.monotonic() < deadline_s:
            told = await receipt(self._session, self._meter_url, receipt_id, self._token)
            energy = told.get("energy")
            if energy is not None and energy["settled"]:
                return dict(energy)
            if told.get("energy_reason") == NOT_MEASURED:
                raise EngineError(
                    f"receipt {receipt_id} has no figure: the counter was lost meanwhile", "see etameter doctor"
                )
            await asyncio.sleep(_POLL_S)
        raise EngineError(f"receipt {receipt_id} does not settle", "see the meter's log and /health")


def as_json(found: Verification) -> str:
    """All of it, as one JSON object."""
    return json.dumps({**asdict(found), "good": found.verdict.good}, indent=1)


def report(found: Verification) -> str:
    """As a table for a person."""
    work, alone, at_once, verdict = found.work, found.alone, found.at_once, found.verdict
    own = _joules(verdict.own_work_alone_j, verdict.own_work_alone_error_j)
    rows = [
        ("", "alone", "at once"),
        ("counter", f"{alone.counter_j:.2f} J", f"{at_once.counter_j:.2f} J"),
        ("receipts", f"{math.fsum(alone.receipts_j):.2f} J", f"{math.fsum(at_once.receipts_j):.2f} J"),
        ("nobody pays", f"{alone.unassigned_j:.2f} J", f"{at_once.unassigned_j:.2f} J"),
        ("sum is off by", f"{verdict.gap_alone:.3%}", f"{verdict.gap_at_once:.3%}"),
        ("a request", _mean(alone.receipts_j, alone.errors_j), _mean(at_once.receipts_j, at_once.errors_j)),
        ("equals differ by", f"{verdict.spread_alone:.1%}", f"{verdict.spread_at_once:.1%}"),
        ("its own work", own, _joules(verdict.own_work_at_once_j)),
    ]
    asked = f"{work.requests} requests of {work.prompt_tokens} prompt and {work.output_tokens} output tokens"
    lines = [f"{asked} to {found.model} at {found.url}, source={found.source}"]
    lines += [f"{name:<18}{left:>20}{right:>20}" for name, left, right in rows]
    lines.append(f"together they took {verdict.saving:.0%} less than one after the other")
    if verdict.additivity_error is not None:
        lines.append(
            f"additivity error: own work differs by {verdict.additivity_error:.1%} (± {verdict.additivity_uncertainty:.1%}) "
            "of a request's energy alone"
        )
    if not verdict.undisturbed:
        lines.append("other requests ran meanwhile: verify while nobody else uses the server")
    elif not verdict.good:
        lines.append(
            f"the receipts do not add up to within {LARGEST_GAP:.0%}: please file a recording (etameter record)"
        )
    return "\n".join(lines)


def _mean(joules: Sequence[float], errors: Sequence[float]) -> str:
    return f"{statistics.fmean(joules):.2f} ± {statistics.fmean(errors):.2f} J"


def _joules(joules: float | None, error_j: float | None = None) -> str:
    if joules is None:
        return "not fitted yet"
    return f"{joules:.2f} J" if error_j is None else f"{joules:.2f} ± {error_j:.2f} J"
