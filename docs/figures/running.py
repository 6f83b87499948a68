"""Figures of a meter at work: what faults do to it and to its peers, what it costs, and a stream that goes on without it."""

import re
from typing import Any

from matplotlib.figure import Figure as Drawing

from etameter.prompts.report.svg import FAINT, GRID, INK, PAPER, SERIES

from .picture import plain_ticks, titled, told, when

LEAST_US = 0.1
"""Where the axis of overhead begins."""
_MARK = {"right": ("o", SERIES[1]), "none": ("_", FAINT), "wrong": ("X", SERIES[0])}


def faults(made: Drawing, record: dict[str, Any]) -> None:
    context = record["context"]
    answers, versions = context["answers"], context["versions"]
    told(
        made,
        f"SIMULATED: a stand-in NVML whose GPU draws {context['watts']:g} W; each meter in a process of its own, a window of {context['window_s']:g} s. One run, {when(record)}.\n"
        "● within 5 %, or within its own stated error  – no figure: an error or a blank  ✖ a wrong figure",
    )
    axes = made.add_subplot()
    names, faults = list(versions), list(answers)
    for row, fault in enumerate(faults):
        for column, name in enumerate(names):
            verdict, words = _cell(answers[fault][name])
            marker, colour = _MARK[verdict]
            if verdict == "wrong":
                axes.barh(row, 0.96, left=column - 0.13, height=0.86, color=colour, alpha=0.16, linewidth=0)
            axes.plot(
                column - 0.06, row, marker, color=colour, markersize=7, markeredgewidth=1.6 if marker == "_" else 0
            )
            axes.text(column, row, words, va="center", fontsize=8.5, color=FAINT if verdict == "none" else INK)
    titled(axes, f"Joules told, less the {context['watts'] * context['window_s']:,.0f} J that were spent")
    axes.set_yticks(range(len(faults)), ["no fault" if fault == "none" else fault for fault in faults])
    axes.set_xticks(
        range(len(names)), [f"{'Zeus' if name == 'zeus' else name} {versions[name]}" for name in names], ha="left"
    )
    axes.set(xlim=(-0.18, len(names) - 0.1), ylim=(len(faults) - 0.45, -0.55))
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.grid(visible=False)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    for row in range(1, len(faults)):
        axes.axhline(row - 0.5, color=GRID, linewidth=0.7)


def _cell(answer: dict[str, Any]) -> tuple[str, str]:
    """The verdict, and how many joules too much or too little were told."""
    if answer["joules"] is None:
        return "none", "no figure"
    off = answer["joules"] - answer["true_j"]
    stated = f" (± {answer['error_j']:.0f} stated)" if answer["error_j"] else ""
    return answer["verdict"], f"{'+' if round(off) > 0 else '−' if round(off) < 0 else '± '}{abs(off):,.0f} J{stated}"


def overhead(made: Drawing, record: dict[str, Any]) -> None:
    context = record["context"]
    told(
        made,
        f"measured on {context['cpus']} busy CPU cores (load {context['load_1m']:g}), no GPU involved; medians of {context['rounds']} paired rounds, {when(record)}.\n"
        "● median between quartiles  ✖ one that misses its goal  | goal. A step: the scheduler's hook. A chunk, a request: the middleware.",
    )
    shown = [goal for goal in record["goals"] if goal["unit"] == "us" and goal["value"] is not None]
    axes = made.add_subplot()
    for place, goal in enumerate(shown):
        if goal["goal"] is not None:
            axes.plot([goal["goal"]] * 2, [place - 0.32, place + 0.32], color=INK, linewidth=1.6)
        colour = SERIES[0] if goal["met"] is False else SERIES[1]
        low, high = goal["quartiles"]
        axes.plot(
            [max(low, LEAST_US), high], [place] * 2, "-", color=colour, linewidth=2.4, alpha=0.5, solid_capstyle="butt"
        )
        axes.plot(
            goal["value"], place, "X" if goal["met"] is False else "o", color=colour, markersize=6, markeredgewidth=0
        )
        missed = goal["met"] is False  # its goal is on the left
        axes.annotate(
            f"{goal['value']:.3g}",
            (high if missed else max(low, LEAST_US), place),
            (6 if missed else -6, 0),
            textcoords="offset points",
            ha="left" if missed else "right",
            va="center",
            fontsize=8,
        )
    axes.set_yticks(range(len(shown)), [_worded(goal["name"]) for goal in shown])
    axes.set(
        xscale="log",
        xlabel="µs of processor time",
        xlim=(LEAST_US, 400),
        ylim=(len(shown) - 0.4, -0.6),
    )
    plain_ticks(axes, [0.1, 1, 10, 100])
    axes.grid(visible=False, axis="y")


def _worded(name: str) -> str:
    if found := re.fullmatch(r"hook_us_per_step_at_(\d+)(?:_(\d+)_(prefilling|come_and_go))?(_in_vllm)?", name):
        requests, some, what, real = found.groups()
        rest = {"prefilling": f", {some} prefilling", "come_and_go": f", {some} leave, {some} join", None: ""}[what]
        return f"a step of {int(requests):,} requests{rest}{', inside vLLM' if real else ''}"
    return {"middleware_us_per_chunk": "a streamed chunk", "middleware_us_per_request": "a request, beside its chunks"}[
        name
    ]


def survival(made: Drawing, record: dict[str, Any]) -> None:
    context = record["context"]
    plain, killed = context["undisturbed"], context["killed"]
    told(
        made,
        f"measured: token arrivals from vLLM {context['versions']['vllm']} on {context['cpus']} busy CPU cores, {context['model']}. Other work took most of both cores: what differs between the two curves began before the kill. One run of each. {when(record)}.",
    )
    axes = made.add_subplot()
    gaps = {goal["name"]: goal["value"] for goal in record["goals"]}
    axes.axvspan(killed["killed_s"], killed["back_s"], color=SERIES[0], alpha=0.14, linewidth=0)
    axes.axvline(killed["killed_s"], color=SERIES[0], linewidth=1.2)
    for run, colour, dashes, words in (
        (plain, FAINT, (0, (4, 2)), f"undisturbed: longest wait for a token {gaps['longest_gap_undisturbed']:.0f} ms"),
        (killed, SERIES[1], "-", f"meter killed: longest wait for a token {gaps['longest_gap_killed']:.0f} ms"),
    ):
        arrived = run["arrived_s"]
        axes.step(
            arrived,
            range(1, len(arrived) + 1),
            where="post",
            color=colour,
            linestyle=dashes,
            linewidth=1.5,
            label=words,
        )
    top = len(killed["arrived_s"])
    axes.annotate(
        "kill -9 of the meter",
        (killed["killed_s"], 0.95 * top),
        (-5, 0),
        textcoords="offset points",
        ha="right",
        fontsize=8.5,
        color=SERIES[0],
    )
    axes.annotate(
        f"no meter for {killed['back_s'] - killed['killed_s']:.1f} s",
        (killed["killed_s"], 0.95 * top),
        (5, 0),
        textcoords="offset points",
        fontsize=8.5,
        color=INK,
    )
    axes.set(xlabel="s from the request", ylabel="tokens received", xlim=(0, None), ylim=(0, 1.04 * top))
    axes.legend(loc="lower right", facecolor=PAPER)
    told_why = f"its energy is null ({killed['energy_reason']})"
    again = f"answers have energy again {killed['energy_again_s'] - killed['killed_s']:.1f} s after the kill"
    titled(axes, f"All {top} tokens came, the same text; {told_why}; {again}")
