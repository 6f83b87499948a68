"""`etameter ab`: the same tasks under several arms on one server, and what may be said of the difference."""

import json
import math
import platform
import secrets
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from etameter import config
from etameter.carbon import footprint_of
from etameter.demo_report import Progress
from etameter.errors import EngineError, ExperimentError
from etameter.joules import Joules
from etameter.serving import launch
from etameter.serving.interrupts import interruptible, run_interruptible

from . import across, journal, report, results
from . import arms as arms_module
from .arms import Arm
from .asking import Asker
from .boards import Boards
from .endpoint import connect
from .experiment import PATIENCE, Experiment, State
from .forecast import forecast
from .journal import Journal
from .loaders import load
from .plan import Load, Plan, PrefixCache, lay_out
from .station import Server, Station, asked, counters_of, described, model_of
from .tasks import Suite, check, load_suite, suites

CONCURRENCY: Final = 8
"""Where no load is named."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the command line says of the plan. None leaves it to the default."""

    suite: str | None = None
    arms: tuple[str, ...] | None = None
    samples: int | None = None
    concurrency: int | None = None
    rate_per_s: float | None = None
    closed_loop: int | None = None
    """Tasks of the part in which one conversation is held after the other."""
    mixed: bool | None = None
    blocks: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    timeout_s: float | None = None
    until_correct: int | None = None
    prefix_cache: PrefixCache | None = None
    margin: float | None = None
    seed: int | None = None

    def loads(self) -> list[Load]:
        """The parts that are wanted; one at a fixed concurrency where none is named."""
        at_once = self.concurrency
        if at_once is None and self.rate_per_s is None:
            at_once = CONCURRENCY
        loads: list[Load] = []
        if self.rate_per_s is not None:
            loads.append(Load("rate", rate_per_s=self.rate_per_s, blocks=self.blocks))
        if at_once is not None:
            loads.append(Load("concurrency", concurrency=at_once, blocks=self.blocks))
        if self.closed_loop is not None:
            loads.append(Load("closed-loop", concurrency=1, tasks=self.closed_loop))
        if self.mixed:
            loads.append(Load("mixed", concurrency=at_once or CONCURRENCY))
        return loads

    def plan(self, suite: Suite, arms: Sequence[Arm], model: str) -> Plan:
        """Raises ExperimentError, ArmError."""
        told = {
            "samples": self.samples,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "timeout_s": self.timeout_s,
            "until_correct": self.until_correct,
            "prefix_cache": self.prefix_cache,
            "margin": self.margin,
            "seed": self.seed,
        }
        given: dict[str, Any] = {name: value for name, value in told.items() if value is not None}
        return lay_out(suite, arms, model, self.loads(), **given)


@dataclass(frozen=True, slots=True)
class _Run:
    """A plan with what is behind its names, and where it is kept."""

    plan: Plan
    suite: Suite
    arms: tuple[Arm, ...]
    folder: Path
    resumed: bool
    texts: bool


def run(wishes: Wishes, server: Server, *, out: Path | None, resume: Path | None, texts: bool, as_json: bool) -> int:
    """Runs a comparison, or what is left of one, and shows what came of it.

    Returns:
        0, or 130 after Ctrl-C: then `resume` goes on.

    Raises:
        EtameterError: one line says what to mend; what was measured so far is kept.
    """
    folder = resume or out or Path(f"etameter-ab-{datetime.now(UTC):%Y%m%d-%H%M%S}")
    wanted = None
    report.drawable()
    footprint = footprint_of(config.load().footprint)
    try:
        with interruptible(), Progress() as progress:
            wanted = (
                _begun(wishes, server, resume, texts=texts) if resume else _new(wishes, server, folder, texts=texts)
            )
            _measure(wanted, server, progress)
            progress.begin("drawing conclusions")
            record = results.conclude(folder, footprint)
            progress.end()
    except KeyboardInterrupt:
        if wanted is not None:
            sys.stderr.write(f"etameter: cut off; `etameter ab --resume {folder}` goes on\n")
        return launch.INTERRUPTED
    except EngineError as error:
        if (folder / journal.JOURNAL_FILE).exists():
            raise EngineError(error.message, f"{error.remedy}; `etameter ab --resume {folder}` goes on") from error
        raise
    if as_json:
        sys.stdout.write((folder / results.RUN_FILE).read_text(encoding="utf-8"))
    else:
        report.show(record, Console())
        sys.stdout.write(f"report: {folder / report.PAGE}\n")
    return 0


def dry_run(wishes: Wishes, server: Server, *, saving: float) -> int:
    """Prints what would be done, and how much of it would find a saving. Asks nobody, but a server at an address for its model."""
    suite, arms = _suite(wishes.suite), _arms(wishes.arms)
    plan = wishes.plan(suite, arms, model_of(server))
    sys.stdout.write(forecast(plan, saving) + "\n")
    return 0


def compare(paths: tuple[Path, Path], *, as_json: bool) -> bool:
    """Prints two runs beside each other, and returns whether they are comparable.

    Raises:
        ExperimentError: one of them is no run that has ended.
    """
    first, second = (results.taken(path) for path in paths)
    found = across.compare(first, second)
    if as_json:
        sys.stdout.write(json.dumps(asdict(found), ensure_ascii=False) + "\n")
        return found.comparable
    lines = [f"Not comparable: {warning}" for warning in found.warnings]
    lines += [f"Differs, too: {note}" for note in found.notes]
    sys.stdout.write("\n".join([*lines, *found.sentences]) + "\n")
    return found.comparable


def _new(wishes: Wishes, server: Server, folder: Path, *, texts: bool) -> _Run:
    suite, arms = _suite(wishes.suite), _arms(wishes.arms)
    plan = wishes.plan(suite, arms, model_of(server))
    journal.begin(folder, plan)
    return _Run(plan, suite, tuple(arms), folder, resumed=False, texts=texts)


def _begun(wishes: Wishes, server: Server, folder: Path, *, texts: bool) -> _Run:
    """What was begun, with the same suite and arms behind it."""
    plan, told = journal.load(folder)
    other = replace(wishes, suite=None, arms=None)
    if other != Wishes():
        raise ExperimentError("a run that goes on keeps its plan", "leave out what is planned: --samples, --rate, …")
    suite = _suite(plan.suite if wishes.suite is None else wishes.suite)
    arms = _arms(wishes.arms or plan.arms)
    if suite.hash != plan.suite_hash:
        raise ExperimentError(
            f"the suite {suite.name} ({suite.hash}) is not the one of the plan ({plan.suite_hash})",
            "name its file with --suite, or begin another run",
        )
    hashes = {arm.name: arm.hash for arm in arms}
    if hashes != dict(plan.arm_hashes):
        raise ExperimentError(
            "the arms are not those of the plan", "name the same, those of your own as NAME=FILE, or begin another run"
        )
    if not results.is_complete(plan, told) and (model := model_of(server)) != plan.model:
        raise ExperimentError(f"the plan is for {plan.model}, and this is {model}", "serve the same model")
    kept = bool(told.sessions[0]["texts"]) if told.sessions else texts
    return _Run(plan, suite, tuple(arms), folder, resumed=True, texts=kept)


def _suite(named: str | None) -> Suite:
    named = "core" if named is None else named
    return load_suite(named) if named in suites() else load(Path(named)).suite


def _arms(named: Sequence[str] | None) -> list[Arm]:
    return [arms_module.find(name) for name in named or ("unconstrained", "entrace", "concise")]


def _measure(wanted: _Run, server: Server, progress: Progress) -> None:
    """All that is left to measure."""
    with journal.resume(wanted.folder, wanted.plan) as kept:
        if results.is_complete(wanted.plan, kept.told):
            return
        with asked(server, progress, name="ab") as station:
            counters = counters_of(station.engine)
            joules = Joules(counters)
            joules.start()
            try:
                with closing(Boards(counters, config.ring_path(station.engine))) as boards:
                    run_interruptible(_ask(wanted, station, joules, boards, kept))
            finally:
                joules.stop()


async def _ask(
    wanted: _Run,
    station: Station,
    joules: Joules,
    boards: Boards,
    kept: Journal,
) -> None:
    name = f"{wanted.plan.hash[:12]}-{secrets.token_hex(4)}"
    async with connect(station.url, station.receipts_url, run=name, timeout_s=wanted.plan.timeout_s) as endpoint:
        machine = {
            "run": name,
            "began": datetime.now(UTC).isoformat(timespec="seconds"),
            "texts": wanted.texts,
            "source": joules.source,
            "counter": joules.counters[0].kind,
            "server": described(await endpoint.about(wanted.plan.model)),
            "etameter": version("etameter"),
            "python": platform.python_version(),
            "kernel": f"{platform.system()} {platform.release()}",
        }
        tasks = {task.id: task for task in wanted.suite.tasks}
        asker = Asker(wanted.plan, tasks, {arm.name: arm for arm in wanted.arms}, endpoint, name, check)
        with _Shown() as shown:
            experiment = Experiment(
                wanted.plan,
                asker,
                joules,
                boards,
                kept,
                machine,
                texts=wanted.texts,
                patience=PATIENCE,
                tell=shown,
                tend=station.tend,
            )
            await experiment.run()


class _Shown:
    """How far the run is: a bar on a terminal, else a line whenever it does something else."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bar = Bar(*columns, TextColumn("{task.fields[left]}"), console=self._console, transient=True)
        self._task = self._bar.add_task("", total=None, left="")
        self._doing = ""

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._bar.stop()

    def __call__(self, state: State) -> None:
        left = f"about {math.ceil(state.left_s / 60)} min left" if state.left_s else ""
        if self._console.is_terminal:
            self._bar.update(
                self._task, description=state.doing, completed=state.done, total=state.of, left=left, refresh=False
            )
        elif state.doing != self._doing:
            self._console.print(f"{state.doing} ({state.done} of {state.of}{', ' if left else ''}{left})")
        self._doing = state.doing
