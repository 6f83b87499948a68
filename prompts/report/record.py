"""What a report is made of."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from etameter.footprint import Footprint
from etameter.prompts.analysis import Analysis, ArmFinding, PartFinding
from etameter.prompts.plan import Plan
from etameter.prompts.tables import BlockRow, Outcome, kept

SIMULATED = "simulated"


@dataclass(frozen=True, slots=True)
class Record:
    """A run that has ended."""

    plan: Plan
    blocks: tuple[BlockRow, ...]
    outcomes: tuple[Outcome, ...]
    analysis: Analysis
    about: Mapping[str, object]
    """Where and with what it was run: GPU, driver, clocks, versions, hash of the model, options."""
    watts: Mapping[tuple[int, int], Sequence[float | None]]
    """(block, attempt) → mean power of each of its seconds; None where the counters don't tell."""
    footprint: Footprint
    """What turns joules into money and CO2, as configured when the report is made."""

    @property
    def simulated(self) -> bool:
        return self.analysis.source == SIMULATED or any(block.source == SIMULATED for block in self.blocks)

    @property
    def arms(self) -> tuple[str, ...]:
        """The control first, then the others as they were named."""
        control = self.plan.control
        return (control, *(arm for arm in self.plan.arms if arm != control))

    @property
    def shown(self) -> PartFinding | None:
        """The part that stands for the run where one has to: the first headline part, else the first."""
        parts = self.analysis.parts
        return next((part for part in parts if part.headline), parts[0] if parts else None)

    def number(self, arm: str) -> int:
        """An arm's place among all, which gives its colour and its mark."""
        return self.arms.index(arm)

    def kept(self, part: PartFinding) -> tuple[list[BlockRow], list[Outcome]]:
        """The blocks of a part that count, in the order in which they were run, and their conversations."""
        blocks, outcomes = kept(self.blocks, self.outcomes)
        return (
            sorted((block for block in blocks if block.part == part.part), key=lambda block: block.started_wall),
            [outcome for outcome in outcomes if outcome.part == part.part],
        )


def claimed(finding: ArmFinding) -> bool:
    """Whether anything is said to be shown of the arm's energy."""
    return finding.energy in {"saves", "costs more"}


def findings(part: PartFinding, record: Record) -> Iterator[ArmFinding]:
    """Of a part, in the order of the arms."""
    yield from sorted(part.findings, key=lambda finding: record.number(finding.arm))
