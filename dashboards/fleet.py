"""All meters that this Prometheus scrapes."""

from typing import Any

from etameter.dashboards.board import ARM, DEVICE, board
from etameter.dashboards.overview import NO_INTENSITY, NO_PRICE
from etameter.dashboards.panels import bars, figure, lines, now, query, rows

NO_RAPL = "No meter may read the host's energy (RAPL)."


def fleet() -> dict[str, Any]:
    return board(
        "etameter-fleet",
        "etameter / Fleet",
        "Every meter and GPU that is scraped: which of them take most, idle most, or can be trusted least.",
        [
            figure(
                "Energy",
                "Of all selected GPUs within the time that is shown.",
                "watth",
                now(
                    f"sum by (source) (increase(etameter_gpu_energy_joules_total{{{DEVICE}}}[$__range])) / 3600",
                    "{{source}}",
                ),
                span=6,
            ),
            figure(
                "Of which idle",
                "Energy that GPUs took while nothing ran, within the time that is shown.",
                "watth",
                now(
                    f'sum by (source) (increase(etameter_unassigned_joules_total{{cause="idle", {DEVICE}}}[$__range])) / 3600',
                    "{{source}}",
                ),
                span=6,
            ),
            figure(
                "GPUs",
                "Metered devices.",
                "none",
                now(f"count by (source) (etameter_gpu_energy_joules_total{{{DEVICE}}})", "{{source}}"),
                span=6,
            ),
            figure(
                "Meters",
                "Scraped instances.",
                "none",
                now("count(count by (instance) (etameter_sampler_polls_total))", "meters"),
                span=6,
            ),
            lines(
                "Power by meter",
                "Of the GPUs of each meter, over five minutes.",
                "watt",
                query(
                    f"sum by (instance, source) (etameter:gpu_watts:rate5m{{{DEVICE}}})", "{{instance}} ({{source}})"
                ),
                stacked=True,
            ),
            lines(
                "Idle share by GPU",
                "Of the energy of each GPU, over five minutes.",
                "percentunit",
                query(f"etameter:idle_share:rate5m{{{DEVICE}}}", "{{gpu_uuid}} ({{source}})"),
                most=1.0,
            ),
            rows(
                "GPUs",
                "Over five minutes.",
                (
                    ("power", "watt", now(f"etameter:gpu_watts:rate5m{{{DEVICE}}}")),
                    ("idle", "percentunit", now(f"etameter:idle_share:rate5m{{{DEVICE}}}")),
                    ("unattributed", "percentunit", now(f"etameter:unattributed_share:rate5m{{{DEVICE}}}")),
                ),
                by=("instance", "gpu_uuid", "source"),
                height=6,
            ),
            bars(
                "Energy by model",
                "Attributed to requests within the time that is shown.",
                "watth",
                now(
                    f"sum by (model_name, source) (increase(etameter_energy_joules_total{{{ARM}}}[$__range])) / 3600",
                    "{{model_name}} ({{source}})",
                ),
                span=12,
                height=6,
            ),
            bars(
                "Money by model",
                "Price of the energy of requests within the time that is shown.",
                "none",
                now(
                    f"sum by (model_name, currency, source) (increase(etameter_cost_total{{{ARM}}}[$__range]))",
                    "{{model_name}}, {{currency}} ({{source}})",
                ),
                span=12,
                height=6,
                empty=NO_PRICE,
            ),
            bars(
                "CO2 by model",
                "CO2 equivalent of the energy of requests within the time that is shown.",
                "massg",
                now(
                    f"sum by (model_name, source) (increase(etameter_co2e_grams_total{{{ARM}}}[$__range]))",
                    "{{model_name}} ({{source}})",
                ),
                span=12,
                height=6,
                empty=NO_INTENSITY,
            ),
            lines(
                "Power of the hosts",
                "CPU packages and memory by RAPL, whatever runs on them: beside the GPUs' energy, never part of it.",
                "watt",
                query(
                    "sum by (instance, domain, source) (rate(etameter_host_energy_joules_total[$__rate_interval]))",
                    "{{instance}}, {{domain}}",
                ),
                height=6,
                empty=NO_RAPL,
            ),
        ],
        since="now-6h",
    )
