"""`etameter demo`: eight tasks under two arms to a real vLLM server, what each request cost, and what of it was required.

Where NVML answers, vLLM for CUDA serves on the GPU. Where there is no NVML library, vLLM for CPUs serves the bundled small model, and the
energy is that of the CPU package (RAPL) where it can be read, else of a simulated board. An NVML that fails is an error.
"""

import asyncio
import os
import sys
import tempfile
from collections.abc import Callable, Coroutine
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from . import config, demo_report
from .counters.simulated import SimulatedCounter
from .demo_report import Exchange, Progress, Report
from .errors import EngineError, EtameterError
from .ledger import Ledger
from .listener import Listener
from .own_server import Metering, OwnMeter, Profile, address_of, find_counter, is_here, serving
from .prompts import demo as asked
from .prompts import dialogue
from .prompts.deletion import remainder
from .prompts.dialogue import Dialogue
from .prompts.endpoint import connect, probe
from .serving import cpu_engine, launch, streamed
from .serving.interrupts import interruptible, run_interruptible
from .serving.link import MeterLink
from .serving.ring import RingWriter
from .serving.streamed import TokenSteps

T = TypeVar("T")

SENDING = f"asking 8 tasks under 2 arms, {asked.AT_ONCE} at a time"
TOO_SMALL = "The bundled model is far too small to be representative: MODEL= (or --model) names another."
PROXY_MEANS = (
    "The engine's steps are guessed from when tokens arrived here; what other clients asked of the server, and what else ran "
    "on the GPU, is not seen and falls on these requests or stays unattributed."
)

_TEND_S = 0.2


def run(*, url: str | None, model: str | None, profile: Profile, as_json: bool) -> int:
    """Runs the demo and prints what it found. `url` names a running server, to meter instead of starting one.

    Returns:
        0, or 130 after Ctrl-C.

    Raises:
        EtameterError: one line says what to mend, or which requests have no energy; nothing is left running.
    """
    cpu_engine.check_system()
    try:
        with interruptible(), Progress() as progress, tempfile.TemporaryDirectory(prefix="etameter-demo-") as folder:
            os.environ["ETAMETER_RUN"] = folder  # its own meter, beside any other
            report = _running(url, Path(folder), progress) if url else _own(model, profile, Path(folder), progress)
    except KeyboardInterrupt:
        return launch.INTERRUPTED
    if as_json:
        sys.stdout.write(demo_report.as_json(report) + "\n")
    else:
        demo_report.show(report)
    failure = demo_report.without_energy(report.exchanges) or demo_report.unexplained(report.exchanges)
    if failure is not None:
        raise EtameterError(failure, f"see {report.addresses.get('ledger and log', 'the log of the server')}")
    return 0


def _own(model: str | None, profile: Profile, folder: Path, progress: Progress) -> Report:
    """Starts a server and its meter, and stops them at the end."""
    with serving(model, profile, folder, progress, name="demo", classify=True) as served:
        progress.begin("warming up")
        meter = served.meter
        run_interruptible(while_tended(_warm_up(served.url, served.model), meter.supervisor.tend))
        progress.begin(SENDING)
        talk = _hold(served.url, served.model, meter.url, progress.detail)
        dialogues = run_interruptible(while_tended(talk, meter.supervisor.tend))
        report = _report(meter)
    report.exchanges = exchanges_of(dialogues, progress)
    report.addresses = {"server (stopped)": served.url, **report.addresses}
    report.remarks += [] if model else [TOO_SMALL]
    return report


def _running(url: str, folder: Path, progress: Progress) -> Report:
    """Meters a server that runs already: with its own receipts, else from here by the arrival of its tokens."""
    url = address_of(url)
    model, metered = run_interruptible(probe(url))
    if metered:
        progress.begin(SENDING)
        exchanges = exchanges_of(run_interruptible(_hold(url, model, url, progress.detail)), progress)
        counters = sorted({one.energy["counter"] for one in exchanges if one.energy})
        method = f"Metered: {model} at {url}, by the etameter that runs with it."
        remark = "The balance is that of the server's own meter: see the sums in its /metrics."
        return Report(exchanges, method, counter="+".join(counters), addresses={"server": url}, remarks=[remark])
    metering = _counter_for(url)
    with OwnMeter(folder, metering, "h100", progress, name="demo", classify=True) as meter:
        ring = RingWriter(
            meter.ring_path,
            engine=meter.settings.serve.engine,
            model=model,
            dtype="unknown",
            details={"method": streamed.METHOD},
        )
        with closing(ring):
            progress.begin(SENDING)
            talk = _hold(url, model, meter.url, progress.detail, TokenSteps(ring))
            dialogues = run_interruptible(while_tended(talk, meter.supervisor.tend))
            report = _report(meter)
    report.exchanges = exchanges_of(dialogues, progress)
    report.method = f"{metering.why} Method: {streamed.METHOD}. {PROXY_MEANS}"
    report.addresses = {"server": url, **report.addresses}
    return report


async def _warm_up(url: str, model: str) -> None:
    async with connect(url) as endpoint:
        await endpoint.greet(model)


async def _hold(
    url: str, model: str, receipts_url: str, tell: Callable[[str], None], steps: TokenSteps | None = None
) -> list[Dialogue]:
    """Asks everything. `steps` are told what is guessed of them, for a server that does not tell them itself."""
    wanted = asked.wanted()

    def answered(count: int) -> None:
        tell(f"{count} of {len(wanted)} answered" if count < len(wanted) else "waiting for the last receipts to settle")

    async with connect(url, receipts_url, run="demo") as endpoint:  # who runs it twice asks again on purpose
        if steps is None:
            return await dialogue.hold(endpoint, wanted, model, at_once=asked.AT_ONCE, tell=answered)
        link = MeterLink(config.socket_path())
        link.start()
        try:
            listener = Listener(endpoint, steps, link)
            return await dialogue.hold(listener, wanted, model, at_once=asked.AT_ONCE, tell=answered)
        finally:
            await link.stop()


def exchanges_of(dialogues: list[Dialogue], progress: Progress) -> list[Exchange]:
    """What came of the demo's tasks, with what of each correct answer could not go."""
    progress.begin("taking out of correct answers what their checkers don't miss")
    exchanges = []
    for wanted, held in zip(asked.wanted(), dialogues, strict=True):
        (attempt,) = held.attempts
        answer, verdict = attempt.answer, attempt.verdict
        assert verdict is not None  # the task has one turn
        exchanges.append(
            Exchange(
                held.task,
                held.arm,
                answer.prompt_tokens,
                answer.output_tokens,
                verdict,
                remainder(wanted.task, answer.text, verdict, answer.output_tokens),
                answer.energy,
                answer.energy_reason,
            )
        )
    progress.end()
    return exchanges


async def while_tended(work: Coroutine[Any, Any, T], tend: Callable[[], None]) -> T:
    """Awaits `work`, calling `tend` five times a second; an error of either ends both."""
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait({task}, timeout=_TEND_S))[0]:
            tend()
    finally:
        task.cancel()
    return task.result()


def _counter_for(url: str) -> Metering:
    """The counter of this machine, if the server runs here and there is one. Raises EngineError, CounterError."""
    host = urlsplit(url).hostname or ""
    unmetered = f"the server at {url} runs without etameter"
    if not is_here(host):
        remedy = "start it with `etameter serve MODEL`, or run this demo where its GPU is"
        raise EngineError(f"{unmetered}, and on another machine", remedy)
    metering = find_counter("h100")
    if metering.counter == "simulated":
        remedy = "start the server with `etameter serve MODEL --simulate-gpu h100`, or run it on a GPU"
        raise EngineError(f"{unmetered}, and this machine has no energy counter", remedy)
    return metering


def _report(meter: OwnMeter) -> Report:
    """Without its exchanges: what the ledger holds now, with the simulated board's pace."""
    with closing(Ledger(meter.settings.ledger, read_only=True)) as ledger:
        totals = ledger.totals()
    slow_motion = None
    if meter.settings.meter.simulate_gpu is not None:
        with closing(SimulatedCounter(meter.board_path)) as board:
            slow_motion = board.slow_motion
    addresses = {"meter (stopped)": f"{meter.url}/metrics", "ledger and log": str(meter.kept)}
    return Report(
        [],
        method=meter.metering.why,
        totals=totals,
        counter=meter.metering.counter,
        slow_motion=slow_motion,
        addresses=addresses,
    )
