"""Requests and their tokens: how many, how much each took, and how long."""

from etameter.export.catalogue.declaration import Declaration

WINDOW_S = 60
"""Wh per token is stated over this many seconds."""
JOULE_BUCKETS = (*(step * 10.0**power for power in range(4) for step in (1.0, 2.0, 5.0)), 1e4)
"""Three to a decade."""
WH_PER_TOKEN_BUCKETS = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3)
"""Published figures of an H100 are 2e-5 to 1e-3."""
ERROR_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
FIRST_TOKEN_BUCKETS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
INTER_TOKEN_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)

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
REQUESTS = Declaration(
    "etameter_requests_total", "counter", "requests", ("model_name", "arm", "finish_reason"), "Requests that finished."
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
    ("model_name", "source"),
    "Output energy of a finished request per output token after the first. Of an arm, counters tell the mean.",
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
