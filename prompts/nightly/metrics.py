"""Every figure of a night: its unit, which way is better, and what its interval is from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

Better = Literal["lower", "higher"]


@dataclass(frozen=True, slots=True)
class Metric:
    unit: str
    better: Better | None
    """None where neither is: it explains others, and no verdict is on it."""
    over: Literal["windows", "requests", "run"]
    """What the interval is resampled over."""
    words: str


METRICS: Final[Mapping[str, Metric]] = {
    # by the counters: idle power and all
    "j_per_token": Metric("J/token", "lower", "windows", "the counters' joules per output token"),
    "wh_per_token": Metric("Wh/token", "lower", "windows", "the same in watt-hours"),
    "j_per_question": Metric("J/question", "lower", "windows", "the counters' joules per question that was answered"),
    "j_per_correct_answer": Metric(
        "J/correct answer", "lower", "windows", "the counters' joules per answer that is correct"
    ),
    "tokens_per_s_per_w": Metric("token/s/W", "higher", "windows", "output tokens per second and watt"),
    "goodput_per_w": Metric(
        "request/s/W", "higher", "windows", "requests within the limits of TTFT and ITL, per second and watt"
    ),
    "power_w": Metric("W", None, "windows", "mean power"),
    # attributed: what receipts say
    "j_per_prompt_token": Metric("J/token", "lower", "requests", "attributed joules of prompts, per prompt token"),
    "j_per_output_token": Metric(
        "J/token", "lower", "requests", "attributed joules of outputs, per output token after the first"
    ),
    "j_per_request": Metric("J/request", "lower", "requests", "attributed joules of a request, prompt and output"),
    # η, by each way of finding it
    "eta_lenient_at_most": Metric("1", "higher", "requests", "lenient η, at most: slack that is named in the answer"),
    "eta_deletion": Metric("1", "higher", "requests", "strict η of correct answers, by deletion"),
    "eta_task": Metric("1", "higher", "requests", "η by the length that correct answers to the same task need"),
    "lexical_slack": Metric("1", "lower", "requests", "share of the text that word lists call slack, at least"),
    # how fast
    "tokens_per_s": Metric("token/s", "higher", "windows", "output tokens per second"),
    "requests_per_s": Metric("request/s", None, "windows", "requests that ended, per second"),
    "ttft_p50_s": Metric("s", "lower", "requests", "time to the first token, median"),
    "ttft_p99_s": Metric("s", "lower", "requests", "time to the first token, 99th percentile"),
    "itl_p50_s": Metric("s", "lower", "requests", "time between tokens, median"),
    "itl_p99_s": Metric("s", "lower", "requests", "time between tokens, 99th percentile"),
    "mfu": Metric("1", "higher", "windows", "model FLOPs per second, of what the boards can do"),
    # how good
    "accuracy": Metric("1", "higher", "requests", "share of answers that are correct"),
    "failures": Metric("1", "lower", "windows", "share of requests that failed"),
    # the meter's own
    "unattributed_share": Metric("1", "lower", "windows", "joules that are nobody's, of all"),
    "coefficient_idle_w": Metric("W", None, "run", "p0: the board with the model loaded and nothing running"),
    "coefficient_pass_j": Metric("J/step", None, "run", "c: one pass over the weights"),
    "coefficient_prefill_j": Metric("J/token", None, "run", "a: a prefill token"),
    "coefficient_decode_j": Metric("J/token", None, "run", "b: a decode token"),
    "coefficient_context_j": Metric("J/(token·step)", None, "run", "d: an attended token and step"),
    # the comparison of arms
    "saving": Metric("1", "higher", "run", "joules per correct answer that the arm saves against the control"),
}


def series(stage: str, metric: str) -> str:
    """What the figure is called in a history."""
    return f"{stage} {metric}"
