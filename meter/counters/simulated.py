"""A modelled GPU in slow motion, for machines that have none: a process that reads the ring and publishes an energy counter.

It stands where the board stands: it keeps counting when the meter dies, and the meter reads nothing of it but the counter. Every figure that
comes from it says ``source=simulated``.

One step of the engine on the CPU stands for one step of Qwen3-8B on the modelled board. The step takes the energy that the board
would have taken, spread over the time that the CPU needed: dynamic energy, and idle power over the *modelled* time, which is to say that
p0·Δt is multiplied by (modelled GPU step time ÷ CPU step time). Idle time is slowed down by a constant instead (`IDLE_FACTOR`), less than
any step is, so that a busy board never draws less than an idle one.

Its truth is not the form that the meter fits: time is a roofline's maximum, a power cap throttles, a step's energy varies by 4 %, the board's
gain is wrong by up to 5 %, and the counter is published late and only every so often.
"""

import argparse
import json
import math
import mmap
import os
import random
import signal
import struct
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np

from etameter.counters import Kind, Scope
from etameter.errors import CounterError, EngineError
from etameter.records import Source
from etameter.roofline import A100, H100, QWEN3_8B, Board, ModelShape
from etameter.serving.ring import Dispatch, Done, Lost, Record, RingReader, Table

PROFILES: dict[str, Board] = {"h100": H100, "a100": A100}
UPDATE_PERIOD_NS = 100_000_000
UPDATE_JITTER_NS = 1_000_000
PUBLISHING_LAG_NS = 20_000_000
STEP_NOISE = 0.04
GAIN_LIMIT = 0.05
GAIN_VARIABLE = "ETAMETER_SIMULATED_GAIN"
"""In the environment: so many times the energy, to see whether an alarm goes off. The board says so to all who read it."""
LAUNCH_S = 0.0004
"""Time of a step beside the roofline: launches and sampling."""
IDLE_FACTOR = 0.02
_POLL_S = 0.005

_MAGIC = b"ETABOARD"
_SIZE = 4096
_JSON_OFFSET = 128
_ENERGY_MJ, _POWER_MW, _TRUE_UJ, _GPU_US, _CPU_US = range(1, 6)  # 64-bit words after the magic


@dataclass(frozen=True, slots=True)
class StepCost:
    """What the modelled board spends on a step: joules and seconds, the power cap applied."""

    energy_j: float
    gpu_s: float


def step_cost(board: Board, shape: ModelShape, rows: Table) -> StepCost:
    """Roofline time, and energy by bytes and operations; above the cap clocks fall, time grows, and an operation costs less."""
    prefills, decodes, contexts = (rows[:, field].astype(np.float64) for field in (1, 2, 7))
    prefill, decode = float(prefills.sum()), float(decodes.sum())
    pairs = float((prefills * (contexts + (prefills + 1) / 2)).sum())
    attended = float((contexts + decodes)[decodes > 0].sum())
    weight_bytes = shape.parameters * shape.weight_bytes
    kv_bytes = attended * shape.kv_token_bytes
    prefill_flop = 2.0 * shape.parameters * prefill + shape.pair_flop * pairs
    decode_flop = 2.0 * shape.parameters * decode + shape.pair_flop * attended
    memory_s = (weight_bytes + kv_bytes) / board.bytes_per_s
    compute_s = (prefill_flop + decode_flop) / board.flop_per_s
    seconds = max(memory_s, compute_s) + LAUNCH_S
    dynamic_j = (
        weight_bytes * board.weight_j_per_byte
        + kv_bytes * board.kv_j_per_byte
        + prefill_flop * board.prefill_j_per_flop
        + decode * board.decode_token_j
    )
    over = (dynamic_j / seconds) / (board.power_cap_w - board.idle_w)
    if over > 1.0:  # energy of an operation goes with the square of the clock, roughly half of it at the voltage floor
        clock = over ** (-1 / 2)
        seconds /= clock
        dynamic_j *= 0.5 + 0.5 * clock
    return StepCost(board.idle_w * seconds + dynamic_j, seconds)


@dataclass(slots=True)
class _Burning:
    left_j: float
    power_w: float


class SlowMotionBoard:
    """Integrates the board's power. Pure: it learns the time from what it is fed."""

    def __init__(self, board: Board, shape: ModelShape, seed: int, start_ns: int) -> None:
        self._board, self._shape = board, shape
        self._random = random.Random(seed)  # noqa: S311  # physics, not secrets
        self.true_j = 0.0
        self.gpu_s = 0.0
        self.cpu_s = 0.0
        self._now_ns = start_ns
        self._burning: _Burning | None = None
        self._queued: dict[int, tuple[int, StepCost]] = {}
        self._prefill_s, self._step_s = 0.002, 0.05  # the CPU's pace per prefill token and step, learned below
        self._rows: dict[int, tuple[int, int]] = {}
        self._started_ns, self._began_j = start_ns, 0.0
        self._history: deque[tuple[int, float]] = deque([(start_ns, 0.0)], maxlen=4096)

    @property
    def idle_w(self) -> float:
        return self._board.idle_w * IDLE_FACTOR

    @property
    def power_w(self) -> float:
        return self.idle_w + (self._burning.power_w if self._burning else 0.0)

    def feed(self, record: Record) -> None:
        """Steps begin and end."""
        match record:
            case Dispatch() if len(record.rows):
                cost = step_cost(self._board, self._shape, record.rows)
                noisy = StepCost(cost.energy_j * (1.0 + self._random.gauss(0.0, STEP_NOISE)), cost.gpu_s)
                self._queued[record.step_id] = (int(record.rows[:, 1].sum()), noisy)
                if self._burning is None:
                    self._begin(record.step_id, record.t_ns)
            case Done() if record.step_id in self._queued:
                self._end(record.step_id, record.t_ns)
            case Lost():
                self.forget()

    def forget(self) -> None:
        """What is queued or burning has no end that could be seen."""
        self._burning = None
        self._queued.clear()

    def advance(self, t_ns: int) -> None:
        """Integrate up to `t_ns`; earlier instants are ignored."""
        seconds = max(t_ns - self._now_ns, 0) * 1e-9
        self.true_j += self.idle_w * seconds
        if self._burning:
            burnt_j = min(self._burning.power_w * seconds, self._burning.left_j)
            self._burning.left_j -= burnt_j
            self.true_j += burnt_j
        self._now_ns = max(t_ns, self._now_ns)
        self._history.append((self._now_ns, self.true_j))

    def true_j_at(self, t_ns: int) -> float:
        """The integral as of a recent instant."""
        later = self._history[-1]
        for earlier in reversed(self._history):
            if earlier[0] <= t_ns:
                if later[0] <= t_ns or later[0] == earlier[0]:
                    return earlier[1]
                return earlier[1] + (later[1] - earlier[1]) * (t_ns - earlier[0]) / (later[0] - earlier[0])
            later = earlier
        return self._history[0][1]

    def _begin(self, step_id: int, t_ns: int) -> None:
        self.advance(t_ns)
        prefill_tokens, cost = self._queued[step_id]
        expected_s = self._step_s + self._prefill_s * prefill_tokens
        dynamic_j = max(cost.energy_j - self.idle_w * expected_s, 0.0)
        self._burning = _Burning(dynamic_j, dynamic_j / expected_s)
        self._started_ns, self._began_j = self._now_ns, self.true_j

    def _end(self, step_id: int, t_ns: int) -> None:
        self.advance(t_ns)
        prefill_tokens, cost = self._queued.pop(step_id)
        self.true_j = max(self.true_j, self._began_j + cost.energy_j)  # it ended sooner than foreseen
        self._history.append((self._now_ns, self.true_j))
        self._burning = None
        seconds = (self._now_ns - self._started_ns) * 1e-9
        self.gpu_s += cost.gpu_s
        self.cpu_s += seconds
        if prefill_tokens:
            pace_s = max(seconds - self._step_s, 0.0) / prefill_tokens
            self._prefill_s += 0.5 * (pace_s - self._prefill_s)
        else:
            self._step_s += 0.5 * (seconds - self._step_s)
        if self._queued:
            self._begin(next(iter(self._queued)), self._now_ns)


def gain_of(profile: str) -> float:
    """The counter's error, for a board has one for good: drawn once for each profile, the same in every process."""
    return 1.0 + random.Random(profile).uniform(-GAIN_LIMIT, GAIN_LIMIT)  # noqa: S311


def more_of(told: str) -> float:
    """How many times the energy is asked for. Raises CounterError."""
    try:
        more = float(told)
    except ValueError:
        more = math.nan
    if not 0 < more < math.inf:
        raise CounterError("no_board", f"{GAIN_VARIABLE} is {told!r}", "set it to a number above zero, such as 1.1")
    return more


def publish(ring_path: Path, board_path: Path, profile: str, engine: str, more: float = 1.0) -> None:
    """Follow the ring and publish the counter, `more` times what the board would tell, until SIGTERM or SIGINT.

    What was in the ring before this board began was burnt by another, or by none.
    """
    ended: list[int] = []

    def end(number: int, _: FrameType | None) -> None:
        ended.append(number)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    seed = random.SystemRandom().randrange(2**32)
    board = SlowMotionBoard(PROFILES[profile], QWEN3_8B, seed, time.monotonic_ns())
    jitter = random.Random(seed)  # noqa: S311
    gain = gain_of(profile) * more
    about: dict[str, str | float] = {"gpu_uuid": f"GPU-sim-{engine}-0", "profile": profile, "seed": seed}
    words = _create(board_path, {**about, "times_energy": more})
    reader: RingReader | None = None
    next_update_ns = began_ns = time.monotonic_ns()
    while not ended:
        try:
            if reader is None:
                reader = RingReader(ring_path)
                board.forget()
                if reader.header.created_ns < began_ns:
                    reader.poll()
            records = reader.poll()
            if not records and reader.replaced():
                reader.close()
                reader = None
        except (FileNotFoundError, EngineError):
            reader, records = None, []
        for record in records:
            board.feed(record)
        now_ns = time.monotonic_ns()
        if now_ns >= next_update_ns:
            board.advance(now_ns)
            published_j = gain * board.true_j_at(now_ns - PUBLISHING_LAG_NS)
            words[_POWER_MW] = int(gain * board.power_w * 1e3)
            words[_TRUE_UJ] = int(board.true_j * 1e6)
            words[_GPU_US], words[_CPU_US] = int(board.gpu_s * 1e6), int(board.cpu_s * 1e6)
            words[_ENERGY_MJ] = int(published_j * 1e3)
            next_update_ns += UPDATE_PERIOD_NS + jitter.randint(-UPDATE_JITTER_NS, UPDATE_JITTER_NS)
            next_update_ns = max(next_update_ns, now_ns)
        time.sleep(_POLL_S)
    words.release()
    board_path.unlink(missing_ok=True)


def _create(path: Path, about: dict[str, str | float]) -> memoryview:
    building = path.with_name(f"{path.name}.{os.getpid()}")
    text = json.dumps(about).encode()
    building.write_bytes(
        _MAGIC.ljust(_JSON_OFFSET, b"\0") + struct.pack("<I", len(text)) + text.ljust(_SIZE - _JSON_OFFSET - 4, b"\0")
    )
    with building.open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), _SIZE)
    building.rename(path)
    return memoryview(mapped).cast("Q")


class SimulatedCounter:
    """The meter's side: reads what a board process publishes.

    A board that is started again publishes in a new file, from zero.

    Raises:
        CounterError: no board publishes at `path`.
    """

    scope: Scope = "gpu"
    kind: Kind = "simulated"
    source: Source = "simulated"
    parts: tuple[str, ...] = ()
    blur_ns = 0

    def __init__(self, path: Path) -> None:
        self._path = path
        self._open()

    def _open(self) -> None:
        path = self._path
        try:
            with path.open("rb") as file:
                self._inode = os.fstat(file.fileno()).st_ino
                self._map = mmap.mmap(file.fileno(), _SIZE, prot=mmap.PROT_READ)
        except (OSError, ValueError) as error:
            raise CounterError(
                "no_board", f"no simulated board publishes at {path}", "start the server with --simulate-gpu"
            ) from error
        if self._map[: len(_MAGIC)] != _MAGIC:
            raise CounterError("no_board", f"{path} is no simulated board", "name the file that --simulate-gpu makes")
        (length,) = struct.unpack_from("<I", self._map, _JSON_OFFSET)
        about = json.loads(self._map[_JSON_OFFSET + 4 : _JSON_OFFSET + 4 + length])
        self.gpu_uuid: str = about["gpu_uuid"]
        self.board_name: str = about["profile"]
        self.times_energy: float = about.get("times_energy", 1.0)
        self._words = memoryview(self._map).cast("Q")

    def read_mj(self) -> int:
        """Raises CounterError while no board publishes."""
        try:
            replaced = self._path.stat().st_ino != self._inode
        except FileNotFoundError as error:
            raise CounterError(
                "no_board", f"the simulated board at {self._path} has ended", "start the server again"
            ) from error
        if replaced:
            self.close()
            self._open()
        return int(self._words[_ENERGY_MJ])

    @property
    def power_w(self) -> float:
        return float(self._words[_POWER_MW]) * 1e-3

    def conditions(self) -> tuple[str, ...]:
        """Nothing of the modelled board changes while it runs."""
        return (self.board_name,)

    def throttled(self) -> bool:
        """The modelled board never gets hot."""
        return False

    def power_limit_w(self) -> None:
        """In slow motion no power is comparable to a board's limit."""

    def processes(self) -> None:
        """Nobody runs on a board that isn't there."""

    @property
    def modelled_s(self) -> float:
        """Seconds that the modelled board has worked: over these its power is comparable, whatever pace the CPU keeps."""
        return float(self._words[_GPU_US]) * 1e-6

    @property
    def slow_motion(self) -> float:
        """Modelled GPU seconds per CPU second over all steps so far; NaN before the first."""
        cpu_us = self._words[_CPU_US]
        return self._words[_GPU_US] / cpu_us if cpu_us else math.nan

    def close(self) -> None:
        self._words.release()
        self._map.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Publish the energy counter of a simulated board that runs a ring's steps."
    )
    parser.add_argument("--profile", choices=sorted(PROFILES), required=True)
    parser.add_argument("--ring", type=Path, required=True)
    parser.add_argument("--board", type=Path, required=True)
    parser.add_argument("--engine", default="engine-0")
    options = parser.parse_args()
    try:
        more = more_of(os.environ.get(GAIN_VARIABLE, "1"))
    except CounterError as error:
        parser.error(f"{error.message}: {error.remedy}")
    if more != 1:
        sys.stderr.write(f"etameter: the simulated board tells {more:g} times its energy, as {GAIN_VARIABLE} has it\n")
    publish(options.ring, options.board, options.profile, options.engine, more)


if __name__ == "__main__":
    main()
