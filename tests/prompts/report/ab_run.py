"""A comparison of three arms as it might have gone, with an analysis whose figures are all different, so that each can be found on the page."""

import random
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from etameter.footprint import Footprint
from etameter.prompts.analysis import (
    AccuracyOf,
    Against,
    Analysis,
    ArmFinding,
    ArmSum,
    CategoryOf,
    Effect,
    EtaOf,
    ExcludedBlock,
    PartFinding,
    Prediction,
    Rebound,
    Saving,
)
from etameter.prompts.plan import Exclusion, PartPlan, Plan
from etameter.prompts.report.record import Record
from etameter.prompts.tables import HEADLINE, BlockRow, Outcome, Part, Span
from etameter.records import Source
from etameter.slack.fast import classify

ARMS = ("unconstrained", "concise", "entrace")
HASHES = {"unconstrained": "aaaa111122223333", "concise": "bbbb111122223333", "entrace": "cccc111122223333"}
LENGTH = {"unconstrained": 90.0, "concise": 45.0, "entrace": 30.0}
CATEGORIES = ("arithmetic", "code", "factual")
TASKS = tuple((f"{category}-{number}", category) for category in CATEGORIES for number in range(6))
WORDY = "Sure! I'd be happy to help with that.\n\n{answer}\n\nI hope this helps! Let me know if you have any other questions."
SECOND_NS = 1_000_000_000


NO_FACTORS = Footprint()


def plan(**changes: Any) -> Plan:
    parts = (PartPlan("rate", 2.5, None, ()), PartPlan("concurrency", None, 8, ()))
    whole = Plan(
        suite="small",
        suite_version="1",
        suite_hash="5" * 16,
        arms=("entrace", "unconstrained", "concise"),
        arm_hashes=HASHES,
        control="unconstrained",
        model="a-model",
        samples=2,
        max_tokens=128,
        temperature=0.0,
        until_correct=1,
        prefix_cache="on",
        timeout_s=600.0,
        margin=0.05,
        confidence=0.95,
        seed=20261,
        exclusion=Exclusion(),
        parts=parts,
    )
    return replace(whole, **changes)


def rows(source: Source, *, texts: bool) -> tuple[list[BlockRow], list[Outcome]]:
    """Two parts of four repeats; one block is excluded, one conversation failed, one has no joules."""
    dice = random.Random(7)
    blocks, outcomes = [], []
    begun = datetime(2026, 11, 20, 9, 0, tzinfo=UTC)
    t_ns = 1000 * SECOND_NS
    number = 0
    for part in HEADLINE:
        for repeat in range(4):
            for position, arm in enumerate(dice.sample(ARMS, 3)):
                held = list(_held(dice, part, number, arm, t_ns, source, texts=texts))
                end_ns = max(one.end_ns for one in held)
                blocks.append(_block(part, number, repeat, position, arm, t_ns, end_ns, held, begun, source))
                outcomes += held
                begun += timedelta(seconds=(end_ns - t_ns) / SECOND_NS + 2)
                t_ns = end_ns + 2 * SECOND_NS
                number += 1
    blocks[5] = replace(blocks[5], excluded="throttled", throttled=True)
    outcomes[3] = replace(
        outcomes[3], failure="timeout", correct=False, energy_j=None, output_tokens=None, answer_text=None, spans=()
    )
    return blocks, outcomes


def _held(
    dice: random.Random, part: Part, number: int, arm: str, t_ns: int, source: Source, *, texts: bool
) -> Iterator[Outcome]:
    for place, (task, category) in enumerate(TASKS):
        tokens = max(3, round(LENGTH[arm] * dice.lognormvariate(0, 0.6)))
        start_ns = t_ns + place * SECOND_NS // 3
        asked, answer = f"What is {place} and {place}?", f"{place} and {place} make {2 * place}."
        said = WORDY.format(answer=answer) if arm == "unconstrained" else answer
        spans = tuple(Span(span.start, span.end, span.label) for span in classify(asked, said) if span.label)
        joules = 2.0 + 0.31 * tokens * dice.lognormvariate(0, 0.15)
        yield Outcome(
            part=part,
            block=number,
            attempt=0,
            arm=arm,
            arm_hash=HASHES[arm],
            task=task,
            category=category,
            difficulty="easy",
            sample=number % 2,
            turns=1,
            retries=0,
            start_ns=start_ns,
            end_ns=start_ns + (tokens * SECOND_NS) // 25,
            prompt_tokens=20 + (150 if arm == "entrace" else 0),
            cached_tokens=0,
            output_tokens=tokens,
            finish_reason="stop",
            correct=dice.random() < 0.8,
            reason="as the checker says",
            failure=None,
            energy_j=joules,
            prompt_j=2.0,
            output_j=joules - 2.0,
            marginal_j=joules * 0.6,
            error_j=0.1,
            settled=True,
            source=source,
            eta_lenient_at_most=1.0,
            eta_deletion=None,
            lexical_slack=0.1,
            slack={"preamble": tokens * 0.05, "closing": tokens * 0.08}
            if arm == "unconstrained"
            else {"meta": tokens * 0.03},
            prompt_text=asked if texts else None,
            answer_text=said if texts else None,
            spans=spans if texts else (),
        )


def _block(
    part: Part,
    number: int,
    repeat: int,
    position: int,
    arm: str,
    start_ns: int,
    end_ns: int,
    held: list[Outcome],
    begun: datetime,
    source: Source,
) -> BlockRow:
    seconds = (end_ns - start_ns) / SECOND_NS
    joules = 80.0 * seconds + sum(one.energy_j or 0.0 for one in held)
    return BlockRow(
        part=part,
        block=number,
        attempt=0,
        repeat=repeat,
        arm=arm,
        arm_hash=HASHES[arm],
        position=position,
        start_ns=start_ns,
        end_ns=end_ns,
        started_wall=begun.isoformat(),
        energy_j=joules,
        energy_error_j=4.0,
        idle_w=80.0,
        requests=len(held),
        failures=0,
        correct=sum(one.correct is True for one in held),
        prompt_tokens=sum(one.prompt_tokens or 0 for one in held),
        output_tokens=sum(one.output_tokens or 0 for one in held),
        power_w=joules / seconds,
        temperature_c=55.0,
        throttled=False,
        neighbours=0,
        excluded=None,
        source=source,
        counter="nvml",
    )


class Distinct:
    """Numbers of which no two are alike."""

    def __init__(self) -> None:
        self._dice = random.Random(11)

    def share(self, low: float = 0.0, high: float = 1.0) -> float:
        return round(self._dice.uniform(low, high), 6)

    def interval(self, low: float, high: float) -> tuple[float, float, float]:
        """A value between its ends: value, low, high."""
        ends = sorted(self.share(low, high) for _ in range(3))
        return ends[1], ends[0], ends[2]

    def saving(self, basis: Any, view: Any = "fully loaded", low: float = 0.1, high: float = 0.6) -> Saving:
        value, least, most = self.interval(low, high)
        return Saving(
            view=view,
            basis=basis,
            control_j=self.share(40, 50),
            arm_j=self.share(15, 30),
            saving=value,
            low=least,
            high=most,
            bootstrap_low=self.share(low, value),
            bootstrap_high=self.share(value, high),
            p=self.share(0.0001, 0.04),
            repeats=4,
            prompts=18,
        )

    def accuracy(self) -> AccuracyOf:
        value, low, high = self.interval(-0.04, 0.05)
        return AccuracyOf(
            control=self.share(0.7, 0.8),
            arm=self.share(0.7, 0.8),
            difference=value,
            low=low,
            high=high,
            p=self.share(0.001, 0.04),
            prompts=18,
            unknown=1,
            verdict="kept",
        )

    def eta(self, method: str, bound: Any = None) -> EtaOf:
        value, low, high = self.interval(0.4, 0.95)
        sure = method == "task"
        return EtaOf(
            method=method,
            control=self.share(0.2, 0.4),
            arm=value,
            low=None if bound else low,
            high=None if bound else high,
            bound=bound,
            conversations=140,
            reliability=None if sure else self.share(0.4, 0.6),
            reliability_low=None if sure else self.share(0.1, 0.3),
            reliability_high=None if sure else self.share(0.7, 0.9),
            bias=None if sure else self.share(-0.1, 0.1),
            note="as it was said",
        )


def finding(numbers: Distinct, arm: str) -> ArmFinding:
    saving = numbers.saving("counter")
    categories = tuple(
        CategoryOf(category, 6, numbers.saving("attributed", "full", -0.3, 0.7), numbers.accuracy(), None)
        for category in CATEGORIES[:2]
    )
    return ArmFinding(
        arm=arm,
        arm_hash=HASHES[arm],
        samples=2,
        correct=100,
        output_tokens=4321,
        accuracy=numbers.accuracy(),
        saving=saving,
        energy="saves",
        accuracy_verdict="kept",
        why_not=None,
        target="above",
        detectable=numbers.share(0.05, 0.1),
        views=(saving, numbers.saving("attributed", "full"), numbers.saving("attributed", "marginal")),
        decomposition=tuple(
            Effect(name, numbers.share(-0.5, 0.1), numbers.share(0.6, 1.1))
            for name in ("output tokens", "joules per token", "own prompt", "accuracy")
        ),
        against_concise=None if arm == "concise" else Against("concise", numbers.saving("counter"), "better", None),
        eta=(numbers.eta("task"), numbers.eta("fast", "at most"), numbers.eta("lexical", "at most")),
        prediction=Prediction(
            saving=numbers.share(0.3, 0.7),
            low=numbers.share(0.2, 0.3),
            high=numbers.share(0.7, 0.8),
            token_saving=numbers.share(0.3, 0.7),
            measured=saving.saving,
            place="above",
        ),
        rebound=Rebound(numbers.share(1.2, 2.0), {"0.5": 1.5}),
        categories=(*categories, CategoryOf("factual", 6, None, None, "no correct answer under the control")),
        sentences=(f"{arm} saved a share of the joules per correct answer.",),
    )


def analysis(source: Source) -> Analysis:
    numbers = Distinct()
    excluded = (ExcludedBlock("rate", 5, "concise", "throttled"),)
    parts = tuple(
        PartFinding(
            part=part,
            headline=True,
            arms=tuple(
                ArmSum(
                    arm=arm,
                    arm_hash=HASHES[arm],
                    blocks=4,
                    conversations=72,
                    correct=60,
                    accuracy=numbers.share(0.7, 0.9),
                    energy_j=numbers.share(1000, 3000),
                    joules_per_correct=numbers.share(15, 50),
                    output_tokens=5000,
                    prompt_tokens=2000,
                    failures={"timeout": 1} if arm == "entrace" else {},
                )
                for arm in ARMS
            ),
            findings=tuple(finding(numbers, arm) for arm in ("entrace", "concise")),
            excluded=excluded if part == "rate" else (),
            sentences=("One of 12 blocks was left out.",) if part == "rate" else (),
        )
        for part in ("rate", "concurrency")
    )
    return Analysis(
        plan_hash=plan().hash,
        suite="small",
        suite_hash="5" * 16,
        model="a-model",
        control="unconstrained",
        source=source,
        confidence=0.95,
        margin=0.05,
        parts=parts,
        sentences=("entrace saved a share of the joules per correct answer; accuracy was kept.", "concise saved less."),
    )


ABOUT = {
    "boards": [{"board": "NVIDIA H100", "driver": "580.1", "power_limit_w": None}],
    "versions": {"vllm": "0.32", "etameter": "0.1.0"},
    "clocks": ["1980 MHz"],
}


def watts(blocks: list[BlockRow]) -> dict[tuple[int, int], list[float | None]]:
    """Of each second, but for one; nothing is known of the last block's."""
    dice = random.Random(3)
    told: dict[tuple[int, int], list[float | None]] = {}
    for block in blocks[:-1]:
        seconds = int((block.end_ns - block.start_ns) / SECOND_NS)
        told[block.block, 0] = [(block.power_w or 0.0) + dice.gauss(0, 12) for _ in range(seconds)]
    told[2, 0][1] = None
    return told


def record(source: Source = "measured", *, texts: bool = True, footprint: Footprint = NO_FACTORS) -> Record:
    blocks, outcomes = rows(source, texts=texts)
    return Record(plan(), tuple(blocks), tuple(outcomes), analysis(source), ABOUT, watts(blocks), footprint)


def empty() -> Record:
    """The server was gone before anything was answered."""
    nothing = replace(analysis("measured"), source=None, parts=(), sentences=("No block was run: nothing is claimed.",))
    return Record(plan(), (), (), nothing, {}, {}, NO_FACTORS)
