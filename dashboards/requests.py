"""Single requests: how much they take, how long, and how well that is known."""

from typing import Any

from grafana_foundation_sdk.builders.prometheus import Dataquery

from etameter.dashboards.board import ARM, OF, board
from etameter.dashboards.panels import ENDS, QUANTILES, heat, lines, query

MODEL = 'model_name=~"$model"'
MODEL_SOURCE = f'{MODEL}, source=~"$source"'
NO_REQUESTS = "No request finished."


def _buckets(histogram: str, selected: str, by: str, *, exemplar: bool = False) -> Dataquery:
    """Cells as wide as a rate needs: in the time of one scrape nothing increases."""
    asked = f"sum by ({by}) (increase({histogram}_bucket{{{selected}}}[$__rate_interval]))"
    return query(asked, exemplar=exemplar).interval("$__rate_interval")


def _quantiles(histogram: str, selected: str, by: str, *, exemplar: bool = False) -> list[Any]:
    return [
        query(
            f"histogram_quantile({share}, sum by ({by}) (rate({histogram}_bucket{{{selected}}}[$__rate_interval])))",
            name,
            exemplar=exemplar and share == 0.99,
        )
        for share, name in ((0.5, "median"), (0.95, "95 %"), (0.99, "99 %"))
    ]


def requests() -> dict[str, Any]:
    return board(
        "etameter-requests",
        "etameter / Requests",
        "How energy and time are spread over requests. Points are exemplars: single requests, by the id that their client knows, which leads "
        "to what the meter says of the request where the data source is told the meter's address, see docs/dashboards.md.",
        [
            heat(
                "Joules per request",
                "How many requests took how much. Points are single requests.",
                "joule",
                _buckets("etameter_request_energy_joules", ARM, "le, source", exemplar=True),
                empty=NO_REQUESTS,
            ),
            lines(
                "Quantiles of joules per request",
                "Quantiles within the histogram's buckets. Points are single requests.",
                "joule",
                *_quantiles("etameter_request_energy_joules", ARM, "le, source", exemplar=True),
                height=9,
                colours=QUANTILES,
                empty=NO_REQUESTS,
            ),
            heat(
                "Watt hours per output token",
                "How many requests took how much for each output token after the first.",
                "watth",
                _buckets("etameter_request_wh_per_output_token", MODEL_SOURCE, "le, source"),
                empty=NO_REQUESTS,
            ),
            lines(
                "Quantiles of watt hours per output token",
                "Quantiles within the histogram's buckets.",
                "watth",
                *_quantiles("etameter_request_wh_per_output_token", MODEL_SOURCE, "le, source"),
                height=9,
                colours=QUANTILES,
                empty=NO_REQUESTS,
            ),
            heat(
                "Time to first token",
                "From a request's arrival at the engine to its first token.",
                "s",
                _buckets("etameter_time_to_first_token_seconds", MODEL, "le"),
                empty=NO_REQUESTS,
            ),
            heat(
                "Time between tokens",
                "Mean over each request.",
                "s",
                _buckets("etameter_inter_token_latency_seconds", MODEL, "le"),
                empty="No request with two tokens finished.",
            ),
            lines(
                "Error of a request's energy",
                "Half-width of the 95 % interval, as a share of the energy. Long requests are known best.",
                "percentunit",
                *_quantiles("etameter_request_energy_error_ratio", MODEL_SOURCE, "le, source"),
                colours=QUANTILES,
                empty=NO_REQUESTS,
            ),
            lines(
                "Requests per minute, by how they end",
                "stop: the model ended the answer; length: the limit did; abort: it was stopped, mostly because its client went.",
                "none",
                query(
                    f"60 * sum by (finish_reason) (rate(etameter_requests_total{{{OF}}}[$__rate_interval]))",
                    "{{finish_reason}}",
                ),
                stacked=True,
                colours=ENDS,
                empty=NO_REQUESTS,
            ),
        ],
    )
