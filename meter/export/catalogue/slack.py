"""What of the output was needed, and how far that is to be trusted."""

from etameter.export.catalogue.declaration import Declaration
from etameter.export.catalogue.requests import WINDOW_S

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
    ("model_name", "arm", "source"),
    "Of `etameter_slack_joules_total`, what would not have been spent without it: the share of its requests' marginal energy. Of rejected drafts it "
    "isn't known, and nothing is counted.",
)
SLACK_TOKENS = Declaration(
    "etameter_slack_tokens_total",
    "counter",
    "tokens",
    ("model_name", "arm"),
    "Output tokens that were slack, each once; what categories they are of, joules tell. Rejected drafts are no output tokens.",
)
NEEDED_ENERGY = Declaration(
    "etameter_needed_joules_total",
    "counter",
    "joules",
    ("need", "model_name", "arm", "source"),
    "Output energy of the responses that a judge has read, each joule under one need. Absent until one has.",
)
NEEDED_TOKENS = Declaration(
    "etameter_needed_tokens_total",
    "counter",
    "tokens",
    ("need", "model_name", "arm"),
    "Output tokens of the responses that a judge has read, each under one need. Absent until one has.",
)
CLASSIFIED_ENERGY = Declaration(
    "etameter_classified_joules_total",
    "counter",
    "joules",
    ("model_name", "arm", "source"),
    "Output energy of the responses in which the fast method looked for slack, lost ones among them: what to divide categories of what answers say by.",
)
CLASSIFIED_TOKENS = Declaration(
    "etameter_classified_tokens_total",
    "counter",
    "tokens",
    ("model_name", "arm"),
    "Output tokens of the responses in which the fast method looked for slack, lost ones among them: what to divide categories of what answers say by.",
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
    f'η by token. method="fast": of the responses that were classified and settled in the last {WINDOW_S} s. method="deep": of those that were judged last, '
    "512 of each arm at most. Absent without any.",
)
ETA_HALF_WIDTH = Declaration(
    "etameter_eta_half_width_ratio",
    "gauge",
    "ratio",
    ("view", "method", "model_name", "arm"),
    "Half-width of the 95 % interval of `etameter_eta_ratio` where that rests on a sample of responses, by the sampling alone. Absent under ten of them.",
)
AUDITS_DROPPED = Declaration(
    "etameter_audit_samples_dropped_total",
    "counter",
    "responses",
    ("cause",),
    "Responses that were sampled to be judged and never were, because the server had no idle time for that, or audits had had their share of joules.",
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
    "Answers to tasks that were checked, of which it is known what they took.",
)
AUDIT_CORRECT = Declaration(
    "etameter_audit_correct_answers_total",
    "counter",
    "answers",
    ("model_name", "arm", "source"),
    'Of `etameter_audit_answers_total`, those that their checkers found to be correct: what to divide etameter_audit_joules_total{kind="task"} by.',
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
