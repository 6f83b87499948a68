"""What came out of a comparison of arms: figures, intervals and sentences, ready for JSON.

A figure that could not be had is None, and `why_not` or a sentence says why. Savings are shares of the control's joules: .25 is "a quarter
less", negative is "more". All intervals have the plan's confidence.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from etameter.records import Source

from .tables import Part

AccuracyVerdict = Literal["kept", "lost", "not shown", "too few"]
EnergyVerdict = Literal["saves", "costs more", "not shown", "not claimed", "too few"]
"""`not claimed`: it may save, but accuracy was not shown to be kept."""
View = Literal["fully loaded", "full", "marginal"]
"""fully loaded: what the counters grew by, idle power and all. full: what is attributed to requests. marginal: what would not have been
spent without them."""
Place = Literal["below", "inside", "above"]


@dataclass(frozen=True, slots=True)
class Saving:
    """Joules per correct answer of an arm against another's."""

    view: View
    basis: Literal["counter", "attributed"]
    control_j: float
    """Joules per correct answer under the other arm."""
    arm_j: float
    saving: float
    low: float
    high: float
    bootstrap_low: float | None
    """The same by BCa bootstrap, which is too narrow where repeats are few: a second opinion. None where a resample has no correct answer."""
    bootstrap_high: float | None
    p: float
    """Two-sided, that the two cost the same."""
    repeats: int
    prompts: int


@dataclass(frozen=True, slots=True)
class AccuracyOf:
    """Correct answers of an arm against another's, by the prompts that both were asked."""

    control: float
    arm: float
    difference: float
    low: float
    high: float
    p: float
    """Two-sided size of the test that the arm is worse by the margin."""
    prompts: int
    unknown: int
    """Conversations that were not or could not be checked; each counts against the arm."""
    verdict: AccuracyVerdict


@dataclass(frozen=True, slots=True)
class Effect:
    """A factor of the ratio of joules per correct answer."""

    name: str
    log: float
    """Natural logarithm; the effects of an arm sum to that of its ratio."""
    factor: float
    """1.1: by this alone the arm would cost 10 % more."""


@dataclass(frozen=True, slots=True)
class Against:
    """An arm against another one that is no control of the plan: is it more than plain brevity?"""

    other: str
    saving: Saving | None
    verdict: Literal["better", "worse", "equal", "not told apart", "too few"]
    why_not: str | None


@dataclass(frozen=True, slots=True)
class EtaOf:
    """η of an arm by one method. Methods answer different questions; they stand side by side and are never mixed."""

    method: str
    control: float | None
    arm: float | None
    low: float | None
    """Of the arm."""
    high: float | None
    bound: Literal["at most"] | None
    conversations: int
    """Of the arm, that have it."""
    reliability: float | None
    """Squared correlation over prompts, within the arm, with η_task, 0 where that is negative; None for η_task itself, and where it can't be had."""
    bias: float | None
    """Mean over prompts, within the arm, of this less η_task."""
    note: str
    reliability_low: float | None = None
    reliability_high: float | None = None
    """The 95 % interval of the reliability by which prompts were drawn."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the seed's formula, 1 − η_before/η_after, makes of the measured η_task."""

    saving: float
    low: float
    """Least of those with one arm left out of the pool of T*."""
    high: float
    token_saving: float
    """Output tokens per correct answer, measured."""
    measured: float
    """The saving of joules per correct answer."""
    place: Place
    """Of the prediction, by the interval of the measured saving."""


@dataclass(frozen=True, slots=True)
class Rebound:
    """Jevons: more use because use is cheaper. Demand ∝ price^−elasticity, and the price falls by energy's share of it."""

    demand_factor: float
    """So many times as many correct answers use the energy that was saved."""
    elasticity: Mapping[str, float]
    """Energy's share of the price → the elasticity of demand at which the saving is eaten."""


@dataclass(frozen=True, slots=True)
class CategoryOf:
    """One category of tasks: by attributed joules, without correction for looking at many."""

    category: str
    prompts: int
    saving: Saving | None
    accuracy: AccuracyOf | None
    why_not: str | None


@dataclass(frozen=True, slots=True)
class ArmFinding:
    """An arm in a part of the experiment, against the control."""

    arm: str
    arm_hash: str
    samples: int
    correct: int
    output_tokens: int
    accuracy: AccuracyOf | None
    saving: Saving | None
    """Fully loaded, from counters, where blocks have one arm each; full, from attributed joules, elsewhere."""
    energy: EnergyVerdict
    accuracy_verdict: AccuracyVerdict
    """After correction for the number of arms, unlike `accuracy.verdict`."""
    why_not: str | None
    """Why nothing is claimed at all."""
    target: Place | None
    """Where 62.5 % lies, by the interval of the saving."""
    detectable: float | None
    """The least saving that an experiment of this size and scatter finds four times in five."""
    views: tuple[Saving, ...]
    decomposition: tuple[Effect, ...]
    against_concise: Against | None
    eta: tuple[EtaOf, ...]
    prediction: Prediction | None
    rebound: Rebound | None
    categories: tuple[CategoryOf, ...]
    sentences: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ArmSum:
    """What an arm came to in a part, by itself; the control too."""

    arm: str
    arm_hash: str
    blocks: int
    conversations: int
    correct: int
    accuracy: float | None
    energy_j: float | None
    """From counters; None where blocks are of all arms."""
    joules_per_correct: float | None
    output_tokens: int
    prompt_tokens: int
    failures: Mapping[str, int]
    """Kind → conversations."""


@dataclass(frozen=True, slots=True)
class ExcludedBlock:
    part: Part
    block: int
    arm: str
    reason: str


@dataclass(frozen=True, slots=True)
class PartFinding:
    part: Part
    headline: bool
    arms: tuple[ArmSum, ...]
    findings: tuple[ArmFinding, ...]
    """Of all arms but the control."""
    excluded: tuple[ExcludedBlock, ...]
    sentences: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Analysis:
    plan_hash: str
    suite: str
    suite_hash: str
    model: str
    control: str
    source: Source | None
    """The weakest of all rows; None without any."""
    confidence: float
    margin: float
    parts: tuple[PartFinding, ...]
    sentences: tuple[str, ...]
    """The verdict: of the headline parts, for readers who read nothing else."""

    def to_json(self) -> str:
        """One object with sorted keys: the same analysis is the same text."""
        return json.dumps(asdict(self), sort_keys=True, ensure_ascii=False, indent=1, allow_nan=False)
