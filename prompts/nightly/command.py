"""`etameter nightly`: one night, from a server that is started to a directory that says what came of it."""

import asyncio
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from etameter import config, doctor
from etameter.carbon import footprint_of
from etameter.counters import Counter
from etameter.counters.nvml_facts import Informant
from etameter.demo_report import Progress
from etameter.errors import CounterError, EngineError, EtameterError, ExperimentError, NightError
from etameter.findings import Diagnosis, diagnosis_of
from etameter.footprint import Footprint
from etameter.joules import Joules
from etameter.nightly_section import NightlySection
from etameter.prompts import arms as arms_module
from etameter.prompts import report
from etameter.prompts.arms import Arm
from etameter.prompts.boards import Boards
from etameter.prompts.endpoint import Endpoint, connect
from etameter.prompts.loaders import load
from etameter.prompts.station import Server, Station, asked, counters_of, described, model_of
from etameter.prompts.tasks import Suite, load_suite, suites
from etameter.roofline import shape_of
from etameter.serving.interrupts import interruptible, run_interruptible
from etameter.serving.ring import RingReader

from . import closing as ends
from . import deck, former, history, keeping, outlets, schedule
from .conclusion import conclude
from .conditions import Budget, BudgetSpent
from .external import External, Served
from .figures import machine_of
from .guard import limited
from .journal import Ending, Journal
from .night import Night
from .runner import Runner
from .schedule import Setting, Stint
from .switchback import Switchback
from .verdict import Verdict, judge
from .wording import sentences

DOCTOR_S: Final = 0.5
"""Each of its fourteen looks at the counters."""
TIMEOUT_S: Final = 600.0
"""Of a request."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a night is to do, with what is behind its names."""

    section: NightlySection
    suite: Suite
    arms: tuple[Arm, ...]
    arrivals: tuple[deck.Arrival, ...]
    footprint: Footprint
    sweep: bool

    @property
    def server(self) -> Server:
        section = self.section
        return Server(section.url, section.model, section.engine, section.profile)

    @property
    def hash(self) -> str:
        told = [self.suite.hash.encode(), *(arm.hash.encode() for arm in self.arms), repr(self.arrivals).encode()]
        return schedule.config_hash(self.section, told)

    def stints(self) -> list[Stint]:
        """For the server as it is configured: those of a sweep that need no other server come last."""
        found = list(schedule.stints(self.section))
        if self.sweep:
            found += [schedule.stint_of(setting, self.section) for setting in self._settings() if not setting.restarts]
        return found

    def restarts(self) -> list[Setting]:
        """Settings of the sweep for which the server is started anew."""
        return [setting for setting in self._settings() if setting.restarts] if self.sweep else []

    def _settings(self) -> tuple[Setting, ...]:
        return schedule.settings(self.section)


def run(file: Path, *, sweep: bool, as_json: bool) -> int:
    """Runs a night, or what is left of one that was cut off, and says where it is kept.

    Returns:
        The exit code of its verdict.

    Raises:
        EtameterError: the night could not be begun; one line says what to mend.
    """
    whole = config.load(file)
    plan = planned(whole.nightly, footprint_of(whole.footprint), sweep=sweep)
    runs = plan.section.runs or config.state_dir() / "runs"
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        with interruptible(), Progress() as progress:
            night, folder = _night(plan, runs, progress, _Teller(console))
    except OSError as error:
        raise NightError(
            f"{runs} can't be written ({error})", "make room, or set nightly.runs to another folder"
        ) from error
    verdict = _judged(night, folder, plan.section, plan.footprint, console)
    if as_json:
        sys.stdout.write(json.dumps(outlets.told(night, verdict), ensure_ascii=False) + "\n")
    else:
        sys.stdout.write("\n".join([*sentences(night.run, verdict), f"run: {folder}", ""]))
    return verdict.exit_code


def _judged(night: Night, folder: Path, section: NightlySection, footprint: Footprint, console: Console) -> Verdict:
    """By the nights before it, written down and told to whoever the configuration names. What goes wrong with that is said and changes nothing."""
    before = history.nights(folder.parent, night.run.name, lambda error: console.print(f"not compared with: {error}"))
    verdict = judge(before, night)
    try:
        conclude(night, verdict, before, folder, footprint)
    except (OSError, ExperimentError) as error:
        console.print(f"the verdict could not be written: {error}")
    for failed in outlets.send(section, night, verdict):
        console.print(failed)
    return verdict


class _Teller:
    """Says what the night does, whenever it does something else."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._said = ""

    def __call__(self, words: str) -> None:
        if words != self._said:
            self._console.print(words)
        self._said = words


def planned(section: NightlySection, footprint: Footprint, *, sweep: bool) -> Plan:
    """Raises EtameterError where the configuration names what is not there."""
    suite = load_suite(section.suite) if section.suite in suites() else load(Path(section.suite)).suite
    arms = tuple(arms_module.find(name) for name in section.arms)
    arrivals = deck.read_arrivals(section.arrivals) if section.arrivals is not None else ()
    if arms:
        report.drawable()
    if sweep and section.url is not None and section.sweep_max_num_seqs:
        raise NightError(
            "a server that runs already can't be started with another max_num_seqs",
            "leave nightly.url out, or set nightly.sweep_max_num_seqs = []",
        )
    return Plan(section, suite, arms, arrivals, footprint, sweep)


def _night(plan: Plan, runs: Path, progress: Progress, tell: Callable[[str], None]) -> tuple[Night, Path]:
    lost: CounterError | None = None
    try:
        measured = keeping.measured_here()
    except CounterError as error:
        measured, lost = (), error
    with ExitStack() as held:
        held.enter_context(keeping.alone(measured))
        job = keeping.Job(plan.section.name, plan.hash, plan.sweep)
        folder = keeping.clear_up(runs, job, keeping.now()) or keeping.begin(runs, _head(plan))
        kept = held.enter_context(Journal(folder / "journal.jsonl"))
        try:
            keeping.reserve(folder)
            if lost is not None:
                raise lost
            for gpu_uuid in former.set_back():
                tell(f"{gpu_uuid} has its limits back, that a sweep had left changed")
            _measure_all(plan, kept, progress, tell)
            ending = ends.verdict_of(kept.told)
        except KeyboardInterrupt:
            ending = Ending("incomplete", "it was interrupted", "let it run to its end", ends.INTERRUPTED)
        except BudgetSpent as error:
            ending = Ending("incomplete", error.message, error.remedy, ends.NOT_COMPARABLE)
        except EtameterError as error:
            ending = Ending("failed", error.message, error.remedy, error.exit_code)
        except OSError as error:
            ending = Ending(
                "failed", f"{error.strerror or error}", "make room, and see the system's log", ends.ENVIRONMENT
            )
        return keeping.close(kept, ending, keeping.now()), folder


def _head(plan: Plan) -> dict[str, Any]:
    began = keeping.now()
    return {
        "run_id": keeping.new_run_id(began),
        "name": plan.section.name,
        "began": began.isoformat(timespec="seconds"),
        "config_hash": plan.hash,
        "config": schedule.told_of(plan.section),
        "seed": plan.section.seed,
        "sweep": plan.sweep,
        "etameter": version("etameter"),
        "tasks_hash": plan.suite.hash,
        "model": plan.section.model,
        "host": host(),
    }


def host() -> dict[str, Any]:
    """The machine without its boards."""
    told = dict(
        line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines() if ":" in line
    )
    return {
        "cpu": next((value.strip() for key, value in told.items() if key.strip() == "model name"), platform.machine()),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "host": platform.node(),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def _measure_all(plan: Plan, kept: Journal, progress: Progress, tell: Callable[[str], None]) -> None:
    """All that has not ended yet, with one server after the other."""
    session = _Session(plan, kept, progress, tell)
    session.measure(plan.stints())
    for setting in plan.restarts():
        options = () if setting.max_num_seqs is None else ("--max-num-seqs", str(setting.max_num_seqs))
        session.measure([schedule.stint_of(setting, plan.section)], options)


@dataclass(frozen=True, slots=True)
class _Session:
    """A night that goes on with one server after the other."""

    plan: Plan
    kept: Journal
    progress: Progress
    tell: Callable[[str], None]

    def measure(self, stints: Sequence[Stint], options: Sequence[str] = ()) -> None:
        """Starts the server, unless nothing is left to do with it. Raises EtameterError."""
        if all(stint.name in self.kept.told.figures for stint in stints):
            return
        section = self.plan.section
        model = model_of(self.plan.server)
        machine = doctor.machine_checks() if not self.kept.told.doctor else []
        with asked(
            self.plan.server, self.progress, name="nightly", options=(*section.options, *options), restart=False
        ) as station:
            self.progress.end()
            counters = counters_of(station.engine)
            with ExitStack() as opened:
                if not self.kept.told.doctor:
                    self.tell("asking doctor")
                    diagnosis = _examined(counters, machine)
                    self.kept.doctor(diagnosis.as_dict())
                    if not diagnosis.can_measure:
                        bad = [check for gpu in diagnosis.gpus for check in gpu.checks if check.verdict == "bad"]
                        raise CounterError("stale", bad[0].finding, bad[0].remedy or "etameter doctor says more")
                joules = Joules(counters)
                joules.start()
                opened.callback(joules.stop)
                boards = opened.enter_context(closing(Boards(counters, config.ring_path(station.engine))))
                run_interruptible(self._ask(stints, station, model, joules, boards))

    async def _ask(self, stints: Sequence[Stint], station: Station, model: str, joules: Joules, boards: Boards) -> None:
        run_id = self.kept.told.head["run_id"]
        async with connect(station.url, station.receipts_url, run=run_id, timeout_s=TIMEOUT_S) as endpoint:
            about = await endpoint.about(model)
            told = {
                "run": run_id,
                "began": keeping.now().isoformat(timespec="seconds"),
                "texts": False,
                "source": joules.source,
                "counter": joules.counters[0].kind,
                "server": described(about),
                "model": model,
                "etameter": version("etameter"),
                **host(),
            }
            session = {**told, "boards": await asyncio.to_thread(boards.describe)}
            if begun := self.kept.told.sessions:
                keeping.refuse_another_machine(begun[0], session)
            await asyncio.to_thread(self.kept.session, session)
            await self._runner(station, endpoint, (model, str(about.get("root", model))), joules, boards, told).run(
                stints
            )

    def _runner(
        self,
        station: Station,
        endpoint: Endpoint,
        model: tuple[str, str],
        joules: Joules,
        boards: Boards,
        told: Mapping[str, Any],
    ) -> Runner:
        section, folder, run_id = self.plan.section, self.kept.folder, str(told["run"])
        switchback = Switchback(
            section,
            folder,
            run_id,
            self.plan.suite,
            self.plan.arms,
            model[0],
            endpoint,
            joules,
            boards,
            told,
            self.kept,
            self.plan.footprint,
            self.tell,
        )
        names = [each.board_name for each in joules.counters]
        spent = ends.spent(self.kept.told)
        return Runner(
            section=section,
            journal=self.kept,
            endpoint=endpoint,
            joules=joules,
            boards=boards,
            meter_url=station.meter_url,
            machine=machine_of(_parameters(station.engine), names, joules.source, joules.counters[0].kind),
            deck=self._decks(model[0], run_id),
            due_s=self._due_s,
            compare=switchback.run,
            make=External(endpoint, Served(*model), section.external_requests, section.seed, folder).make,
            limits=_limits([each.gpu_uuid for each in joules.counters if each.kind in {"nvml", "power"}]),
            budget=Budget(section.budget_s, section.budget_j, *spent),
            tell=self.tell,
            tend=station.tend,
        )

    def _decks(self, model: str, run_id: str) -> Callable[[Stint], deck.Deck]:
        section = self.plan.section
        salted = section.prefix_cache == "off"

        def deck_of(stint: Stint) -> deck.Deck:
            if stint.kind == "recorded":
                return deck.of_arrivals(self.plan.arrivals, model, stage=stint.name, run_id=run_id, salted=salted)
            return deck.of_tasks(
                self.plan.suite.tasks,
                self.plan.arms[0] if self.plan.arms else arms_module.find("unconstrained"),
                model,
                stage=stint.name,
                run_id=run_id,
                seed=section.seed,
                max_tokens=section.max_tokens,
                salted=salted,
            )

        return deck_of

    def _due_s(self, stint: Stint) -> Iterator[float] | None:
        if stint.kind == "recorded":
            return deck.arrivals_s(self.plan.arrivals)
        return None if stint.rate_per_s is None else deck.evenly_s(stint.rate_per_s)


def _examined(counters: Sequence[Counter], machine: list[Any]) -> Diagnosis:
    with ExitStack() as opened:
        informants = {
            counter.gpu_uuid: opened.enter_context(closing(Informant(counter.gpu_uuid)))
            for counter in counters
            if counter.kind in {"nvml", "power"}
        }
        return diagnosis_of(
            version("etameter"), machine, doctor.examine_counters(counters, informants, DOCTOR_S, None, None)
        )


def _parameters(engine: str) -> int | None:
    """That a token passes; None where the engine doesn't tell its model's shape."""
    try:
        with closing(RingReader(config.ring_path(engine))) as reader:
            details = reader.header.details
    except (OSError, EngineError):
        return None
    return shape_of(details).parameters if "num_layers" in details and "hidden_size" in details else None


def _limits(gpu_uuids: Sequence[str]) -> Callable[[Setting], AbstractContextManager[None]]:
    def of(setting: Setting) -> AbstractContextManager[None]:
        return nullcontext() if setting.restarts else limited(gpu_uuids, setting.power_w, setting.clock_mhz)

    return of
