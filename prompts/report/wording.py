"""Figures as they are written, and what the words on the page mean."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from etameter.slack.labels import MEANINGS, NAMES

from .markup import Html, join, tag
from .record import SIMULATED

UNKNOWN: Final = "–"

PARTS: Final[Mapping[str, str]] = {
    "rate": "fixed arrival rate",
    "concurrency": "fixed concurrency",
    "closed-loop": "one at a time",
    "mixed": "arms mixed",
}
ABOUT_PARTS: Final[Mapping[str, str]] = {
    "rate": (
        "Headline. One arm a block, conversations arrive at a fixed rate: the total effect, with what shorter answers do to the "
        "batches. Joules are what the counter grew by."
    ),
    "concurrency": (
        "Headline. One arm a block, always the same number of conversations at once: the direct effect. Joules are what the counter grew by."
    ),
    "closed-loop": "Secondary. One conversation at a time, one arm a block: no batching at all.",
    "mixed": "Secondary. All arms at once on the same server: their joules are attributed, not measured apart.",
}
METHODS: Final[Mapping[str, str]] = {
    "task": "η_task",
    "deletion": "η_deletion",
    "minimal": "η_minimal",
    "fast": "η_live (fast)",
    "lexical": "1 − lexical slack",
}
DEFINITIONS: Final[Mapping[str, str]] = {
    "arm": "A way of asking: a system prompt, a model and how its tokens are drawn. All arms are asked the same tasks.",
    "control": "The arm that the others are compared with.",
    "joules per correct answer": (
        "All joules of an arm, with its prompts, its wrong answers and its retries, over its correct answers. A cheap wrong answer makes it worse, not better."
    ),
    "saving": "The share of the control's joules per correct answer that an arm does without. Negative: it costs more.",
    "interval": "[low, high]: where the value would lie so often, were the experiment done again. Wide means: little is known.",
    "accuracy kept": "The share of correct answers is, with the stated confidence, not lower than the control's by more than the margin. The margin was set before the run.",
    "accuracy not shown": "It may or may not be kept: this run can't tell. Then nothing is claimed of energy either.",
    "too few": "Not enough blocks, prompts or correct answers for any statement.",
    "least detectable saving": "The least saving that a run of this size and scatter finds four times in five. Nothing found does not mean that nothing smaller is there.",
    "fully loaded, full, marginal": (
        "Fully loaded: what the counters grew by, idle power and all. Full: what is attributed to requests. Marginal: what would not have been spent without them."
    ),
    "62.5 %": "The saving that goes with η rising from 0.3 to 0.8, the claim under test: 1 − 0.3/0.8.",
    "concise": "An arm that says “Answer concisely.” and no more. What is not better than it is brevity.",
    "η": "The share of an answer's tokens that was required by what was asked. Each way of finding it answers another question; they are not mixed.",
    "at most": "An upper bound: what is not shown to be slack is not thereby required.",
    "reliability": "Squared correlation with η_task over prompts, within the arm: how far this way of finding η tells what η_task tells.",
    "decomposition": "How much of the ratio of joules per correct answer comes from the number of tokens, from joules per token, from accuracy, and from the arm's own prompt. The factors multiply to the ratio.",
    "rebound": "What is cheaper gets used more. The demand factor at which the saving is gone, and the elasticity of demand that leads there.",
    "block": "A time in which one arm is asked a set of tasks, until the last answer has come. Blocks of the arms take turns in random order.",
    "excluded": "Left out by a rule stated before the run: throttled, shared with others, or too many failures.",
    "source": "What a joule is worth: measured by a counter, estimated from power, shared with others, or simulated, which is no measurement of hardware.",
}
SLACK_MEANINGS: Final[Mapping[str, str]] = {NAMES[label]: meaning for label, meaning in MEANINGS.items()}


@dataclass(frozen=True, slots=True)
class Wording:
    """How figures of a run are written: each with the word where its joules are simulated, and with its exact value beneath."""

    simulated: bool

    def joules(self, value_j: float | None) -> Html:
        return self._energy(value_j, f"{_short(value_j)} J")

    def watts(self, value_w: float | None) -> Html:
        return self._energy(value_w, f"{_short(value_w)} W")

    def share(self, value: float | None, low: float | None = None, high: float | None = None) -> Html:
        """A share of joules, in percent with a sign that says which way."""
        return join(self._energy(value, percent(value)), interval(low, high))

    def factor(self, value: float | None) -> Html:
        """A ratio of joules."""
        return self._energy(value, "" if value is None else f"× {value:.3f}")

    def _energy(self, value: float | None, written: str) -> Html:
        if value is None:
            return Html(UNKNOWN)
        return join(exactly(value, written), Html(" "), tag("small", SIMULATED) if self.simulated else None)

    def sentence(self, text: str) -> str:
        """A sentence of a verdict; it carries the word."""
        return f"Simulated: {text}" if self.simulated and SIMULATED not in text.lower() else text


def exactly(value: float, written: str) -> Html:
    """A figure as people read it, over the value that it was made from."""
    return tag("data", written, value=repr(value))


def plain(value: float | None, form: str = ".3g", low: float | None = None, high: float | None = None) -> Html:
    """A figure that is no energy, with its interval where it has one."""
    if value is None:
        return Html(UNKNOWN)
    told, *ends = (
        exactly(each, format(each, form).replace("-", "−")) for each in (value, low, high) if each is not None
    )
    return told if low is None or high is None else join(told, _between(*ends))


def share_of_all(value: float | None, low: float | None = None, high: float | None = None) -> Html:
    """A share that is no energy, in percent."""
    return Html(UNKNOWN) if value is None else join(exactly(value, f"{100 * value:.1f} %"), interval(low, high))


def interval(low: float | None, high: float | None) -> Html | None:
    """Of shares, in percent."""
    if low is None or high is None:
        return None
    ends = [exactly(end, f"{100 * end:.1f}".replace("-", "−")) for end in (low, high)]
    return _between(*ends)


def _between(low: Html, high: Html) -> Html:
    return tag("span", " [", low, ", ", high, "]", class_="interval")


def percent(value: float | None) -> str:
    return UNKNOWN if value is None else f"{100 * value:+.1f} %".replace("-", "−")


def _short(value: float | None) -> str:
    if value is None:
        return UNKNOWN
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
