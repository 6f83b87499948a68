"""Claims that a machine settles: what a token costs where it is made, and what bounds that."""

from collections.abc import Callable
from typing import Final

from etameter.arithmetic.rows import Input, Row, Values
from etameter.roofline import H100, QWEN3_8B, roofline_prior

_COSTS: Final = roofline_prior(H100, QWEN3_8B).energy
"""By fits of public recordings, see `roofline`."""
INPUTS: Final = (
    Input("j_per_prompt_token", None, "J/token", "measured, of a computed prompt token", 1e-12),
    Input("j_per_output_token", None, "J/token", "measured, of an output token after the first", 1e-12),
    Input("answer_energy", None, "J/answer", "measured, of a correct answer", 1e-12),
    Input("tokens_per_s", None, "token/s/GPU", "measured, output of a GPU", 1e-12),
    Input("gpu_power", None, "W/GPU", "measured, of a GPU at work", 1e-6),
    Input("peak_flop", 989e12, "FLOP/s/GPU", "dense bf16 of an H100 SXM, by its data sheet", 1.0, origin="constant"),
    Input(
        "bandwidth_memory", 3.35e12, "byte/s/GPU", "memory of an H100 SXM, by its data sheet", 1.0, origin="constant"
    ),
    Input(
        "example_parameters", QWEN3_8B.parameters, "parameter", "of Qwen3-8B that a token passes", 1.0, origin="example"
    ),
    Input(
        "weights",
        QWEN3_8B.step_parameters * QWEN3_8B.weight_bytes,
        "byte",
        "of Qwen3-8B in bf16",
        1.0,
        origin="example",
    ),
    Input("kv_bytes", QWEN3_8B.kv_token_bytes, "byte/token", "keys and values of a token", origin="example"),
    Input("batch", 16.0, "token", "decoded at once, one of each sequence", 1.0, origin="example"),
    Input("context", 1000.0, "1", "tokens that each of them attends", 0.0, origin="example"),
    Input("cost_p0", float(_COSTS[0]), "W/GPU", "an H100 that waits with the model loaded", origin="estimated"),
    Input("cost_c", float(_COSTS[1]), "J", "of one pass over the weights", origin="estimated"),
    Input("cost_a", float(_COSTS[2]), "J/token", "of a computed prompt token", origin="estimated"),
    Input("cost_b", float(_COSTS[4]), "J/token", "of a decoded token itself", origin="estimated"),
    Input("cost_d", float(_COSTS[5]), "J/token", "of an attended token", origin="estimated"),
    Input("prompt_per_output", 1.0, "1", "computed prompt tokens for each output token", 0.0, origin="example"),
    Input("mfu_measured", None, "1", "measured, of prompt and output tokens", 0.0, 1.0),
    Input("served_parameters", None, "parameter", "of the model that is served", 1.0),
)
_STEP: Final = (
    "weights",
    "kv_bytes",
    "context",
    "batch",
    "bandwidth_memory",
    "flop_per_parameter",
    "example_parameters",
)


def _electricity(kind: str) -> Callable[[Values], tuple[float, ...]]:
    return lambda v: (v[f"j_per_{kind}_token"] * v["price"],)


def _reading_s(v: Values) -> float:
    """Seconds of one GPU of a step that decodes a batch: all weights once, and the keys and values of each sequence."""
    return (v["weights"] + v["batch"] * v["context"] * v["kv_bytes"]) / v["bandwidth_memory"]


def _computing_s(v: Values) -> float:
    return v["batch"] * v["flop_per_parameter"] * v["example_parameters"] / v["peak_flop"]


def _reading_share(v: Values) -> tuple[float, ...]:
    return (_reading_s(v) / (_reading_s(v) + _computing_s(v)),)


def _roofline(v: Values) -> float:
    return v["batch"] / max(_reading_s(v), _computing_s(v))


def _energy_shares(v: Values) -> tuple[float, ...]:
    parts = (
        v["cost_p0"] * max(_reading_s(v), _computing_s(v)) / v["batch"],
        v["cost_c"] / v["batch"],
        v["cost_a"] * v["prompt_per_output"],
        v["cost_b"],
        v["cost_d"] * v["context"],
    )
    return tuple(part / sum(parts[1:], parts[0]) for part in parts)


ENERGY_SHARES: Final = Row(
    "energy-shares",
    "I",
    "of an output token's joules: waiting power p0, reading weights c, its prompt a, the token itself b, its context d",
    None,
    "%",
    "p0 · t/batch, c/batch, a · prompt/output, b, d · context",
    (*_STEP, "peak_flop", "cost_p0", "cost_c", "cost_a", "prompt_per_output", "cost_b", "cost_d"),
    _energy_shares,
    "t is a step's time at the data sheet's rates",
)
SHARES: Final = ("p0, waiting", "c, reading weights", "a, its prompt", "b, the token itself", "d, its context")
"""What the values of `energy-shares` are of."""
ROWS: Final = (
    Row(
        "output-input",
        "I",
        "an output token against a prompt token: list prices are 2 to 5 times",
        (2.0, 5.0),
        "x",
        "J per output token / J per prompt token",
        ("j_per_output_token", "j_per_prompt_token"),
        lambda v: (v["j_per_output_token"] / v["j_per_prompt_token"],),
        "energy only",
    ),
    *(
        Row(
            f"electricity-{kind}",
            "I",
            f"electricity of a million {kind} tokens",
            None,
            "USD/Mtoken",
            "J per token · price",
            (f"j_per_{kind}_token", "price"),
            _electricity(kind),
        )
        for kind in ("prompt", "output")
    ),
    Row(
        "mfu",
        "I",
        "share of the peak that is used",
        (45.0, 55.0),
        "%",
        "tokens per second · 2 · parameters / peak",
        ("tokens_per_s", "flop_per_parameter", "served_parameters", "peak_flop"),
        lambda v: (v["tokens_per_s"] * v["flop_per_parameter"] * v["served_parameters"] / v["peak_flop"],),
    ),
    Row(
        "mfu-measured",
        "I",
        "share of the peak that is used, as a night has it: prompts, too",
        (45.0, 55.0),
        "%",
        "measured",
        ("mfu_measured",),
        lambda v: (v["mfu_measured"],),
    ),
    Row(
        "tokens-per-watt",
        "I",
        "output tokens for a joule: tokens a second for a watt",
        None,
        "token/J",
        "tokens per second / power",
        ("tokens_per_s", "gpu_power"),
        lambda v: (v["tokens_per_s"] / v["gpu_power"],),
    ),
    Row(
        "answer-cost",
        "I",
        "electricity of a correct answer",
        None,
        "USD/answer",
        "J per correct answer · price",
        ("answer_energy", "price"),
        lambda v: (v["answer_energy"] * v["price"],),
    ),
    Row(
        "compute-bound",
        "I",
        "inference is “compute-bound”: at most half of a decoding step's time reads memory",
        (0.0, 50.0),
        "%",
        "reading / (reading + computing)",
        (*_STEP, "peak_flop"),
        _reading_share,
        "a long prompt's prefill is the other way round",
    ),
    Row(
        "bandwidth-bound",
        "E",
        "“memory bandwidth is the bottleneck”: at least half of it does",
        (50.0, 100.0),
        "%",
        "reading / (reading + computing)",
        (*_STEP, "peak_flop"),
        _reading_share,
        "set batch and context to see where it turns",
    ),
    ENERGY_SHARES,
    Row(
        "waiting-share",
        "I",
        "share of a GPU's power that it takes while it waits, too",
        None,
        "%",
        "p0 / power at work",
        ("cost_p0", "gpu_power"),
        lambda v: (v["cost_p0"] / v["gpu_power"],),
        "more requests at once share it among them",
    ),
    Row(
        "roofline",
        "I",
        "the most tokens a second that this board can decode of this model",
        None,
        "token/s/GPU",
        "batch / the longer of reading and computing",
        (*_STEP, "peak_flop"),
        lambda v: (_roofline(v),),
        "at the data sheet's rates, which no kernel reaches",
    ),
    Row(
        "roofline-reached",
        "I",
        "what was measured against that",
        None,
        "%",
        "tokens per second / roofline",
        (*_STEP, "peak_flop", "tokens_per_s"),
        lambda v: (v["tokens_per_s"] / _roofline(v),),
        "set weights, kv_bytes and example_parameters to the model that was measured",
    ),
)
