"""Labels: the closed sets that their values come from, and what they mean."""

from collections.abc import Mapping
from typing import Literal

from etameter.slack.labels import LENIENT_SLACK, NAMES, UNTOLD, WASTES
from etameter.slack.reading import CAUSES as UNREAD_CAUSES

OTHER = "other"
UNLABELLED = "unlabelled"
"""The arm of a request that named none."""

SENSOR_CAUSES = ("readings_missing", "reset", "stale", "implausible")
"""Why the energy of an interval isn't known well enough to be attributed."""
CAUSES = frozenset({"idle", "engine_overhead", "steps_missing", "model_residual", *SENSOR_CAUSES})
FINISH_REASONS = frozenset({"stop", "length", "abort", "error", "repetition"})
CATEGORIES = tuple(NAMES[label] for label in (*LENIENT_SLACK, UNTOLD))
"""Of slack that the fast tier may find in what an answer says."""
BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128, 256)
"""Batches within a step of these are taken for alike."""
AuditKind = Literal["deep", "task"]
Outcome = Literal["agreed", "judged", "correct", "wrong", "failed"]
Tier = Literal["fast", "deep", "fast_task"]
View = Literal["strict", "lenient"]
"""Of η itself."""
AUDITS: Mapping[AuditKind, tuple[Outcome, ...]] = {
    "deep": ("agreed", "judged", "failed"),
    "task": ("correct", "wrong", "failed"),
}
"""What may come of an audit, by its kind."""
DROPPED = ("full", "old")
"""Why a response that was to be judged never was."""

LABELS: Mapping[str, str] = {
    "arm": f"The arm that the request named, if it is configured; `{UNLABELLED}` if it named none; else `{OTHER}`.",
    "batch": "How many requests ran together, on the mean over an interval's steps: at least so many, and fewer than the next value, of "
    + ", ".join(f"`{least}`" for least in BATCHES)
    + ".",
    "board": "What the device calls itself, as `NVIDIA H100 80GB HBM3`.",
    "bound": "`least`: what is so beyond doubt; `known`: what is most likely, and that requests are known to have taken; `most`: what may be, with joules of "
    "which it isn't known whose they were.",
    "budget": "As the configuration names it.",
    "category": "What kind of slack. By what an answer says, where texts are classified: "
    + ", ".join(f"`{category}`" for category in CATEGORIES)
    + ". By what became of it: "
    + ", ".join(f"`{waste}`" for waste in WASTES)
    + ". A joule or token is counted in one category only, so that they may be summed: a lost answer is counted whole, less what was counted before "
    "that was known, and joules of rejected drafts in no other category.",
    "cause": "Why: for joules "
    + ", ".join(f"`{cause}`" for cause in sorted(CAUSES))
    + "; for responses that aren't classified "
    + ", ".join(f"`{cause}`" for cause in sorted(UNREAD_CAUSES))
    + "; for responses that were to be judged `full`, too many waited, or `old`, they waited too long; for failed reads the driver's word.",
    "coefficient": "`p0_w` W; `c_j` J per step; `a_j` J per prefill token; `a2_j` J per pair of prefill tokens; `b_j` J per decode token; `d_j` J per "
    "attended token; `encoder_j` J per token of the encoder; `adapter_j` J per adapter and step; `experts_j` J for all experts.",
    "counter": "`nvml`; `power`: NVML's power readings, integrated; `rapl`; `simulated`.",
    "currency": "Of the configured price, by its code of three letters.",
    "domain": "`package`: CPU packages; `dram`: their memory.",
    "engine": "Name of the inference engine.",
    "factor": "`pue`: facility energy per energy of the board; `price`: of a kWh; `intensity`: CO2 equivalent of a kWh.",
    "finish_reason": ", ".join(f"`{reason}`" for reason in sorted(FINISH_REASONS)) + f"; else `{OTHER}`.",
    "gpu_uuid": "The device, as its driver names it; `RAPL-package-0` for a CPU package.",
    "kind": "Of tokens, `prompt`: computed in prefill, again after a preemption; `cached`: taken from the prefix cache instead; `output`: generated. "
    "Of audits, `deep`: a judge read an answer of live traffic; `task`: a task with a checker was asked.",
    "machine": "Another machine of an engine, as the configuration names it; empty for the meter's own. A scraper may say which that is, as `node`.",
    "method": "`fast`: slack that shows by its wording and place, and nothing else, is called slack; `deep`: a judge has read the answer.",
    "need": "`required`: asked for, or needed to use what was; `optional`: informs, but nobody asked; `slack`: neither; `unclassified`: the judge "
    "contradicts itself, or its label can't be read.",
    "model_name": f"The served model; else `{OTHER}`.",
    "outcome": "Of `deep`, `agreed`: the judge found what the fast method had; `judged`: it found otherwise. Of `task`, `correct` or `wrong`, as its "
    "checker says. `failed`: nothing came of it. Of pushes over OTLP, `taken`; `lost`: the receiver was away or refused; `skipped`: the one before took so long.",
    "paid_by": "`requests`: split equally among those that were worked on at the time; `nobody`: there was none.",
    "phase": "`prompt`: steps that prefilled the request; `output`: steps that decoded it.",
    "source": "`measured`; `estimated` from power; `shared` with neighbours on the board; `simulated`. Keep it in every `by()`.",
    "statistic": "`agreement`: squared correlation with what audits found, within the arm; `bias`: mean of what the tier says less what they found; "
    "`slope`: of what they found over what the tier says, 1 where a difference of η means what it says.",
    "tier": "`fast`: the fast method's bound on lenient η against what a judge finds in the same responses. `deep`: the judge's strict η against η_task of correct "
    "answers to fresh tasks. `fast_task`: the fast method's bound against that.",
    "unit": "That the factor is in.",
    "version": "Of etameter.",
    "window": "Of the calendar, in UTC: `hour`, `day`, `week` or `month`.",
    "view": "`lenient_bound`: lenient η is at most this; `strict`, `lenient`: η itself, absent where the method gives a bound only.",
}
