"""Arms against each other: how much each takes, in all and at like batch."""

import math
from typing import Any

from etameter.dashboards import board as selected
from etameter.dashboards.board import board
from etameter.dashboards.overview import NO_CORRECT, NO_JUDGE, NOT_CLASSIFIED
from etameter.dashboards.panels import ARMS, BAD, GOOD, bars, lines, now, query, rows

NO_AUDIT = 'arm!="audit"'
"""Audits have an arm of their own, which is no way of asking."""
OF = f"{selected.OF}, {NO_AUDIT}"
ARM = f"{selected.ARM}, {NO_AUDIT}"
ONE_ARM = "No requests of `unconstrained` within the hour: there is nothing to compare with."
NO_REQUESTS = "No requests within the hour."
LIKE = ((-math.inf, GOOD), (1.005, BAD))


def side_by_side() -> dict[str, Any]:
    of_arm = "{{arm}} {{model_name}}"
    return board(
        "etameter-side-by-side",
        "etameter / Side by side",
        "What each arm's requests take, beside those of `unconstrained`. These are requests as they came: arms may have been asked different "
        "things. A comparison that proves something is `etameter ab`.",
        [
            bars(
                "Joules per request",
                "Energy of finished requests over their number, within the hour.",
                "joule",
                query(f"etameter:request_joules:rate1h{{{ARM}}}", of_arm),
                empty=NO_REQUESTS,
            ),
            bars(
                "Total effect: joules per request against unconstrained",
                "1 is as much as `unconstrained`. Shorter answers, other prompts and other batches are all in it. Orange: it takes more.",
                "none",
                query(f"etameter:arm_request_energy_ratio:rate1h{{{ARM}}}", of_arm),
                thresholds=LIKE,
                empty=ONE_ARM,
            ),
            bars(
                "At like batch: joules per token against unconstrained",
                "What an arm's output tokens took, over what they would have taken in `unconstrained` where as many requests ran together. It should "
                "be close to 1: what an arm saves, it saves by the number of its tokens.",
                "none",
                query(f"etameter:arm_token_energy_ratio_like_batch:rate1h{{{ARM}}}", of_arm),
                thresholds=LIKE,
                empty=ONE_ARM,
            ),
            bars(
                "Joules per correct answer, by audits",
                "Of audits' fresh tasks within a day: energy of all answers under the arm, wrong ones among them, over the correct ones.",
                "joule",
                query(f"etameter:joules_per_correct_answer:rate1d{{{ARM}}}", of_arm),
                empty=NO_CORRECT,
            ),
            bars(
                "Correct answers, by audits",
                "Share of the answers to audits' fresh tasks within a day: an arm that answers briefly and wrongly saves nothing.",
                "percentunit",
                query(f"etameter:correct_answer_share:rate1d{{{ARM}}}", of_arm),
                empty="No task was asked by an audit within a day, see [eta].",
            ),
            bars(
                "Wasted, of the output energy",
                "Share of output energy in answers that were cut off, abandoned or made anew, and in rejected drafts, over five minutes.",
                "percentunit",
                query(f"sum by (model_name, arm, source) (etameter:waste_share:rate5m{{{ARM}}})", of_arm),
                empty="No request finished within five minutes.",
            ),
            lines(
                "Energy per output token",
                "Watt hours per output token after the first, over five minutes, at whatever batch.",
                "watth",
                query(f"etameter:output_wh_per_token:rate5m{{{ARM}}}", of_arm),
                empty="No tokens within five minutes.",
                colours=ARMS,
            ),
            lines(
                "Output tokens per request",
                "Tokens over finished requests, within five minutes: most of what an arm saves.",
                "none",
                query(
                    f'sum by (model_name, arm) (rate(etameter_tokens_total{{kind="output", {OF}}}[5m]))'
                    f" / (sum by (model_name, arm) (rate(etameter_requests_total{{{OF}}}[5m])) > 0)",
                    of_arm,
                ),
                empty=NO_REQUESTS,
                colours=ARMS,
            ),
            lines(
                "Prompt tokens per request",
                "Computed prompt tokens over finished requests, within five minutes: what an arm's own words cost. Those from the prefix cache "
                "are not in it.",
                "none",
                query(
                    f'sum by (model_name, arm) (rate(etameter_tokens_total{{kind="prompt", {OF}}}[5m]))'
                    f" / (sum by (model_name, arm) (rate(etameter_requests_total{{{OF}}}[5m])) > 0)",
                    of_arm,
                ),
                empty=NO_REQUESTS,
                colours=ARMS,
            ),
            lines(
                "Median and 95th percentile of joules per request",
                "From the histogram of finished requests, within the hour. Dashed: the 95th percentile.",
                "joule",
                *(
                    query(
                        f"histogram_quantile({share}, sum by (le, model_name, arm, source) "
                        f"(rate(etameter_request_energy_joules_bucket{{{ARM}}}[1h])))",
                        f"{{{{arm}}}} {name}",
                    )
                    for share, name in ((0.5, "median"), (0.95, "95 %"))
                ),
                dashed="95 %",
                logarithmic=True,
                empty=NO_REQUESTS,
                colours=ARMS,
            ),
            rows(
                "By how many ran together",
                "Within the hour. The batch is the least of its class: 6 means 6 or 7 requests at once. More of them make a token cheaper, and "
                "shorter answers leave fewer of them.",
                (
                    (
                        "joules per output token",
                        "joule",
                        now(
                            f"etameter:batch_output_watts:rate1h{{{ARM}}} / etameter:batch_output_tokens:rate1h{{{ARM}}}"
                        ),
                    ),
                    ("output tokens/s", "short", now(f"etameter:batch_output_tokens:rate1h{{{ARM}}}")),
                ),
                by=("model_name", "arm", "batch", "source"),
                height=12,
                empty=NO_REQUESTS,
            ),
            lines(
                "η is at most",
                "Bound on lenient η by arm, over five minutes.",
                "percentunit",
                query(f"etameter:eta_bound:rate5m{{{ARM}}}", of_arm),
                most=1.0,
                empty=NOT_CLASSIFIED,
                colours=ARMS,
                span=8,
            ),
            lines(
                "Slack, of the output energy",
                "Share of the output energy of classified answers that was found to be slack, by arm.",
                "percentunit",
                query(f"sum by (model_name, arm, source) (etameter:slack_share:rate5m{{{ARM}}})", of_arm),
                empty=NOT_CLASSIFIED,
                colours=ARMS,
                span=8,
            ),
            lines(
                "What would be saved without slack and waste",
                "Share of output energy, over five minutes, that would not have been spent: the marginal joules of slack. The rest of its joules are of "
                "steps that others needed as well.",
                "percentunit",
                query(
                    f"sum by (model_name, arm, source) (rate(etameter_slack_marginal_joules_total{{{ARM}}}[5m]))"
                    f' / (sum by (model_name, arm, source) (rate(etameter_energy_joules_total{{phase="output", {ARM}}}[5m])) > 0)',
                    of_arm,
                ),
                empty=NO_REQUESTS,
                colours=ARMS,
                span=8,
            ),
            rows(
                "η by judges, and how far to trust it",
                "Of the answers that a judge has read, the latest 512 of each arm at most: strict and lenient η by token, and the half-widths of "
                "their 95 % intervals by the sampling alone. Then how far to trust them: the squared correlation of judges with tasks whose answer is known, "
                "and that of the bound on η with judges, with 95 % intervals. Where either is under ½, a difference of η may be none.",
                (
                    *(
                        (
                            name,
                            "percentunit",
                            now(f'max by (model_name, arm) ({gauge}{{method="deep", view="{view}", {OF}}})'),
                        )
                        for view in ("strict", "lenient")
                        for name, gauge in (
                            (view, "etameter_eta_ratio"),
                            (f"{view} ±", "etameter_eta_half_width_ratio"),
                        )
                    ),
                    *(
                        (
                            f"{what}: {name}",
                            "short",
                            now(
                                f'max by (model_name, arm) (etameter_eta_reliability{{tier="{tier}", statistic="{statistic}", {OF}}})'
                            ),
                        )
                        for tier, what in (("deep", "judges"), ("fast", "bound"))
                        for statistic, name in (
                            ("agreement", "ρ²"),
                            ("agreement_low", "low"),
                            ("agreement_high", "high"),
                        )
                    ),
                ),
                by=("model_name", "arm"),
                span=24,
                height=7,
                empty=NO_JUDGE,
            ),
        ],
        since="now-1h",
    )
