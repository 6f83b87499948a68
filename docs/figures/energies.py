"""Figures of how right energies are: the cost model against published ones, and requests' joules against the truth of a synthetic engine."""

from itertools import chain
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from etameter.prompts.report.svg import FAINT, INK, MARKERS, PAPER, SERIES

from .picture import plain_ticks, titled, told, when

LOAD = "azure-70"
RATIOS = {0.125: "÷ 8", 0.25: "÷ 4", 0.5: "÷ 2", 1.0: "1", 2.0: "× 2", 4.0: "× 4", 8.0: "× 8", 16.0: "× 16"}
SHOWN_REQUESTS = 160


def published(made: Drawing, record: dict[str, Any]) -> None:
    told(
        made,
        "Points: J measured by ML.ENERGY (leaderboard v2, Apache-2.0) on A100 and H100 with vLLM; nothing was measured here; the shaded 95 % are of batches, not of configurations. "
        f"Predictions: {when(record)}.",
    )
    left, right = made.subplots(1, 2, width_ratios=(1.1, 1))
    every = record["context"]["points"]
    for number, one in enumerate(each for each in every if "token_j" in each):
        batch, token_j = np.array(one["batch"]), np.array(one["token_j"])
        grid = np.geomspace(batch[0], batch[-1], 40)
        slope, rest = one["coefficients"]
        colour, marker = SERIES[number], MARKERS[number]
        left.plot(grid, slope / grid + rest, color=colour, linewidth=1.2)
        for which, face in ((slice(0, None, 2), colour), (slice(1, None, 2), PAPER)):
            left.plot(batch[which], token_j[which], marker, color=colour, markerfacecolor=face, markersize=5)
        above = token_j[0] > 2
        left.annotate(
            one["configuration"],
            (batch[0], token_j[0]) if above else (batch[-1], token_j[-1]),
            (9, 3) if above else (3, -13),
            textcoords="offset points",
            ha="left" if above else "right",
            fontsize=7.5,
            color=colour,
        )
    left.set(
        xscale="log",
        yscale="log",
        xlabel="requests in the batch",
        ylabel="J per output token",
        xlim=(55, 1800),
        ylim=(0.07, 3.8),
    )
    plain_ticks(left, [64, 128, 256, 512, 1024], [0.1, 0.2, 0.5, 1, 2])
    titled(left, f"Four of the {len(every)}:  ● fitted  ○ held out  — cost model")
    batch, off = (
        np.array(list(chain.from_iterable(each[key] for each in every))) for key in ("batch", "held_out_error")
    )
    low, high = 100 * np.quantile(off, (0.025, 0.975))
    right.axhspan(low, high, color=SERIES[1], alpha=0.14, linewidth=0)
    right.axhline(0, color=INK, linewidth=0.9)
    right.plot(batch, 100 * off, "o", color=SERIES[1], markersize=2.6, markeredgewidth=0)
    right.annotate(
        f"95 % of them: −{-low:.0f} to +{high:.0f} %",
        (0.98, 0.93),
        xycoords="axes fraction",
        ha="right",
        fontsize=7.5,
        color=FAINT,
    )
    right.set(
        xscale="log", xlabel="requests in the batch", ylabel="predicted − measured, %", xlim=(24, 1900), ylim=(-32, 32)
    )
    plain_ticks(right, [32, 64, 128, 256, 512, 1024])
    titled(
        right,
        f"All {len(batch)} batches of {len(every)} configurations, each held out",
    )


def h100(made: Drawing, record: dict[str, Any]) -> None:
    told(
        made,
        f"MEASURED once on one {record['context']['board']}: vLLM {record['context']['vllm']}, Llama 3.1 8B's shapes with random weights. Left: 512 prompt and 256 output tokens. "
        "Right: 512 and 128 tokens for 8 requests, 256 and 128 for 32; own work, of all that a request took. "
        f"{when(record)}.",
    )
    left, right = made.subplots(1, 2, width_ratios=(1.1, 1))
    stages = record["context"]["stages"]
    at_once = [each["at_once"] for each in stages]
    for colour, words, joules in (
        (SERIES[0], "prompts included", [each["prompt_j"] + each["output_j"] for each in stages]),
        (SERIES[1], "output", [each["output_j"] for each in stages]),
    ):
        token_j = [one / each["output_tokens"] for one, each in zip(joules, stages, strict=True)]
        left.plot(at_once, token_j, "o-", color=colour, markersize=5, linewidth=1.2, label=words)
    for x, y in ((0, 1), (-1, -1)):
        j = stages[x]["output_j"] / stages[x]["output_tokens"]
        left.annotate(
            f"{j:.3g}", (at_once[x], j), (8 * y, 4 if y > 0 else -12), textcoords="offset points", fontsize=7.5
        )
    left.legend(frameon=False, fontsize=7.5)
    left.set(xscale="log", yscale="log", xlabel="requests at once", ylabel="J per output token", ylim=(0.03, 4.5))
    plain_ticks(left, at_once, [0.05, 0.1, 0.2, 0.5, 1, 2])
    titled(left, "A token costs less the more requests run together")
    names = []
    for row, each in enumerate(record["context"]["verify"]):
        names.append(f"{each['requests']} requests")
        for colour, face, offset, key, bar in (
            (SERIES[0], SERIES[0], 0.12, "alone", each["own_work_alone_error_j"]),
            (SERIES[1], PAPER, -0.12, "at_once", None),
        ):
            joules = each[f"own_work_{key}_j"]
            right.errorbar(
                joules, row + offset, xerr=bar, fmt="o", color=colour, markerfacecolor=face, markersize=6, capsize=3
            )
            right.annotate(
                f"{key.replace('_', ' ')}: {joules:.1f} of {each[f'{key}_j']:.0f} J",
                (joules, row + offset),
                (0, 7 if offset > 0 else -14),
                textcoords="offset points",
                ha="center",
                fontsize=7.5,
                color=colour,
            )
    right.set(xlabel="J of a request's own work", xlim=(0, 34), ylim=(-0.6, len(names) - 0.4))
    right.set_yticks(range(len(names)), names)
    titled(right, "A request's own work, alone and in company")


def attribution(made: Drawing, record: dict[str, Any]) -> None:
    (load,) = (each for each in record["context"]["loads"] if (each["load"], each["period"]) == (LOAD, "100ms"))
    points = np.array(sorted(record["context"]["points"][LOAD]))
    thinned = points[:: max(len(points) // SHOWN_REQUESTS, 1)]
    told(
        made,
        "SIMULATED: a synthetic engine under Azure's code trace at 70 % load, counter every 100 ms. Titles: Σ |metered − true| ÷ Σ true, means of "
        f"{record['context']['seeds']} seeds; points: {len(thinned)} of {len(points):,} requests of one. {when(record)}.",
    )
    panels: list[Axes] = list(made.subplots(1, 4, width_ratios=(1, 1, 1, 1.15)))
    for axes, name, key, column, colour in (
        (panels[0], "etameter", "etameter", 1, SERIES[1]),
        (panels[1], "by tokens", "tokens", 4, SERIES[0]),
        (panels[2], "equal split", "equal_split", 3, SERIES[3]),
    ):
        axes.axhline(1, color=INK, linewidth=0.9)
        axes.plot(
            thinned[:, 0], thinned[:, column] / thinned[:, 0], "o", color=colour, markersize=2.6, markeredgewidth=0
        )
        axes.set(xscale="log", yscale="log", ylim=(0.11, 20), xlabel="true J")
        plain_ticks(axes, _decades(thinned[:, 0]), list(RATIOS))
        axes.set_yticks(list(RATIOS), list(RATIOS.values()) if axes is panels[0] else [])
        titled(axes, f"{name}: {100 * load[key]:.1f} % off")
    panels[0].set_ylabel("metered ÷ true J of a request")
    near, half = 100 * (thinned[:, 1] / thinned[:, 0] - 1), 100 * thinned[:, 2] / thinned[:, 0]
    close = panels[3]
    close.axhline(0, color=INK, linewidth=0.9)
    bars = np.stack([near - half, near + half, np.full_like(near, np.nan)], axis=1).ravel()
    close.plot(np.repeat(thinned[:, 0], 3), bars, "-", color=SERIES[1], linewidth=0.6, alpha=0.5)
    close.plot(thinned[:, 0], near, "o", color=SERIES[1], markersize=2.6, markeredgewidth=0)
    close.set(xscale="log", xlabel="true J", ylabel="off by, % of the request", ylim=(-16, 16))
    plain_ticks(close, _decades(thinned[:, 0]))
    titled(close, f"etameter: ± holds {100 * load['coverage']:.0f} %")


def _decades(joules: np.ndarray[Any, np.dtype[np.float64]]) -> list[float]:
    low, high = np.floor(np.log10(joules[[0, -1]]))
    return [float(10**each) for each in np.arange(low, high + 1)]
