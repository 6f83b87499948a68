"""All meters of all clusters. It asks for what rules have recorded alone, so that a store which has nothing else can answer, of any number of meters."""

import math
from typing import Any

from grafana_foundation_sdk.builders.prometheus import Dataquery

from etameter.dashboards.board import Variables, board
from etameter.dashboards.overview import NO_INTENSITY, NO_PRICE, NO_TOKENS, NOT_CLASSIFIED, TOO_FEW_AUDITS
from etameter.dashboards.panels import BAD, DOUBTFUL, GOOD, bars, figure, lines, now, query, rows

VARIABLES: Variables = (
    ("cluster", "Cluster", "label_values(etameter:cluster_watts:rate5m, cluster)"),
    ("model", "Model", "label_values(etameter:meter_request_watts:rate5m, model_name)"),
    ("source", "Source", "label_values(etameter:cluster_watts:rate5m, source)"),
)
CLUSTER = 'cluster=~"$cluster", source=~"$source"'
MODEL = f'{CLUSTER}, model_name=~"$model"'
REPLICA = ("cluster", "node", "instance", "model_name", "source")
METER = "meter_"
NAMED = "{{cluster}} {{node}} {{instance}}"
WORST = 10
STEP_S = 60
"""Between the watts that are summed up to the energy of a time."""
TRUST = ((-math.inf, GOOD), (0.01, DOUBTFUL), (0.02, BAD))

NO_RAPL = "No meter may read the host's energy (RAPL)."
NO_REQUEST = "No request finished within five minutes."


def fleet() -> dict[str, Any]:
    return board(
        "etameter-fleet",
        "etameter / Fleet",
        "Every meter of every cluster: what they take, for what, and which replicas take most for it or can be trusted least. It asks recorded sums "
        "alone, see docs/scale.md. Single replicas, GPUs and arms are on the other dashboards, of the cluster's own store.",
        [*_whole(), *_over_time(), *_compared(), *_worst(), *_footprint()],
        since="now-6h",
        refresh="1m",
        variables=VARIABLES,
        devices="etameter:cluster_gpus:count",
    )


def _sum(name: str, selected: str, by: str) -> str:
    return f"sum by ({by}) (etameter:{name}{{{selected}}})"


def _share(part: str, of: str, selected: str, by: str) -> str:
    """Of sums: their ratio comes last."""
    return f"{_sum(part, selected, by)} / ({_sum(of, selected, by)} > 0)"


def _wh_per_token(by: str, of: str = "") -> str:
    """Of what rules sum up to; of `meter_` for replicas, which are many."""
    outputs = _sum(f"{of}request_watts:rate5m", f'phase="output", {MODEL}', by)
    return f"{outputs} / 3600 / ({_sum(f'{of}output_tokens:rate5m', MODEL, by)} > 0)"


def _eta(by: str, of: str = "model_") -> str:
    return _share(f"{of}eta_bound_tokens:rate5m", f"{of}classified_tokens:rate5m", MODEL, by)


def _error(by: str, of: str = "model_") -> str:
    return _share(f"{of}request_errors:rate5m", f"{of}requests:rate5m", MODEL, by)


def _least(name: str, by: str) -> str:
    """Of what has no sums: over replicas and arms, what is to be trusted least."""
    return f"min by ({by}) (etameter:{name}:min{{{MODEL}}})"


def _unattributed(by: str) -> str:
    return _share("meter_unattributed_watts:rate5m", "meter_watts:rate5m", CLUSTER, by)


def _within(per: str, by: str) -> str:
    """What was spent in the time that is shown at a recorded rate per hour. Where nothing is recorded, nothing is added."""
    return f"sum by ({by}) (sum_over_time({per}[$__range:{STEP_S}s])) * {STEP_S} / 3600"


def _worst_of(expression: str, *, least: bool = False) -> Dataquery:
    chosen = "bottomk" if least else "topk"
    return now(f"{chosen} by (source) ({WORST}, {expression})", f"{NAMED} ({{{{source}}}}) {{{{model_name}}}}")


def _whole() -> list[Any]:
    return [
        figure(
            "Energy",
            "Of all GPUs of the selected clusters within the time that is shown, as sum of their watts minute by minute.",
            "watth",
            now(_within(f"etameter:cluster_watts:rate5m{{{CLUSTER}}}", "source"), "{{source}}"),
            span=6,
        ),
        figure(
            "Power",
            "Of all GPUs of the selected clusters, over five minutes.",
            "watt",
            query(_sum("cluster_watts:rate5m", CLUSTER, "source"), "{{source}}"),
            span=6,
        ),
        figure(
            "GPUs",
            "Metered devices.",
            "none",
            now(_sum("cluster_gpus:count", CLUSTER, "source"), "{{source}}"),
            span=6,
        ),
        figure(
            "Meters",
            "That are scraped, and have been for some minutes: one for each replica.",
            "none",
            now(_sum("cluster_meters:count", CLUSTER, "source"), "{{source}}"),
            span=6,
        ),
        figure(
            "Wh per output token",
            "Output energy over output tokens after the first of each sequence, both summed over all replicas, over five minutes.",
            "watth",
            query(_wh_per_token("source"), "{{source}}"),
            span=5,
            empty=NO_TOKENS,
        ),
        figure(
            "η is at most",
            "Bound on lenient η, replicas weighed by the tokens that were classified, over five minutes.",
            "percentunit",
            query(_eta("source"), "{{source}}"),
            span=5,
            decimals=0,
            empty=NOT_CLASSIFIED,
        ),
        figure(
            "Is η reliable?",
            "Whether audits bear out what is said of η, in the worst arm of the worst replica that they said enough of. Where they don't, a difference of η may be none.",
            "none",
            query(_least("eta_reliable", "source"), "{{source}}"),
            span=4,
            thresholds=((-math.inf, BAD), (1, GOOD)),
            words={0: "unreliable", 1: "reliable"},
            empty=TOO_FEW_AUDITS,
        ),
        figure(
            "Unattributed",
            "Share of the energy of all GPUs that no request, no idling and no start-up explains, over five minutes.",
            "percentunit",
            query(_share("cluster_unattributed_watts:rate5m", "cluster_watts:rate5m", CLUSTER, "source"), "{{source}}"),
            span=5,
            thresholds=TRUST,
        ),
        figure(
            "Error of a request",
            "Half-width of the 95 % interval of a request's energy as a share of it, mean over the requests of five minutes.",
            "percentunit",
            query(_error("source"), "{{source}}"),
            span=5,
            empty=NO_REQUEST,
        ),
    ]


def _over_time() -> list[Any]:
    of_cluster, of_model = "{{cluster}} ({{source}})", "{{model_name}} ({{source}})"
    by_cluster, by_model = "cluster, source", "model_name, source"
    idle = _share("cluster_idle_watts:rate5m", "cluster_watts:rate5m", CLUSTER, by_cluster)
    return [
        lines(
            "Power by cluster",
            "Of the GPUs of each cluster, over five minutes.",
            "watt",
            query(_sum("cluster_watts:rate5m", CLUSTER, by_cluster), of_cluster),
            stacked=True,
        ),
        lines(
            "Power by model",
            "What of it requests pay, over five minutes.",
            "watt",
            query(_sum("request_watts:rate5m", MODEL, by_model), of_model),
            stacked=True,
        ),
        lines(
            "Idle share by cluster",
            "Of the energy of its GPUs, over five minutes.",
            "percentunit",
            query(idle, of_cluster),
            most=1.0,
        ),
        lines(
            "Wh per output token by model",
            "Summed over replicas first, over five minutes.",
            "watth",
            query(_wh_per_token(by_model), of_model),
            empty=NO_TOKENS,
        ),
        lines(
            "Unattributed share by cluster",
            "Of the energy of its GPUs, over five minutes.",
            "percentunit",
            query(
                _share("cluster_unattributed_watts:rate5m", "cluster_watts:rate5m", CLUSTER, by_cluster),
                of_cluster,
            ),
        ),
        lines(
            "η is at most, by model",
            "Bound on lenient η, replicas weighed by the tokens that were classified, over five minutes.",
            "percentunit",
            query(_eta(by_model), of_model),
            most=1.0,
            empty=NOT_CLASSIFIED,
        ),
    ]


def _compared() -> list[Any]:
    per_node = "cluster, node, source"
    most = f"topk by (source) ({WORST}, {_sum('meter_watts:rate5m', CLUSTER, per_node)})"
    return [
        rows(
            "Models",
            "Over five minutes, of all replicas in the selected clusters. ρ² of the bound with judges, and whether η is reliable: of the replica and arm where audits bear it out least. "
            "±: mean error of a request, as a share of its energy.",
            (
                ("power", "watt", now(_sum("request_watts:rate5m", MODEL, "model_name, source"))),
                (
                    "output tokens/s",
                    "short",
                    now(_sum("output_tokens:rate5m", MODEL, "model_name, source")),
                ),
                ("per output token", "watth", now(_wh_per_token("model_name, source"))),
                ("η is at most", "percentunit", now(_eta("model_name, source"))),
                ("ρ² of η", "short", now(_least("eta_agreement", "model_name, source"))),
                ("η reliable", "bool_yes_no", now(_least("eta_reliable", "model_name, source"))),
                ("request ±", "percentunit", now(_error("model_name, source"))),
            ),
            by=("model_name", "source"),
            height=8,
            sorted_by="power",
        ),
        rows(
            f"The {WORST} nodes that take most",
            "Over five minutes, of all meters there. Where no scrape says `node`, all of a cluster are one.",
            (
                ("power", "watt", now(most)),
                *(
                    (name, "percentunit", now(f"({share}) and {most}"))
                    for name, share in (
                        ("idle", _share("meter_idle_watts:rate5m", "meter_watts:rate5m", CLUSTER, per_node)),
                        ("unattributed", _unattributed(per_node)),
                    )
                ),
            ),
            by=("cluster", "node", "source"),
            span=16,
            height=12,
            sorted_by="power",
        ),
        bars(
            "Power by board",
            "Of the GPUs of each kind, over five minutes.",
            "watt",
            now(_sum("board_watts:rate5m", CLUSTER, "board, source"), "{{board}} ({{source}})"),
            height=12,
        ),
    ]


def _worst() -> list[Any]:
    by, tokens = ", ".join(REPLICA), _sum("meter_output_tokens:rate5m", MODEL, ", ".join(REPLICA))
    outputs = _sum("meter_request_watts:rate5m", f'phase="output", {MODEL}', by)
    models = _wh_per_token("model_name, source")
    excess = f"{outputs} - {tokens} * on (model_name, source) group_left () (3600 * {models})"
    worst = f"topk by (source) ({WORST}, {excess})"
    return [
        rows(
            f"The {WORST} replicas that take most above their model's mean",
            "Watts that a replica's outputs take above what its tokens would at the mean of the model, of all selected replicas, over five minutes. "
            "Small batches, hot or older boards and long contexts are among the reasons. ±: mean error of its requests, as a share of their energy.",
            (
                ("above the mean", "watt", now(worst)),
                ("per output token", "watth", now(f"({_wh_per_token(by, METER)}) and {worst}")),
                (
                    "times the mean",
                    "short",
                    now(f"({_wh_per_token(by, METER)}) / on (model_name, source) group_left () ({models}) and {worst}"),
                ),
                ("output tokens/s", "short", now(f"{tokens} and {worst}")),
                ("request ±", "percentunit", now(f"({_error(by, METER)}) and {worst}")),
            ),
            by=REPLICA,
            height=12,
            sorted_by="above the mean",
            empty=NO_TOKENS,
        ),
        bars(
            f"The {WORST} replicas with most unattributed",
            "Share of the energy of a replica's GPUs that no request, no idling and no start-up explains, over five minutes. Above 2 % an alert is raised.",
            "percentunit",
            _worst_of(_unattributed("cluster, node, instance, source")),
            height=16,
            thresholds=TRUST,
        ),
        bars(
            f"The {WORST} replicas with the lowest bound of η",
            "Bound on lenient η by replica, over five minutes.",
            "percentunit",
            _worst_of(_eta(by, METER), least=True),
            height=16,
            empty=NOT_CLASSIFIED,
        ),
        bars(
            f"The {WORST} replicas whose requests are least certain",
            "Error of a request's energy, mean over the requests of a replica within five minutes.",
            "percentunit",
            _worst_of(_error(by, METER)),
            height=16,
            empty=NO_REQUEST,
        ),
    ]


def _footprint() -> list[Any]:
    return [
        bars(
            "Energy by model",
            "Attributed to requests within the time that is shown.",
            "watth",
            now(
                _within(f"etameter:request_watts:rate5m{{{MODEL}}}", "model_name, source"),
                "{{model_name}} ({{source}})",
            ),
            height=6,
        ),
        bars(
            "Money by model",
            "Price of the energy of requests within the time that is shown.",
            "none",
            now(
                _within(f"etameter:cost_per_hour:rate5m{{{MODEL}}}", "model_name, currency, source"),
                "{{model_name}}, {{currency}} ({{source}})",
            ),
            height=6,
            empty=NO_PRICE,
        ),
        bars(
            "CO2 by model",
            "CO2 equivalent of the energy of requests within the time that is shown.",
            "massg",
            now(
                _within(f"etameter:co2e_grams_per_hour:rate5m{{{MODEL}}}", "model_name, source"),
                "{{model_name}} ({{source}})",
            ),
            height=6,
            empty=NO_INTENSITY,
        ),
        lines(
            "Power of the hosts",
            "CPU packages and memory by RAPL, whatever runs on them: beside the GPUs' energy, never part of it.",
            "watt",
            query(_sum("cluster_host_watts:rate5m", CLUSTER, "cluster, domain, source"), "{{cluster}} {{domain}}"),
            span=24,
            height=6,
            empty=NO_RAPL,
        ),
    ]
