"""η against a task: how much longer an arm's outputs are than a short correct one has to be.

T* of a prompt is the 10th percentile of the lengths of its correct outputs, pooled over all arms. An arm's η_task is then

    Σ correct · min(T, T*) / Σ T          over its samples, T in output tokens, whatever they were spent on

A wrong answer has no required tokens, and its tokens stay below the line. T* is common to the arms, so that they can be compared
by it, and it belongs to the suite, the model, the pool of arms and K, the samples of a prompt under an arm: a `Reference` keeps
these together with it, and is meant to be kept. Where two arms are right equally often, and on the same prompts,
their η differ by little but their tokens.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass
from typing import Any

from etameter.errors import SampleError

PERCENTILE = 10
LEAST_SAMPLES = 8
LEAST_PROMPTS = 10
"""With fewer, how prompts scatter is not known well enough for an interval."""

_FORMAT = 1
_Z95 = 1.959964


@dataclass(frozen=True, slots=True)
class Sample:
    """One output to a prompt under an arm, or one conversation with all of its turns and retries."""

    prompt: str
    arm: str
    output_tokens: int
    correct: bool | None
    """None where the checker could not run."""
    energy_j: float | None = None
    """Of all of it, prompts too; None where it is not known."""
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Pool:
    """What the samples of a reference were taken from."""

    suite: str
    version: str
    hash: str
    """Of the suite's tasks."""
    model: str


@dataclass(frozen=True, slots=True)
class Reference:
    """T* of each prompt, frozen, with all that it depends on."""

    pool: Pool
    arms: tuple[str, ...]
    k: int
    """Samples of each prompt under each arm."""
    t_star: Mapping[str, int | None]
    """Prompt → tokens; None where no arm was ever right."""
    t_star_without: Mapping[str, Mapping[str, int | None]]
    """Arm that is left out of the pool → prompt → tokens."""
    not_run: tuple[str, ...]
    """Prompts that have no T* because a checker could not run."""

    def __str__(self) -> str:
        of = f"{self.pool.suite} {self.pool.version} ({self.pool.hash[:12]}), {self.pool.model}"
        return f"T* of {of}: p{PERCENTILE} of the correct outputs of {' + '.join(self.arms)}, K = {self.k}"

    def to_json(self) -> str:
        """One object, with sorted keys: the same reference is the same text."""
        return json.dumps({"format": _FORMAT, "percentile": PERCENTILE, **asdict(self)}, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> "Reference":
        """Raises SampleError where the text is no reference of this format."""
        try:
            told: dict[str, Any] = json.loads(text)
            if (told.pop("format"), told.pop("percentile")) != (_FORMAT, PERCENTILE):
                raise SampleError("this reference has another format or percentile", "make it anew from samples")
            pool = Pool(**told.pop("pool"))
            return Reference(
                pool=pool,
                arms=tuple(told.pop("arms")),
                not_run=tuple(told.pop("not_run")),
                t_star=_lengths(told.pop("t_star")),
                t_star_without={arm: _lengths(each) for arm, each in told.pop("t_star_without").items()},
                **told,
            )
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise SampleError(f"this is no reference ({error})", "give what Reference.to_json wrote") from error


@dataclass(frozen=True, slots=True)
class EtaTask:
    """What an arm's samples came to."""

    arm: str
    eta: float | None
    """None where there is no token."""
    half_width: float | None
    """Of the 95 % interval: prompts are drawn, T* is taken as known. None under ten prompts, or where nothing is correct."""
    without: Mapping[str, float | None]
    """Arm that is left out of the pool of T* → η. How much these differ is how much η owes to the choice of arms."""
    accuracy: float | None
    samples: int
    correct: int
    truncated: int
    not_run: int
    """Samples that count under no arm, because a checker of their prompt could not run."""
    output_tokens: int
    required_tokens: int
    joules_per_correct: float | None
    """All joules, of wrong answers too, over the correct answers; None where none is correct or a sample's energy is unknown."""


def percentile(lengths: Iterable[int], percent: int = PERCENTILE) -> int | None:
    """The least of the lengths that at least `percent` in a hundred do not exceed: one that did occur, never one in between."""
    ordered = sorted(lengths)
    if not ordered:
        return None
    return ordered[max(-(-len(ordered) * percent // 100), 1) - 1]


def refer(samples: Sequence[Sample], pool: Pool, least: int = LEAST_SAMPLES) -> Reference:
    """Freezes T* for every prompt of the samples.

    Raises:
        SampleError: a prompt has fewer than `least` samples under an arm, or not as many as under the others.
    """
    per_cell = Counter((sample.prompt, sample.arm) for sample in samples)
    prompts = tuple(dict.fromkeys(sample.prompt for sample in samples))
    arms = tuple(dict.fromkeys(sample.arm for sample in samples))
    for prompt in prompts:
        for arm in arms:
            if per_cell[prompt, arm] < least:
                raise SampleError(
                    f"prompt {prompt} has {per_cell[prompt, arm]} samples under arm {arm}", f"take {least} or more"
                )
    sizes = sorted(set(per_cell.values()))
    if len(sizes) > 1:
        raise SampleError(
            f"the samples of a prompt under an arm number from {sizes[0]} to {sizes[-1]}",
            "take as many of each, or an arm would weigh more in T* than another",
        )
    if not sizes:
        raise SampleError("there are no samples", f"take {least} or more of each prompt under each arm")
    not_run = tuple(dict.fromkeys(sample.prompt for sample in samples if sample.correct is None))
    right: defaultdict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        _refuse_negative(sample)
        if sample.correct:
            right[sample.prompt].append(sample)
    run = [prompt for prompt in prompts if prompt not in set(not_run)]

    def lengths(prompt: str, without: str | None) -> Iterable[int]:
        return (sample.output_tokens for sample in right[prompt] if sample.arm != without)

    return Reference(
        pool=pool,
        arms=arms,
        k=sizes[0],
        t_star={prompt: percentile(lengths(prompt, None)) for prompt in run},
        t_star_without={arm: {prompt: percentile(lengths(prompt, arm)) for prompt in run} for arm in arms},
        not_run=not_run,
    )


def score(samples: Iterable[Sample], reference: Reference) -> dict[str, EtaTask]:
    """η of each arm that has samples, by T* as it is frozen; the arms need not be those of the pool.

    An output that is correct where nobody of the pool was counts as required whole, since nothing shorter is known.

    Raises:
        SampleError: a sample is of a prompt that the reference does not know.
    """
    by_arm: defaultdict[str, list[Sample]] = defaultdict(list)
    not_run = set(reference.not_run)
    for sample in samples:
        _refuse_negative(sample)
        if sample.prompt not in reference.t_star and sample.prompt not in reference.not_run:
            raise SampleError(
                f"prompt {sample.prompt} has no T*", f"score samples of {reference.pool.suite} {reference.pool.version}"
            )
        by_arm[sample.arm].append(sample)
        if sample.correct is None:
            not_run.add(sample.prompt)
    return {arm: _scored(arm, of_arm, reference, not_run) for arm, of_arm in by_arm.items()}


def _scored(arm: str, samples: Sequence[Sample], reference: Reference, not_run: AbstractSet[str]) -> EtaTask:
    counted = [sample for sample in samples if sample.prompt not in not_run]
    correct = sum(bool(sample.correct) for sample in counted)
    parts = _parts(counted, reference.t_star)
    required, total = (sum(column) for column in zip(*parts.values(), strict=True)) if parts else (0, 0)
    energies = [sample.energy_j for sample in counted if sample.energy_j is not None]
    known = len(energies) == len(counted)
    return EtaTask(
        arm=arm,
        eta=required / total if total else None,
        half_width=half_width(list(parts.values())),
        without={left_out: _eta(_parts(counted, t_star)) for left_out, t_star in reference.t_star_without.items()},
        accuracy=correct / len(counted) if counted else None,
        samples=len(counted),
        correct=correct,
        truncated=sum(sample.truncated for sample in counted),
        not_run=len(samples) - len(counted),
        output_tokens=total,
        required_tokens=required,
        joules_per_correct=sum(energies) / correct if correct and known else None,
    )


def _parts(samples: Iterable[Sample], t_star: Mapping[str, int | None]) -> dict[str, tuple[int, int]]:
    """Required and output tokens of each prompt."""
    parts: dict[str, tuple[int, int]] = {}
    for sample in samples:
        required, total = parts.get(sample.prompt, (0, 0))
        limit = t_star[sample.prompt]
        if sample.correct:
            required += sample.output_tokens if limit is None else min(sample.output_tokens, limit)
        parts[sample.prompt] = required, total + sample.output_tokens
    return parts


def _eta(parts: Mapping[str, tuple[int, int]]) -> float | None:
    total = sum(tokens for _, tokens in parts.values())
    return sum(required for required, _ in parts.values()) / total if total else None


def half_width(parts: Sequence[tuple[float, float]]) -> float | None:
    """Of a ratio of sums over prompts (required and all tokens of each), by linearisation: samples of one prompt resemble each other, so a prompt is one draw."""
    total = sum(tokens for _, tokens in parts)
    required = sum(tokens for tokens, _ in parts)
    if len(parts) < LEAST_PROMPTS or not required:
        return None
    squares = sum((tokens - required / total * of) ** 2 for tokens, of in parts)
    return t95(len(parts) - 1) * math.sqrt(len(parts) / (len(parts) - 1) * squares) / total


def t95(degrees: int) -> float:
    """Student's 97.5th percentile, by its expansion around the normal one; off by less than .01 from nine degrees of freedom on."""
    z = _Z95
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)


def _lengths(told: Mapping[str, Any]) -> dict[str, int | None]:
    return {prompt: None if tokens is None else int(tokens) for prompt, tokens in told.items()}


def _refuse_negative(sample: Sample) -> None:
    if sample.output_tokens < 0:
        raise SampleError(
            f"a sample of prompt {sample.prompt} has {sample.output_tokens} output tokens", "count from 0"
        )
