"""Every figure of a night: its unit, and which way is better."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

Better = Literal["lower", "higher"]


@dataclass(frozen=True, slots=True)
class Metric:
    unit: str
    better: Better | None
    """None where neither is: it explains others, and no verdict is on it."""
    words: str


METRICS: Final[Mapping[str, Metric]] = {
    # by the counters: idle power and all
    "j_per_token": Metric("J/token", "lower", "the counters' joules per output token"),
    "wh_per_token": Metric("Wh/token", "lower", "the same in watt-hours"),
    "j_per_question": Metric("J/question", "lower", "the counters' joules per question that was answered"),
    "j_per_correct_answer": Metric("J/correct answer", "lower", "the counters' joules per answer that is correct"),
    "tokens_per_s_per_w": Metric("token/s/W", "higher", "output tokens per second and watt"),
    "goodput_per_w": Metric("request/s/W", "higher", "requests within the limits of TTFT and ITL, per second and watt"),
    "power_w": Metric("W", None, "mean power"),
    # attributed: what receipts say
    "j_per_prompt_token": Metric("J/token", "lower", "attributed joules of prompts, per prompt token"),
    "j_per_output_token": Metric("J/token", "lower", "attributed joules of outputs, per output token after the first"),
    "j_per_request": Metric("J/request", "lower", "attributed joules of a request, prompt and output"),
    # η, by each way of finding it
    "eta_lenient_at_most": Metric("1", "higher", "lenient η, at most: slack that is named in the answer"),
    "eta_deletion": Metric("1", "higher", "strict η of correct answers, by deletion"),
    "eta_task": Metric("1", "higher", "η by the length that correct answers to the same task need"),
    "lexical_slack": Metric("1", "lower", "share of the text that word lists call slack, at least"),
    # how fast
    "tokens_per_s": Metric("token/s", "higher", "output tokens per second"),
    "requests_per_s": Metric("request/s", None, "requests that ended, per second"),
    "ttft_p50_s": Metric("s", "lower", "time to the first token, median"),
    "ttft_p99_s": Metric("s", "lower", "time to the first token, 99th percentile"),
    "itl_p50_s": Metric("s", "lower", "time between tokens, median"),
    "itl_p99_s": Metric("s", "lower", "time between tokens, 99th percentile"),
    "mfu": Metric("1", "higher", "model FLOPs per second, of what the boards can do"),
    # how good
    "accuracy": Metric("1", "higher", "share of answers that are correct"),
    "failures": Metric("1", "lower", "share of requests that failed"),
    # the meter's own
    "eta_reliability": Metric(
        "1", "higher", "squared correlation of η in answers with what audits found, within the arm"
    ),
    "unattributed_share": Metric("1", "lower", "joules that are nobody's, of all"),
    "coefficient_idle_w": Metric("W", None, "p0: the board with the model loaded and nothing running"),
    "coefficient_pass_j": Metric("J/step", None, "c: one pass over the weights"),
    "coefficient_prefill_j": Metric("J/token", None, "a: a prefill token"),
    "coefficient_decode_j": Metric("J/token", None, "b: a decode token"),
    "coefficient_context_j": Metric("J/(token·step)", None, "d: an attended token and step"),
    # the comparison of arms
    "saving": Metric("1", "higher", "joules per correct answer that the arm saves against the control"),
}


def series(stage: str, metric: str) -> str:
    """What the figure is called in a history."""
    return f"{stage} {metric}"
