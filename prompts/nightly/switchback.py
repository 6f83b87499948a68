"""The comparison of arms as stages of a night: on the tasks that are the same every night, and on ones made anew."""

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from etameter.errors import ExperimentError, NightError
from etameter.footprint import Footprint
from etameter.joules import Joules
from etameter.nightly_section import NightlySection
from etameter.prompts import journal as ab_journal
from etameter.prompts import results
from etameter.prompts.analysis import ArmFinding, PartFinding
from etameter.prompts.arms import Arm
from etameter.prompts.asking import Asker
from etameter.prompts.boards import Boards
from etameter.prompts.endpoint import Endpoint
from etameter.prompts.experiment import Experiment, Patience
from etameter.prompts.generators import GENERATORS, generate
from etameter.prompts.plan import Load, Plan, lay_out
from etameter.prompts.report import Record
from etameter.prompts.tables import BlockRow, Outcome
from etameter.prompts.tasks import Suite, check, digest
from etameter.records import Source

from .estimates import Estimate, Statistic, estimate, ratio
from .figures import WH_J, known, unknown
from .journal import Journal
from .rows import Figure, StageRow
from .schedule import AB_AUDIT, Stint

AT_ONCE: Final = 8
SHORT: Final = Patience(idle_s=5.0, rest_s=1.0, round_s=4.0, warm_up_s=30.0)
"""The night has warmed up and measured idle power already."""


@dataclass(frozen=True, slots=True)
class Switchback:
    """Whom it asks, and what it reads."""

    section: NightlySection
    folder: Path
    """Of the night: each comparison has a folder of its own in it, as `etameter ab` leaves one."""
    run_id: str
    suite: Suite
    arms: tuple[Arm, ...]
    model: str
    endpoint: Endpoint
    joules: Joules
    boards: Boards
    machine: Mapping[str, Any]
    journal: Journal
    footprint: Footprint
    tell: Callable[[str], None]

    async def run(self, stint: Stint) -> tuple[list[StageRow], list[Figure]]:
        """Runs the comparison, or what is left of one, and says what came of it.

        Raises:
            EtameterError: as `Experiment.run`.
        """
        suite = audit_suite(self.run_id, self.section.audit_tasks) if stint.name == AB_AUDIT else self.suite
        plan = plan_of(self.section, suite, self.arms, self.model, audit_seed(self.run_id))
        folder = self.folder / stint.name
        if not (folder / ab_journal.PLAN_FILE).exists():
            ab_journal.begin(folder, plan)
        with ab_journal.resume(folder, plan) as kept:
            tasks = {task.id: task for task in suite.tasks}
            asker = Asker(plan, tasks, {arm.name: arm for arm in self.arms}, self.endpoint, self.run_id, check)
            experiment = Experiment(
                plan,
                asker,
                self.joules,
                self.boards,
                kept,
                self.machine,
                patience=SHORT,
                tell=lambda state: self.tell(f"{stint.name}: {state.doing}"),
            )
            await experiment.run()
        record = await asyncio.to_thread(results.conclude, folder, self.footprint)
        session = self.journal.session_number
        attempt = self.journal.told.begun[stint.name] - 1
        rows = [_row(stint.name, block, number, attempt, session) for number, block in _numbered(record.blocks)]
        return rows, figures_of(stint.name, record)


def audit_seed(run_id: str) -> int:
    """Another one every night, the same however often the night is resumed."""
    return int.from_bytes(hashlib.sha256(run_id.encode()).digest()[:4])


def audit_suite(run_id: str, tasks: int) -> Suite:
    """As many tasks, made anew by all generators in equal parts."""
    seed = audit_seed(run_id)
    each = {name: tasks // len(GENERATORS) + (place < tasks % len(GENERATORS)) for place, name in enumerate(GENERATORS)}
    made = tuple(task for name, count in each.items() for task in generate(name, seed, count))
    return Suite("audit", str(seed), made, digest(made))


def plan_of(section: NightlySection, suite: Suite, arms: Sequence[Arm], model: str, seed: int) -> Plan:
    """Raises NightError where it can't be planned."""
    at_once = min(AT_ONCE, max(section.batches, default=AT_ONCE))
    try:
        return lay_out(
            suite,
            arms,
            model,
            [Load("concurrency", concurrency=at_once)],
            max_tokens=section.max_tokens,
            prefix_cache="as-served" if section.prefix_cache == "as-served" else "on",
            seed=section.seed if suite.name != "audit" else seed,
        )
    except ExperimentError as error:
        raise NightError(f"the comparison of arms can't be planned ({error.message})", error.remedy) from error


def figures_of(stage: str, record: Record) -> list[Figure]:
    """By arm, as of a stage of its own; and what each saves."""
    source: Source = record.analysis.source or "simulated"
    findings = {one.arm: one for part in record.analysis.parts for one in part.findings}
    found: list[Figure] = []
    for arm in record.plan.arms:
        blocks = [block for block in record.blocks if block.arm == arm and block.excluded is None]
        counted = {(block.block, block.attempt) for block in blocks}
        held = [one for one in record.outcomes if one.arm == arm and (one.block, one.attempt) in counted]
        found += _of_arm(f"{stage}/{arm}", blocks, held, source)
        found.append(_eta_task(f"{stage}/{arm}", arm, record.analysis.parts, source))
        if arm in findings:
            found.append(_saving(f"{stage}/{arm}", findings[arm], source))
    return found


def _of_arm(stage: str, blocks: Sequence[BlockRow], held: Sequence[Outcome], source: Source) -> list[Figure]:
    """By the counters of its blocks, and by the receipts of its conversations."""
    own = {block.block: [one for one in held if one.block == block.block] for block in blocks}

    def summed(key: str, block: BlockRow) -> float | None:
        values: list[float | None] = [getattr(one, key) if one.settled else None for one in own[block.block]]
        given = [value for value in values if value is not None]
        return sum(given) if len(given) == len(values) else None

    def later(block: BlockRow) -> float:
        return sum((one.output_tokens or 0) - one.turns for one in own[block.block])

    statistics: dict[str, tuple[Statistic[BlockRow], bool]] = {
        "j_per_token": (ratio(_energy, lambda one: one.output_tokens), False),
        "wh_per_token": (ratio(_energy_wh, lambda one: one.output_tokens), False),
        "j_per_question": (ratio(_energy, lambda one: len(own[one.block])), False),
        "j_per_correct_answer": (ratio(_energy, lambda one: one.correct), False),
        "tokens_per_s_per_w": (ratio(lambda one: one.output_tokens, _energy), False),
        "tokens_per_s": (ratio(lambda one: one.output_tokens, _seconds), False),
        "power_w": (ratio(_energy, _seconds), False),
        "j_per_prompt_token": (ratio(partial(summed, "prompt_j"), lambda one: one.prompt_tokens), False),
        "j_per_output_token": (ratio(partial(summed, "output_j"), later), False),
        "j_per_request": (ratio(partial(summed, "energy_j"), lambda one: len(own[one.block])), False),
        "accuracy": (ratio(lambda one: one.correct, lambda one: len(own[one.block])), True),
        "failures": (ratio(lambda one: one.failures, lambda one: len(own[one.block])), True),
        **{
            name: (ratio(partial(_weighed, own, name), partial(_weight, own, name)), True)
            for name in ("eta_lenient_at_most", "eta_deletion", "lexical_slack")
        },
    }
    figures = []
    for metric, (statistic, share) in statistics.items():
        told = estimate(blocks, statistic, share=share) if blocks else None
        why = "no block of this arm counts" if not blocks else "nothing of the kind is known of its blocks"
        figures.append(unknown(stage, metric, source, why) if told is None else known(stage, metric, source, told))
    return figures


def _eta_task(stage: str, arm: str, parts: Sequence[PartFinding], source: Source) -> Figure:
    """The control's stands beside every other arm's."""
    told = [eta for part in parts for one in part.findings for eta in one.eta if eta.method == "task"]
    mine = [eta for part in parts for one in part.findings if one.arm == arm for eta in one.eta if eta.method == "task"]
    if mine and mine[0].arm is not None:
        (eta, *_) = mine
        return known(stage, "eta_task", source, Estimate(eta.arm or 0.0, eta.low, eta.high, eta.conversations))
    if not mine and told and told[0].control is not None:
        return known(stage, "eta_task", source, Estimate(told[0].control, None, None, told[0].conversations))
    return unknown(stage, "eta_task", source, (told[0].note if told else "") or "it was not asked often enough")


def _saving(stage: str, finding: ArmFinding, source: Source) -> Figure:
    saving = finding.saving
    if saving is None:
        return unknown(stage, "saving", source, finding.why_not or "too few")
    estimated = Estimate(saving.saving, saving.low, saving.high, saving.repeats)
    return known(stage, "saving", source, estimated, f"{finding.energy}; accuracy: {finding.accuracy_verdict}")


def _numbered(blocks: Sequence[BlockRow]) -> list[tuple[int, BlockRow]]:
    """Each with its place among those of its arm."""
    seen: dict[str, int] = {}
    found = []
    for block in blocks:
        found.append((seen.get(block.arm, 0), block))
        seen[block.arm] = seen.get(block.arm, 0) + 1
    return found


def _row(stage: str, block: BlockRow, number: int, attempt: int, session: int) -> StageRow:
    return StageRow(
        stage=f"{stage}/{block.arm}",
        kind="ab",
        window=number,
        attempt=attempt,
        session=session,
        start_ns=block.start_ns,
        end_ns=block.end_ns,
        started_wall=block.started_wall,
        energy_j=block.energy_j,
        energy_error_j=block.energy_error_j,
        requests=block.requests,
        failures=block.failures,
        correct=block.correct,
        prompt_tokens=block.prompt_tokens,
        output_tokens=block.output_tokens,
        power_w=block.power_w,
        temperature_c=block.temperature_c,
        clock_mhz=None,
        throttled=block.throttled,
        neighbours=block.neighbours,
        excluded=block.excluded,
        source=block.source,
        counter=block.counter,
    )


def _energy(one: BlockRow) -> float | None:
    return one.energy_j


def _energy_wh(one: BlockRow) -> float | None:
    return None if one.energy_j is None else one.energy_j / WH_J


def _seconds(one: BlockRow) -> float:
    return (one.end_ns - one.start_ns) * 1e-9


def _weighed(own: Mapping[int, Sequence[Outcome]], name: str, block: BlockRow) -> float:
    told: list[tuple[float | None, int]] = [(getattr(one, name), one.output_tokens or 0) for one in own[block.block]]
    return sum(value * tokens for value, tokens in told if value is not None)


def _weight(own: Mapping[int, Sequence[Outcome]], name: str, block: BlockRow) -> float:
    return sum(one.output_tokens or 0 for one in own[block.block] if getattr(one, name) is not None)
