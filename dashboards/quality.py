"""How good the measurement is: the balance, the counters and their edges, the meter itself, and the fit."""

import math
from typing import Any

from etameter.dashboards.board import ARM, DEVICE, GPU, MODEL, OF, board
from etameter.dashboards.overview import NO_ENERGY, TOO_FEW_AUDITS
from etameter.dashboards.panels import (
    BAD,
    BLUE,
    DOUBTFUL,
    GOOD,
    GREEN,
    ORANGE,
    OUTCOMES,
    PURPLE,
    SKY,
    USES,
    VERMILION,
    YELLOW,
    figure,
    lines,
    now,
    query,
    rows,
)

NOT_FITTED = "Nothing is fitted yet: it takes some minutes of load."
NO_ENGINE_PROCESS = "It can't be told here who computes on the GPU: no driver, or a container's own process numbers."


def quality() -> dict[str, Any]:
    return board(
        "etameter-quality",
        "etameter / Measurement quality",
        "Whether the figures can be trusted: does the balance close, are the counters read in time, does the load tell what a step costs, and do "
        "audits bear out what is said of η?",
        [*_balance(), *_counters(), *_meter(), *_fit(), *_audits()],
    )


def _balance() -> list[Any]:
    return [
        figure(
            "Unattributed energy",
            "Share of the energy that no request, no idling and no start-up explains, over five minutes, of the worst GPU.",
            "percentunit",
            query(f"max by (source) (etameter:unattributed_share:rate5m{{{DEVICE}}})", "{{source}}"),
            thresholds=((-math.inf, GOOD), (0.01, DOUBTFUL), (0.02, BAD)),
            span=6,
            empty=NO_ENERGY,
        ),
        figure(
            "Balance residual",
            "What the books miss: measured less attributed less unassigned, in watts. It is rounding, or a bug.",
            "watt",
            query(
                f"sum by (source) (rate(etameter_balance_residual_joules_total{{{DEVICE}}}[$__rate_interval]))",
                "{{source}}",
            ),
            span=6,
            thresholds=((-math.inf, GOOD), (1e-3, BAD)),
        ),
        figure(
            "Other processes on the GPU",
            "Their energy is in the counter too.",
            "none",
            query(f"sum(etameter_gpu_neighbours{{{GPU}}})", "processes"),
            span=6,
            thresholds=((-math.inf, GOOD), (1, BAD)),
            empty=NO_ENGINE_PROCESS,
        ),
        figure(
            "GPUs held back",
            "GPUs that heat or a power brake holds back now.",
            "none",
            query(f"sum(etameter_gpu_throttled{{{GPU}}})", "GPUs"),
            span=6,
            thresholds=((-math.inf, GOOD), (1, BAD)),
            empty="The device doesn't tell.",
        ),
        lines(
            "Unattributed energy, by cause",
            "Share of the energy of the selected GPUs. reset, stale, readings_missing, implausible: the counter; steps_missing: the engine's record; "
            "model_residual: more than the model and its error allow, as a neighbour's work would be.",
            "percentunit",
            query(
                f'sum by (cause, source) (rate(etameter_unassigned_joules_total{{cause!~"idle|engine_overhead", {DEVICE}}}[5m]))'
                " / on (source) group_left ()"
                f" (sum by (source) (rate(etameter_gpu_energy_joules_total{{{DEVICE}}}[5m])) > 0)",
                "{{cause}}",
            ),
            stacked=True,
            empty=NO_ENERGY,
            colours=USES,
        ),
        lines(
            "Host bubbles, of the energy",
            "Share of the energy that requests paid for gaps under 50 ms between steps, in which the GPU waited for the host.",
            "percentunit",
            query(
                f"sum by (source) (rate(etameter_host_bubble_joules_total{{{DEVICE}}}[$__rate_interval]))"
                f" / (sum by (source) (rate(etameter_gpu_energy_joules_total{{{DEVICE}}}[$__rate_interval])) > 0)",
                "{{source}}",
            ),
        ),
    ]


def _counters() -> list[Any]:
    return [
        lines(
            "Changes of the counter: seen and missed",
            "Changes of each counter that were seen per second, and those of them that reads told apart badly or not at all.",
            "hertz",
            query(f"rate(etameter_gpu_energy_edges_total{{{GPU}}}[$__rate_interval])", "seen, {{gpu_uuid}}"),
            query(f"rate(etameter_gpu_energy_missed_edges_total{{{GPU}}}[$__rate_interval])", "missed, {{gpu_uuid}}"),
            span=8,
            colours={"seen": BLUE, "missed": VERMILION},
        ),
        lines(
            "Period and lag of the counter",
            "How often the device publishes, as learned, and how late, as fitted. The lag's error is large until the load has varied.",
            "s",
            query(f"etameter_gpu_energy_update_period_seconds{{{GPU}}}", "period, {{gpu_uuid}}"),
            query(f"etameter_gpu_energy_lag_seconds{{{GPU}}}", "lag, {{gpu_uuid}}"),
            query(f"etameter_gpu_energy_lag_error_seconds{{{GPU}}}", "lag's error, {{gpu_uuid}}"),
            span=8,
            colours={"period": BLUE, "lag": ORANGE, "lag's error": GREEN},
            empty=NOT_FITTED,
        ),
        lines(
            "Resets and failed reads per hour",
            "After a reset nobody knows what the device took meanwhile.",
            "none",
            query(f"3600 * rate(etameter_gpu_energy_resets_total{{{GPU}}}[$__rate_interval])", "resets, {{gpu_uuid}}"),
            query(
                f"3600 * rate(etameter_gpu_energy_read_failures_total{{{GPU}}}[$__rate_interval])",
                "{{cause}}, {{gpu_uuid}}",
            ),
            span=8,
        ),
    ]


def _meter() -> list[Any]:
    return [
        lines(
            "How late counters are read",
            "Mean of start less planned start. Joules stay right however late; when they were spent is known less well.",
            "s",
            query(
                "rate(etameter_sampler_lateness_seconds_total[$__rate_interval]) / (rate(etameter_sampler_polls_total[$__rate_interval]) > 0)",
                "{{instance}}",
            ),
            span=8,
        ),
        lines(
            "Processor time of the reads, of one core",
            "What reading the counters takes.",
            "percentunit",
            query("rate(etameter_sampler_cpu_seconds_total[$__rate_interval])", "{{instance}}"),
            span=8,
        ),
        lines(
            "Lost on the way, per minute",
            "Steps that were overwritten or damaged before they were read, messages between server and meter, edges that nobody took, "
            "findings that no ledger has, texts that should have been kept, listeners that were too slow. All should be none.",
            "none",
            query("60 * rate(etameter_ring_lost_records_total[$__rate_interval])", "steps overwritten, {{engine}}"),
            query("60 * rate(etameter_ring_torn_records_total[$__rate_interval])", "steps damaged, {{engine}}"),
            query("60 * sum(rate(etameter_socket_dropped_messages_total[$__rate_interval]))", "messages"),
            query("60 * sum(rate(etameter_sampler_dropped_edges_total[$__rate_interval]))", "edges"),
            query("60 * sum(rate(etameter_ledger_dropped_findings_total[$__rate_interval]))", "findings"),
            query("60 * sum(rate(etameter_texts_dropped_total[$__rate_interval]))", "texts"),
            query("60 * sum(rate(etameter_page_listeners_dropped_total[$__rate_interval]))", "listeners"),
            span=8,
            colours={
                "steps overwritten": BLUE,
                "steps damaged": ORANGE,
                "messages": GREEN,
                "edges": PURPLE,
                "findings": VERMILION,
                "texts": YELLOW,
                "listeners": SKY,
            },
        ),
    ]


def _fit() -> list[Any]:
    return [
        lines(
            "How far the fit is off",
            "Sum of |measured - fitted| over measured energy, of the intervals that the fit rests on.",
            "percentunit",
            query(f"etameter_cost_residual_ratio{{{GPU}}}", "{{gpu_uuid}}"),
            empty=NOT_FITTED,
        ),
        lines(
            "Error of a request's energy",
            "Half-width of the 95 % interval, as a share of the energy: mean over finished requests.",
            "percentunit",
            query(
                'sum by (model_name, source) (rate(etameter_request_energy_error_ratio_sum{source=~"$source"}[$__rate_interval]))'
                ' / (sum by (model_name, source) (rate(etameter_request_energy_error_ratio_count{source=~"$source"}[$__rate_interval])) > 0)',
                "{{model_name}} ({{source}})",
            ),
            empty="No request finished.",
        ),
        rows(
            "What a step costs: coefficients",
            "p0_w in W, the others in J by what they multiply, see docs/metrics.md. Unidentified is 1 where the load so far "
            "can't tell it: then it is mostly the first guess.",
            (
                ("value", "sci", now(f"etameter_cost_coefficient{{{GPU}}}")),
                ("standard error", "sci", now(f"etameter_cost_coefficient_standard_error{{{GPU}}}")),
                ("unidentified", "none", now(f"etameter_cost_coefficient_unidentified{{{GPU}}}")),
            ),
            by=("gpu_uuid", "coefficient"),
            height=11,
            empty=NOT_FITTED,
        ),
    ]


def _audits() -> list[Any]:
    return [
        rows(
            "Reliability of η",
            "What η says against what audits found, within each arm. fast: its bound against judges; deep: judges against tasks whose answer is known; "
            "fast_task: the bound against those. Agreement is the squared correlation: of a gain in η, this share is a gain; low and high are its 95 % interval. "
            "Bias: how much too high. "
            "Slope: 1 where a difference means what it says.",
            tuple(
                (
                    statistic.removeprefix("agreement_"),
                    "short",
                    now(f'etameter_eta_reliability{{statistic="{statistic}", {OF}}}'),
                )
                for statistic in ("agreement", "agreement_low", "agreement_high", "bias", "slope")
            ),
            by=("model_name", "arm", "tier"),
            span=16,
            height=8,
            empty=TOO_FEW_AUDITS,
        ),
        figure(
            "What audits take",
            "Their energy, that of interrupted ones among it, over that of all other requests, whatever their arm, within a day. They are to keep to [eta] share, "
            "1 % unless set otherwise.",
            "percentunit",
            query(
                f'sum by (source) (rate(etameter_energy_joules_total{{arm="audit", {MODEL}}}[1d]))'
                f' / (sum by (source) (rate(etameter_energy_joules_total{{arm!="audit", {MODEL}}}[1d])) > 0)',
                "{{source}}",
            ),
            span=8,
            height=8,
            thresholds=((-math.inf, GOOD), (0.01, BAD)),
            empty="Nothing is audited, see [eta].",
        ),
        lines(
            "Audits per hour",
            "deep: a judge has read an answer, and agreed with the fast method or not; task: a task with a checker was asked.",
            "none",
            query(
                f"3600 * sum by (kind, outcome, source) (rate(etameter_audits_total{{{ARM}}}[$__rate_interval]))",
                "{{kind}}: {{outcome}}",
            ),
            stacked=True,
            colours=OUTCOMES,
            empty="Nothing is audited, see [eta].",
        ),
        lines(
            "Answers that were not read, per hour",
            "By why: no text was told, it was too long, or too much waited. Sampled ones that no judge came to are full or old.",
            "none",
            query(
                "3600 * sum by (cause) (rate(etameter_unclassified_responses_total[$__rate_interval]))",
                "not classified: {{cause}}",
            ),
            query(
                "3600 * sum by (cause) (rate(etameter_audit_samples_dropped_total[$__rate_interval]))",
                "not judged: {{cause}}",
            ),
            empty="Every answer that was told was read.",
        ),
    ]
