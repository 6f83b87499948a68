"""What a token costs on the machine that was measured, and what it earns: the documents' reckoning with measured inputs in it.

A GPU's hour is shared out by joules: a joule of a board that works costs hour / (power · utilisation), so that prompts and outputs pay as they are
attributed. A cloud's hour has its electricity in it; an owned GPU pays for its own, with the building's share on top.
"""

from collections.abc import Callable
from typing import Final

from etameter.arithmetic.formulas import expected_attempts
from etameter.arithmetic.rows import Input, Row, Values

LIST_RATIOS: Final = (2.0, 10 / 3, 5.0, 4.0)
INPUTS: Final = (
    *(
        Input(f"list_ratio_{place}", ratio, "1", "list price of an output token against a prompt token", 1e-6)
        for place, ratio in enumerate(LIST_RATIOS, start=1)
    ),
    Input("life", 4.0, "year", "in which an owned GPU is written off", 1e-3, span=(3.0, 6.0), origin="example"),
    Input(
        "cheap_hours", None, "1", "of a curve: mean of the cheapest hours that hold the load, against the day's", 0.0
    ),
    Input("production_queries", 1e5, "query/day", "in production", 0.0, origin="example"),
    Input("query_joules", None, "J/query", "measured, of a question that was answered", 1e-12),
    Input("query_rate", None, "query/s/GPU", "measured, that one GPU answers", 1e-12),
)
_MACHINE: Final = ("gpu_power", "utilisation")
_OWNED: Final = ("gpu_price", "life", "price", "pue_low")
_CLOUD: Final = ("cloud_low", "cloud_high")


def _electricity(v: Values) -> float:
    """Money for a joule of the board."""
    return v["price"] * v["pue_low"]


def _joule(v: Values) -> tuple[float, ...]:
    """Money for a joule of the board with the machine that it is taken by: a cloud's, low and high, and an owned one's."""
    worked = v["gpu_power"] * v["utilisation"]
    return (*(v[each] / worked for each in _CLOUD), v["gpu_price"] / v["life"] / worked + _electricity(v))


def _cost(kind: str) -> Callable[[Values], tuple[float, ...]]:
    return lambda v: tuple(v[f"j_per_{kind}_token"] * joule for joule in _joule(v))


def _margin(v: Values) -> tuple[float, ...]:
    return (1 - v["j_per_output_token"] * _joule(v)[0] / v["api_price"],)


def _earned(v: Values) -> float:
    """Money that a token leaves for the machine."""
    return v["api_price"] - v["wh_per_token"] * _electricity(v)


def _payback(v: Values) -> tuple[float, ...]:
    earned = _earned(v)
    return (v["gpu_price"] / (v["tokens_per_s"] * v["utilisation"] * earned),) if earned > 0 * earned else ()


def _break_even(v: Values) -> tuple[float, ...]:
    earned = _earned(v)
    owned = (v["gpu_price"] / v["life"] / (v["tokens_per_s"] * earned),) if earned > 0 * earned else ()
    return (v["cloud_low"] / (v["tokens_per_s"] * v["api_price"]), *owned)


def _avoided(v: Values) -> tuple[float, ...]:
    """The share that a prefix cache avoids of what would have been spent without it."""
    avoided = v["cached_share"] * v["kv_prompt_tokens"] * v["j_per_prompt_token"]
    return (avoided / (avoided + v["long_answer"] * v["wh_per_token"]),)


def _production(v: Values) -> tuple[float, ...]:
    machines = v["production_queries"] / (v["query_rate"] * v["utilisation"])
    return v["production_queries"] * v["query_joules"] * _electricity(v), machines * v["cloud_low"]


ROWS: Final = (
    Row(
        "list-ratios",
        "I",
        "an output token against a prompt token, by four list prices",
        None,
        "x",
        "price of output / price of input",
        tuple(f"list_ratio_{place}" for place in (1, 2, 3, 4)),
        lambda v: tuple(v[f"list_ratio_{place}"] for place in (1, 2, 3, 4)),
        "`output-input` is what a machine says",
    ),
    *(
        Row(
            f"cost-{kind}",
            "I",
            f"a million {kind} tokens, with a cloud's hour at its low and high price, and on an owned GPU",
            None,
            "USD/Mtoken",
            "J per token · hour/(power · utilisation); owned: (GPU price/life)/(power · utilisation) + electricity · PUE",
            (f"j_per_{kind}_token", *_MACHINE, *_CLOUD, *_OWNED),
            _cost(kind),
            "the hour is shared out by joules",
        )
        for kind in ("prompt", "output")
    ),
    Row(
        "margin-measured",
        "I",
        "margin on output tokens with a cloud's hour at its low price: 50 and 80 % are claimed",
        (50.0, 80.0),
        "%",
        "1 − cost/price",
        ("j_per_output_token", *_MACHINE, *_CLOUD, *_OWNED, "api_price"),
        _margin,
    ),
    Row(
        "break-even-measured",
        "I",
        "utilisation at which this GPU earns its hour, of a cloud at its low price and owned",
        None,
        "%",
        "hour / (tokens per second · price of a token); owned: less electricity",
        ("cloud_low", "tokens_per_s", "wh_per_token", "api_price", *_OWNED),
        _break_even,
        "above 100 %, buying tokens is cheaper than making them",
    ),
    Row(
        "payback-measured",
        "I",
        "time in which this GPU is paid back at the API's price",
        None,
        "year",
        "GPU price / (tokens per second · utilisation · (price − electricity))",
        ("gpu_price", "tokens_per_s", "utilisation", "wh_per_token", "api_price", "price", "pue_low"),
        _payback,
    ),
    Row(
        "table-rate",
        "I",
        "GPU table, a measured row: tokens a second, where the table says 2,800 of an H100",
        (2800.0,),
        "token/s/GPU",
        "measured",
        ("tokens_per_s",),
        lambda v: (v["tokens_per_s"],),
        "of another model and load than the table's, which names none",
    ),
    Row(
        "table-cost",
        "I",
        "GPU table, a measured row: a million tokens with a cloud's hour at its low price; the table has $.17 to $.30",
        (0.17, 0.30),
        "USD/Mtoken",
        "price of an hour / (tokens per second · utilisation)",
        ("cloud_low", "tokens_per_s", "utilisation"),
        lambda v: (v["cloud_low"] / (v["tokens_per_s"] * v["utilisation"]),),
    ),
    Row(
        "caching-energy",
        "I",
        "saved by caching, of all energy",
        (75.0, 90.0),
        "%",
        "avoided / (avoided + spent)",
        ("cached_share", "kv_prompt_tokens", "j_per_prompt_token", "long_answer", "wh_per_token"),
        _avoided,
        "an avoided prompt token is taken to cost what a computed one did",
    ),
    Row(
        "token-efficiency",
        "I",
        "saved by shorter outputs, per correct answer",
        (20.0, 40.0),
        "%",
        "measured, of `entrace` against the control",
        ("saving_measured",),
        lambda v: (v["saving_measured"],),
    ),
    Row(
        "saving-money",
        "I",
        "electricity that shorter outputs save of a correct answer",
        None,
        "USD/answer",
        "J per correct answer · saving · price · PUE",
        ("answer_energy", "saving_measured", "price", "pue_low"),
        lambda v: (v["answer_energy"] * v["saving_measured"] * _electricity(v),),
    ),
    Row(
        "scheduling",
        "I",
        "saved by moving all load into the cheapest hours of the day that hold it",
        (30.0, 50.0),
        "%",
        "1 − mean of the cheapest 24 h · utilisation / mean of the day",
        ("cheap_hours",),
        lambda v: (1 - v["cheap_hours"],),
        "of money or grams, whichever the curve is of; answers that somebody waits for can't be moved",
    ),
    Row(
        "retry-cost",
        "I",
        "electricity of a retry loop",
        None,
        "USD/query",
        "attempts · J per question · price · PUE",
        ("success", "attempts", "query_joules", "price", "pue_low"),
        lambda v: (expected_attempts(v["success"], v["attempts"]) * v["query_joules"] * _electricity(v),),
        "per answer that is right it is J per question over the chance, whatever the limit",
    ),
    Row(
        "production-measured",
        "I",
        "a month in production at what was measured: electricity, and a cloud's hours at the low price",
        None,
        "USD/month",
        "queries · J per question · price · PUE; queries / (rate · utilisation) · price of an hour",
        ("production_queries", "query_joules", "query_rate", "utilisation", "cloud_low", "price", "pue_low"),
        _production,
        "as if the load kept its mix, and one GPU more answered as many more",
    ),
    Row(
        "production-gpus",
        "I",
        "GPUs that this takes",
        None,
        "GPU",
        "queries / (rate · utilisation)",
        ("production_queries", "query_rate", "utilisation"),
        lambda v: (v["production_queries"] / (v["query_rate"] * v["utilisation"]),),
    ),
    Row(
        "tokens-per-dollar",
        "P",
        "output tokens for a dollar: of electricity, and of a cloud's hour at its low price",
        None,
        "token/USD",
        "1 / (J per token · price · PUE), tokens per second · utilisation / price of an hour",
        ("wh_per_token", "price", "pue_low", "tokens_per_s", "utilisation", "cloud_low"),
        lambda v: (1 / (v["wh_per_token"] * _electricity(v)), v["tokens_per_s"] * v["utilisation"] / v["cloud_low"]),
    ),
    Row(
        "value-stack",
        "P",
        "eq. 10: what a kWh is worth as electricity, and as tokens at an API's price",
        None,
        "USD/kWh",
        "price; price of a token / J per token",
        ("price", "api_price", "wh_per_token"),
        lambda v: (v["price"], v["api_price"] / v["wh_per_token"]),
        "the two levels that have a price; what an answer is worth to its reader has none",
    ),
)
