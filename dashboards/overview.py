"""What the energy is, where it goes, and what it is spent on."""

import math
from typing import Any

from etameter.dashboards.board import ARM, DEVICE, OF, board
from etameter.dashboards.panels import (
    ARMS,
    BAD,
    CATEGORIES,
    DOUBTFUL,
    GOOD,
    NEEDS,
    USES,
    WASTES,
    figure,
    lines,
    query,
)

NOT_CLASSIFIED = "No answer was classified: the server must be allowed to tell texts, see [meter] classify."
NO_TOKENS = "No tokens within five minutes."
NO_ENERGY = "No energy was settled within five minutes."
NO_PRICE = "No price is configured, see [footprint] price."
NO_INTENSITY = "No country or carbon intensity is configured, see [footprint] country."
NO_CORRECT = "No audit's task was answered correctly within a day, see [eta]."
NO_JUDGE = "No judge has read an answer within a day, see [eta] deep."
TOO_FEW_AUDITS = "Too few audits yet to tell."


def overview() -> dict[str, Any]:
    return board(
        "etameter-overview",
        "etameter / Overview",
        "Watts, joules per token and η of the served models, and where every joule of the GPUs goes.",
        [*_now(), *_accounts(), *_where(), *_slack()],
    )


def _now() -> list[Any]:
    return [
        figure(
            "Power now",
            "Mean power over the last settled interval, summed over the selected GPUs.",
            "watt",
            query(f"sum by (source) (etameter_gpu_power_watts{{{DEVICE}}})", "{{source}}"),
        ),
        figure(
            "Joules per output token",
            "Output energy over output tokens after the first of each sequence, over five minutes.",
            "joule",
            query(
                f'sum by (source) (etameter:request_watts:rate5m{{phase="output", {ARM}}})'
                f" / (sum by (source) (etameter:output_tokens:rate5m{{{ARM}}}) > 0)",
                "{{source}}",
            ),
            empty=NO_TOKENS,
        ),
        figure(
            "η is at most",
            "Bound on lenient η over five minutes, arms weighed by their output tokens: the share of the output that may have been required or optional.",
            "percentunit",
            query(
                f"sum by (source) (etameter:eta_bound:rate5m{{{ARM}}} * etameter:output_tokens:rate5m{{{ARM}}})"
                f" / (sum by (source) (etameter:output_tokens:rate5m{{{ARM}}} and etameter:eta_bound:rate5m{{{ARM}}}) > 0)",
                "{{source}}",
            ),
            decimals=0,
            empty=NOT_CLASSIFIED,
        ),
        figure(
            "Unattributed energy",
            "Share of the energy that no request, no idling and no start-up explains, of the worst GPU. Above 2 % an alert is raised.",
            "percentunit",
            query(f"max by (source) (etameter:unattributed_share:rate5m{{{DEVICE}}})", "{{source}}"),
            thresholds=((-math.inf, GOOD), (0.01, DOUBTFUL), (0.02, BAD)),
            empty=NO_ENERGY,
        ),
        figure(
            "Idle energy",
            "Share of the energy that the GPUs took while nothing ran.",
            "percentunit",
            query(
                f'sum by (source) (rate(etameter_unassigned_joules_total{{cause="idle", {DEVICE}}}[$__rate_interval]))'
                f" / (sum by (source) (rate(etameter_gpu_energy_joules_total{{{DEVICE}}}[$__rate_interval])) > 0)",
                "{{source}}",
            ),
        ),
        figure(
            "Requests per minute",
            "Requests that finished and are settled.",
            "none",
            query(f"60 * sum(rate(etameter_requests_total{{{OF}}}[$__rate_interval]))", "requests"),
            decimals=0,
        ),
    ]


def _accounts() -> list[Any]:
    return [
        figure(
            "Money per hour",
            "Price of the energy of requests over five minutes, by currency, with the building's share where a PUE is configured.",
            "none",
            query(f"sum by (currency, source) (etameter:cost_per_hour:rate5m{{{ARM}}})", "{{currency}} ({{source}})"),
            span=6,
            empty=NO_PRICE,
        ),
        figure(
            "CO2 per hour",
            "CO2 equivalent of the energy of requests over five minutes, with the building's share where a PUE is configured.",
            "massg",
            query(f"sum by (source) (etameter:co2e_grams_per_hour:rate5m{{{ARM}}})", "{{source}}"),
            span=6,
            empty=NO_INTENSITY,
        ),
        figure(
            "Joules per correct answer, by audits",
            "Of audits' fresh tasks, which a checker can judge, within a day: energy of all answers, wrong ones among them, over the correct ones.",
            "joule",
            query(
                f'sum by (source) (rate(etameter_audit_joules_total{{kind="task", {ARM}}}[1d]))'
                f" / (sum by (source) (rate(etameter_audit_correct_answers_total{{{ARM}}}[1d])) > 0)",
                "{{source}}",
            ),
            span=6,
            empty=NO_CORRECT,
        ),
        figure(
            "Is η reliable?",
            "Whether audits bear out what is said of η, in the worst of the selected arms. Where they don't, a difference of η may be none.",
            "none",
            query(f"min(etameter_eta_reliable{{{OF}}})", "η"),
            span=6,
            thresholds=((-math.inf, BAD), (1, GOOD)),
            words={0: "unreliable", 1: "reliable"},
            empty=TOO_FEW_AUDITS,
        ),
    ]


def _where() -> list[Any]:
    return [
        lines(
            "Where the joules go",
            "Power of the GPUs by what it was spent on: prompts and outputs of requests, and what no request pays, by cause. The top of the stack is "
            "what the counters measured. Requests of all GPUs are counted: choosing GPUs narrows only what nobody pays.",
            "watt",
            query(
                f"sum by (phase, source) (rate(etameter_energy_joules_total{{{ARM}}}[$__rate_interval]))",
                "{{phase}} ({{source}})",
            ),
            query(
                f"sum by (cause, source) (rate(etameter_unassigned_joules_total{{{DEVICE}}}[$__rate_interval]))",
                "{{cause}} ({{source}})",
            ),
            stacked=True,
            colours=USES,
        ),
        lines(
            "Power of each GPU",
            "Mean power over the last settled interval. A gap: the counter stood still, was reset, or was not to be believed.",
            "watt",
            query(f"etameter_gpu_power_watts{{{DEVICE}}}", "{{gpu_uuid}} ({{source}})"),
        ),
        lines(
            "Energy per output token",
            "Watt hours per output token after the first, over five minutes. It falls as more requests run together: "
            "compare arms at like batch, on the next page.",
            "watth",
            query(f"etameter:output_wh_per_token:rate5m{{{ARM}}}", "{{arm}} {{model_name}}"),
            empty=NO_TOKENS,
            colours=ARMS,
        ),
        lines(
            "Tokens per second",
            "Computed prompt tokens, prompt tokens from the prefix cache, and output tokens.",
            "none",
            query(f"sum by (kind) (rate(etameter_tokens_total{{{OF}}}[$__rate_interval]))", "{{kind}}"),
            colours=USES,
        ),
    ]


def _slack() -> list[Any]:
    return [
        lines(
            "η is at most",
            "Bound on lenient η by arm. What the fast method can't show to be slack counts as if it were required.",
            "percentunit",
            query(f"etameter:eta_bound:rate5m{{{ARM}}}", "{{arm}} {{model_name}}"),
            most=1.0,
            empty=NOT_CLASSIFIED,
            colours=ARMS,
        ),
        lines(
            "Slack, of the output energy",
            "Share of the output energy of classified answers that was found to be slack.",
            "percentunit",
            query(
                "sum by (category, source) ("
                "rate(etameter_slack_joules_total"
                f'{{category=~"preamble|restatement|hedge|meta|repetition|closing|junk|unspecified", {ARM}}}[5m]))'
                " / on (source) group_left ()"
                f" (sum by (source) (rate(etameter_classified_joules_total{{{ARM}}}[5m])) > 0)",
                "{{category}}",
            ),
            stacked=True,
            empty=NOT_CLASSIFIED,
            colours=CATEGORIES,
        ),
        lines(
            "Wasted, of the output energy",
            "Share of all output energy that nobody had the use of: answers cut off at their length limit, abandoned by their client, or made anew by "
            "their user, and drafts that the model rejected.",
            "percentunit",
            query(
                "sum by (category, source) ("
                f'rate(etameter_slack_joules_total{{category=~"retry|abandoned|truncated|draft", {ARM}}}[5m]))'
                " / on (source) group_left ()"
                f' (sum by (source) (rate(etameter_energy_joules_total{{phase="output", {ARM}}}[5m])) > 0)',
                "{{category}}",
            ),
            stacked=True,
            empty="No request finished within five minutes.",
            colours=WASTES,
        ),
        lines(
            "What judges found, of the output energy",
            "Output energy of the answers that a judge has read within a day, by need. Required over all that is classified is strict η; with optional, "
            "it is lenient η.",
            "percentunit",
            query(
                f"sum by (need, source) (rate(etameter_needed_joules_total{{{ARM}}}[1d]))"
                f" / on (source) group_left () (sum by (source) (rate(etameter_needed_joules_total{{{ARM}}}[1d])) > 0)",
                "{{need}}",
            ),
            stacked=True,
            most=1.0,
            empty=NO_JUDGE,
            colours=NEEDS,
        ),
    ]
