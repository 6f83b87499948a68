"""What is said of each metric, once: the exposition and docs/metrics.md are made from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from etameter.slack.labels import LENIENT_SLACK, NAMES, UNTOLD, WASTES
from etameter.slack.reading import CAUSES as UNREAD_CAUSES

OTHER = "other"
UNLABELLED = "unlabelled"
"""The arm of a request that named none."""
WINDOW_S = 60
"""Wh per token is stated over this many seconds."""

SENSOR_CAUSES = ("readings_missing", "reset", "stale", "implausible")
"""Why the energy of an interval isn't known well enough to be attributed."""
CAUSES = frozenset({"idle", "engine_overhead", "steps_missing", "model_residual", *SENSOR_CAUSES})
FINISH_REASONS = frozenset({"stop", "length", "abort", "error", "repetition"})
CATEGORIES = tuple(NAMES[label] for label in (*LENIENT_SLACK, UNTOLD))
"""Of slack that the fast tier may find in what an answer says."""

BATCHES = (1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128, 256)
"""Batches within a step of these are taken for alike."""

AUDITS: Mapping[str, tuple[str, ...]] = {"deep": ("agreed", "judged", "failed"), "task": ("correct", "wrong", "failed")}
"""What may come of an audit, by its kind."""

LABELS: Mapping[str, str] = {
    "arm": f"The arm that the request named, if it is configured; `{UNLABELLED}` if it named none; else `{OTHER}`.",
    "batch": "How many requests ran together, on the mean over an interval's steps: at least so many, and fewer than the next value, of "
    + ", ".join(f"`{least}`" for least in BATCHES)
    + ".",
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
    + "; for failed reads the driver's word.",
    "coefficient": "`p0_w` W; `c_j` J per step; `a_j` J per prefill token; `a2_j` J per pair of prefill tokens; "
    "`b_j` J per decode token; `d_j` J per attended token.",
    "currency": "Of the configured price, by its code of three letters.",
    "domain": "`package`: CPU packages; `dram`: their memory.",
    "engine": "Name of the inference engine.",
    "factor": "`pue`: facility energy per energy of the board; `price`: of a kWh; `intensity`: CO2 equivalent of a kWh.",
    "finish_reason": ", ".join(f"`{reason}`" for reason in sorted(FINISH_REASONS)) + f"; else `{OTHER}`.",
    "gpu_uuid": "The device, as its driver names it; `RAPL-package-0` for a CPU package.",
    "kind": "Of tokens, `prompt`: computed in prefill, again after a preemption; `cached`: taken from the prefix cache instead; `output`: generated. "
    "Of audits, `deep`: a judge read an answer of live traffic; `task`: a task with a checker was asked.",
    "method": "`fast`: slack that shows by its wording and place, and nothing else, is called slack.",
    "need": "`required`: asked for, or needed to use what was; `optional`: informs, but nobody asked.",
    "model_name": f"The served model; else `{OTHER}`.",
    "outcome": "Of `deep`, `agreed`: the judge found what the fast method had; `judged`: it found otherwise. Of `task`, `correct` or `wrong`, as its "
    "checker says. `failed`: nothing came of it.",
    "paid_by": "`requests`: split equally among those that were worked on at the time; `nobody`: there was none.",
    "phase": "`prompt`: steps that prefilled the request; `output`: steps that decoded it.",
    "source": "`measured`; `estimated` from power; `shared` with neighbours on the board; `simulated`. Keep it in every `by()`.",
    "statistic": "`agreement`: correlation with what audits found, within the arm; `bias`: mean of what the tier says less what they found; `slope`: "
    "of what they found over what the tier says, 1 where a difference of η means what it says.",
    "tier": "`fast`, `deep`: by what method η was found.",
    "unit": "That the factor is in.",
    "view": "`lenient_bound`: lenient η is at most this; `strict`, `lenient`: η itself, absent where the method gives a bound only.",
}


@dataclass(frozen=True, slots=True)
class Declaration:
    """A metric: all that is said of it anywhere."""

    name: str
    type: Literal["counter", "gauge", "histogram"]
    unit: str
    labels: tuple[str, ...]
    meaning: str
    buckets: tuple[float, ...] = ()


JOULE_BUCKETS = (*(step * 10.0**power for power in range(4) for step in (1.0, 2.0, 5.0)), 1e4)
"""Three to a decade."""
WH_PER_TOKEN_BUCKETS = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3)
"""Published figures of an H100 are 2e-5 to 1e-3."""
ERROR_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
FIRST_TOKEN_BUCKETS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
INTER_TOKEN_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)

GPU_ENERGY = Declaration(
    "etameter_gpu_energy_joules_total",
    "counter",
    "joules",
    ("gpu_uuid", "source"),
    "Energy that the device's counter has published, over settled intervals.",
)
ENERGY = Declaration(
    "etameter_energy_joules_total",
    "counter",
    "joules",
    ("model_name", "arm", "phase", "source"),
    "Energy attributed to requests.",
)
UNASSIGNED = Declaration(
    "etameter_unassigned_joules_total",
    "counter",
    "joules",
    ("gpu_uuid", "cause", "source"),
    "Energy that no request pays, by cause.",
)
COST = Declaration(
    "etameter_cost_total",
    "counter",
    "by currency",
    ("currency", "model_name", "arm", "phase", "source"),
    "Price of the energy attributed to requests, with the building's share where a PUE is configured. Absent unless a price is.",
)
CO2E = Declaration(
    "etameter_co2e_grams_total",
    "counter",
    "grams",
    ("model_name", "arm", "phase", "source"),
    "CO2 equivalent of the energy attributed to requests, with the building's share where a PUE is configured. Absent unless a country or a carbon "
    "intensity is.",
)
FOOTPRINT_FACTOR = Declaration(
    "etameter_footprint_factor",
    "gauge",
    "by factor",
    ("factor", "unit"),
    "What joules are multiplied by. Absent unless configured.",
)
HOST_BUBBLE = Declaration(
    "etameter_host_bubble_joules_total",
    "counter",
    "joules",
    ("gpu_uuid", "source"),
    "The part of the attributed energy that was paid for gaps under 50 ms between steps.",
)
BALANCE_RESIDUAL = Declaration(
    "etameter_balance_residual_joules_total",
    "counter",
    "joules",
    ("gpu_uuid", "source"),
    "Sum of |measured - attributed - unassigned| over settled intervals: rounding, or a bug.",
)
HOST_ENERGY = Declaration(
    "etameter_host_energy_joules_total",
    "counter",
    "joules",
    ("domain", "paid_by", "source"),
    "Energy of the host's CPU packages and DRAM by RAPL, whatever runs on them: beside the GPUs', never part of it. Absent where it can't be read.",
)
TOKENS = Declaration(
    "etameter_tokens_total",
    "counter",
    "tokens",
    ("kind", "model_name", "arm"),
    "Tokens of requests, counted with the interval that settles their energy.",
)
FIRST_TOKENS = Declaration(
    "etameter_first_tokens_total",
    "counter",
    "tokens",
    ("model_name", "arm"),
    "Output tokens that fell out of a prefill step and carry no output energy; "
    'subtract them from kind="output" before dividing output energy by it.',
)
BATCH_ENERGY = Declaration(
    "etameter_batch_output_joules_total",
    "counter",
    "joules",
    ("model_name", "arm", "batch", "source"),
    "Output energy attributed to requests, by how many ran together. More at once make each token cheaper: compare at like batch.",
)
BATCH_TOKENS = Declaration(
    "etameter_batch_output_tokens_total",
    "counter",
    "tokens",
    ("model_name", "arm", "batch"),
    "Output tokens after the first of each sequence: what to divide `etameter_batch_output_joules_total` by.",
)
WH_PER_TOKEN = Declaration(
    "etameter_wh_per_token",
    "gauge",
    "watt hours per token",
    ("kind", "model_name", "arm", "source"),
    f'Attributed energy per token over the last {WINDOW_S} s: kind="prompt" per computed prompt token, '
    'kind="output" per output token after the first. Absent without tokens.',
)
REQUEST_ENERGY = Declaration(
    "etameter_request_energy_joules",
    "histogram",
    "joules",
    ("model_name", "arm", "source"),
    "Energy of finished requests, when it is settled; exemplars carry the public request id.",
    JOULE_BUCKETS,
)
REQUEST_WH_PER_TOKEN = Declaration(
    "etameter_request_wh_per_output_token",
    "histogram",
    "watt hours per token",
    ("model_name", "arm", "source"),
    "Output energy of a finished request per output token after the first.",
    WH_PER_TOKEN_BUCKETS,
)
REQUEST_ERROR = Declaration(
    "etameter_request_energy_error_ratio",
    "histogram",
    "ratio",
    ("model_name", "source"),
    "Half-width of the 95 % interval of a finished request's energy, as a share of it.",
    ERROR_BUCKETS,
)
FIRST_TOKEN = Declaration(
    "etameter_time_to_first_token_seconds",
    "histogram",
    "seconds",
    ("model_name",),
    "From a request's arrival at the engine to the end of the step that brought its first token.",
    FIRST_TOKEN_BUCKETS,
)
INTER_TOKEN = Declaration(
    "etameter_inter_token_latency_seconds",
    "histogram",
    "seconds",
    ("model_name",),
    "Mean time between the output tokens of a finished request.",
    INTER_TOKEN_BUCKETS,
)
REQUESTS = Declaration(
    "etameter_requests_total", "counter", "requests", ("model_name", "arm", "finish_reason"), "Requests that finished."
)
POWER = Declaration(
    "etameter_gpu_power_watts",
    "gauge",
    "watts",
    ("gpu_uuid", "source"),
    "Mean power over the last settled interval. Absent when it isn't known.",
)
COST_COEFFICIENT = Declaration(
    "etameter_cost_coefficient",
    "gauge",
    "by coefficient",
    ("gpu_uuid", "coefficient"),
    "Fitted cost of a step's parts. Absent before the first fit.",
)
COST_STANDARD_ERROR = Declaration(
    "etameter_cost_coefficient_standard_error",
    "gauge",
    "by coefficient",
    ("gpu_uuid", "coefficient"),
    "Standard error of `etameter_cost_coefficient`. Absent before the first fit.",
)
COST_UNIDENTIFIED = Declaration(
    "etameter_cost_coefficient_unidentified",
    "gauge",
    "0 or 1",
    ("gpu_uuid", "coefficient"),
    "1 where the load so far can't tell the coefficient: it is mostly the first guess. Absent before the first fit.",
)
COST_RESIDUAL = Declaration(
    "etameter_cost_residual_ratio",
    "gauge",
    "ratio",
    ("gpu_uuid",),
    "Sum of |measured - fitted| over the sum of measured energy, of the intervals with work that the fit rests on. Absent before the first fit.",
)
LAG = Declaration(
    "etameter_gpu_energy_lag_seconds",
    "gauge",
    "seconds",
    ("gpu_uuid",),
    "How late the device publishes what was spent, as fitted. Absent before the first fit.",
)
LAG_ERROR = Declaration(
    "etameter_gpu_energy_lag_error_seconds",
    "gauge",
    "seconds",
    ("gpu_uuid",),
    "How wrong the lag may be: a steady load doesn't tell it. Absent before the first fit.",
)
UPDATE_PERIOD = Declaration(
    "etameter_gpu_energy_update_period_seconds",
    "gauge",
    "seconds",
    ("gpu_uuid",),
    "How often the device publishes its counter, as learned. Absent until it is known.",
)
COUNTER_RESETS = Declaration(
    "etameter_gpu_energy_resets_total", "counter", "resets", ("gpu_uuid",), "Decreases of the device's counter."
)
COUNTER_EDGES = Declaration(
    "etameter_gpu_energy_edges_total",
    "counter",
    "edges",
    ("gpu_uuid",),
    "Changes of the device's counter that were seen.",
)
READ_FAILURES = Declaration(
    "etameter_gpu_energy_read_failures_total",
    "counter",
    "reads",
    ("gpu_uuid", "cause"),
    "Reads of the counter that failed.",
)
MISSED_EDGES = Declaration(
    "etameter_gpu_energy_missed_edges_total",
    "counter",
    "edges",
    ("gpu_uuid",),
    "Updates of the device's counter that came while nobody looked: their time is known less well.",
)
THROTTLED = Declaration(
    "etameter_gpu_throttled",
    "gauge",
    "0 or 1",
    ("gpu_uuid",),
    "1 while the device is held back by heat or a power brake, not merely at its power cap. Absent where it doesn't tell.",
)
NEIGHBOURS = Declaration(
    "etameter_gpu_neighbours",
    "gauge",
    "processes",
    ("gpu_uuid",),
    "Processes on the device that aren't the engine's. Absent where it can't be told, as inside of most containers.",
)
SAMPLER_POLLS = Declaration("etameter_sampler_polls_total", "counter", "polls", (), "Reads of counters.")
SAMPLER_MISSED = Declaration(
    "etameter_sampler_missed_polls_total",
    "counter",
    "polls",
    (),
    "Reads that would have had time while one was late or took long.",
)
SAMPLER_LATENESS = Declaration(
    "etameter_sampler_lateness_seconds_total",
    "counter",
    "seconds",
    (),
    "Sum over all reads of start minus planned start.",
)
SAMPLER_CPU = Declaration(
    "etameter_sampler_cpu_seconds_total", "counter", "seconds", (), "Processor time that reading the counters takes."
)
SAMPLER_DROPPED = Declaration(
    "etameter_sampler_dropped_edges_total", "counter", "edges", (), "Edges and failures lost because nobody took them."
)
SLACK_ENERGY = Declaration(
    "etameter_slack_joules_total",
    "counter",
    "joules",
    ("category", "model_name", "arm", "source"),
    "Output energy that was slack, each joule once; counted when the request is settled, and as more is known of it. Categories of what answers say "
    'are shares of `etameter_classified_joules_total`, the others of etameter_energy_joules_total{phase="output"}.',
)
SLACK_MARGINAL_ENERGY = Declaration(
    "etameter_slack_marginal_joules_total",
    "counter",
    "joules",
    ("category", "model_name", "arm", "source"),
    "Of `etameter_slack_joules_total`, what would not have been spent without it: the share of its requests' marginal energy. Zero for `draft`, of "
    "which it isn't known.",
)
SLACK_TOKENS = Declaration(
    "etameter_slack_tokens_total",
    "counter",
    "tokens",
    ("category", "model_name", "arm"),
    "Output tokens that were slack, each once. Rejected drafts are no output tokens.",
)
NEEDED_ENERGY = Declaration(
    "etameter_needed_joules_total",
    "counter",
    "joules",
    ("need", "model_name", "arm", "source"),
    "Output energy of what was found to be required or optional. Absent where the method finds only slack, as `fast` does.",
)
NEEDED_TOKENS = Declaration(
    "etameter_needed_tokens_total",
    "counter",
    "tokens",
    ("need", "model_name", "arm"),
    "Output tokens that were found to be required or optional. Absent where the method finds only slack, as `fast` does.",
)
CLASSIFIED_ENERGY = Declaration(
    "etameter_classified_joules_total",
    "counter",
    "joules",
    ("model_name", "arm", "source"),
    "Output energy of the responses in which slack was looked for, lost ones among them: what to divide categories of what answers say by.",
)
CLASSIFIED_TOKENS = Declaration(
    "etameter_classified_tokens_total",
    "counter",
    "tokens",
    ("model_name", "arm"),
    "Output tokens of the responses in which slack was looked for, lost ones among them: what to divide categories of what answers say by.",
)
ETA_BOUND_TOKENS = Declaration(
    "etameter_eta_bound_tokens_total",
    "counter",
    "tokens",
    ("model_name", "arm"),
    "Output tokens of classified responses that may have been required or optional: over `etameter_classified_tokens_total` it bounds lenient η.",
)
UNCLASSIFIED = Declaration(
    "etameter_unclassified_responses_total",
    "counter",
    "responses",
    ("cause",),
    "Responses that the server told the meter of, and that could not be classified.",
)
ETA = Declaration(
    "etameter_eta_ratio",
    "gauge",
    "ratio",
    ("view", "method", "model_name", "arm"),
    f"η of the responses that were classified and settled in the last {WINDOW_S} s, by token. Absent without any.",
)
AUDITS_DONE = Declaration(
    "etameter_audits_total",
    "counter",
    "audits",
    ("kind", "outcome", "model_name", "arm", "source"),
    "Audits of η that were made, by what came of them. Absent until one was.",
)
AUDIT_ENERGY = Declaration(
    "etameter_audit_joules_total",
    "counter",
    "joules",
    ("kind", "model_name", "arm", "source"),
    'Energy that audits took, by the arm that was looked at: of the judge\'s answers, or of the answers to tasks. It is part of etameter_energy_joules_total{arm="audit"}.',
)
AUDIT_ANSWERS = Declaration(
    "etameter_audit_answers_total",
    "counter",
    "answers",
    ("model_name", "arm", "source"),
    "Answers to tasks that were checked.",
)
AUDIT_CORRECT = Declaration(
    "etameter_audit_correct_answers_total",
    "counter",
    "answers",
    ("model_name", "arm", "source"),
    'Answers to tasks that their checkers found to be correct: what to divide etameter_audit_joules_total{kind="task"} by.',
)
RELIABILITY = Declaration(
    "etameter_eta_reliability",
    "gauge",
    "by statistic",
    ("tier", "statistic", "model_name", "arm"),
    "How far η is to be trusted, by what audits found. Absent before there are enough of them.",
)
RELIABLE = Declaration(
    "etameter_eta_reliable",
    "gauge",
    "0 or 1",
    ("model_name", "arm"),
    "0 where audits found η to be less reliable than may be published. Absent before there are enough of them.",
)
RING_LOST = Declaration(
    "etameter_ring_lost_records_total",
    "counter",
    "records",
    ("engine",),
    "Records of an engine's steps that were overwritten before they were read.",
)
RING_TORN = Declaration(
    "etameter_ring_torn_records_total", "counter", "records", ("engine",), "Records that were damaged when read."
)
SOCKET_DROPPED = Declaration(
    "etameter_socket_dropped_messages_total",
    "counter",
    "messages",
    (),
    "Messages between the middleware and the meter that were dropped.",
)
LISTENERS_DROPPED = Declaration(
    "etameter_page_listeners_dropped_total",
    "counter",
    "listeners",
    (),
    "Listeners to `/events`, such as the live page, that were too slow and were hung up on.",
)
LEDGER_DROPPED = Declaration(
    "etameter_ledger_dropped_findings_total",
    "counter",
    "findings",
    (),
    "What was found of answers, that is their slack or their loss, and is in no ledger because too much of it waited while the ledger could not be written.",
)

CATALOGUE: tuple[Declaration, ...] = (
    GPU_ENERGY,
    ENERGY,
    COST,
    CO2E,
    FOOTPRINT_FACTOR,
    UNASSIGNED,
    HOST_BUBBLE,
    BALANCE_RESIDUAL,
    HOST_ENERGY,
    TOKENS,
    FIRST_TOKENS,
    BATCH_ENERGY,
    BATCH_TOKENS,
    WH_PER_TOKEN,
    REQUEST_ENERGY,
    REQUEST_WH_PER_TOKEN,
    REQUEST_ERROR,
    FIRST_TOKEN,
    INTER_TOKEN,
    REQUESTS,
    POWER,
    COST_COEFFICIENT,
    COST_STANDARD_ERROR,
    COST_UNIDENTIFIED,
    COST_RESIDUAL,
    LAG,
    LAG_ERROR,
    UPDATE_PERIOD,
    COUNTER_RESETS,
    COUNTER_EDGES,
    READ_FAILURES,
    MISSED_EDGES,
    THROTTLED,
    NEIGHBOURS,
    SAMPLER_POLLS,
    SAMPLER_MISSED,
    SAMPLER_LATENESS,
    SAMPLER_CPU,
    SAMPLER_DROPPED,
    SLACK_ENERGY,
    SLACK_MARGINAL_ENERGY,
    SLACK_TOKENS,
    NEEDED_ENERGY,
    NEEDED_TOKENS,
    CLASSIFIED_ENERGY,
    CLASSIFIED_TOKENS,
    ETA_BOUND_TOKENS,
    UNCLASSIFIED,
    ETA,
    AUDITS_DONE,
    AUDIT_ENERGY,
    AUDIT_ANSWERS,
    AUDIT_CORRECT,
    RELIABILITY,
    RELIABLE,
    RING_LOST,
    RING_TORN,
    SOCKET_DROPPED,
    LISTENERS_DROPPED,
    LEDGER_DROPPED,
)
