"""Is a PromQL expression sound? It parses, names metrics that exist, and drops no source.

Rules and dashboards are checked alike, when they are made and in every test run.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import promql_parser
import yaml

from etameter.errors import EtameterError
from etameter.export.catalogue import CATALOGUE

RULES = Path(__file__).parent / "rules"
OF_PROMETHEUS = frozenset({"up", "ALERTS"})
OF_TARGETS = frozenset({"cluster", "node", "job", "instance", "environment", "le"})
"""Labels that every metric may have, whoever scrapes it."""
SUFFIXES = ("_bucket", "_count", "_sum")
"""Of what a histogram is told by."""
GRAFANA_SPANS = re.compile(r"\$__(rate_interval|range)\b")
"""Times that hold several scrapes. `$__interval` may hold a single one, of which there is no rate."""


class RuleError(EtameterError):
    """An expression that would not say what it seems to."""


def rules() -> dict[str, str]:
    """The expressions of all rules and alerts, by their names. Raises RuleError where a file holds none."""
    found: dict[str, str] = {}
    for file in sorted(RULES.glob("*.yaml")):
        try:
            groups = yaml.safe_load(file.read_text())["groups"]
            found |= {rule.get("record") or rule["alert"]: rule["expr"] for group in groups for rule in group["rules"]}
        except (yaml.YAMLError, KeyError, TypeError) as error:
            form = "groups of rules, each with record or alert, and expr"
            raise RuleError(f"{file.name} is no file of rules ({error})", f"write {form}") from error
    return found


def labels_by_metric(recorded: Mapping[str, str]) -> dict[str, frozenset[str]]:
    """The metrics that an expression may name, with their labels: those of the catalogue, and as far as it matters of what rules record."""
    known = {name: frozenset[str]() for name in OF_PROMETHEUS}
    for metric in CATALOGUE:
        names = [metric.name + suffix for suffix in SUFFIXES] if metric.type == "histogram" else [metric.name]
        known |= dict.fromkeys(names, frozenset(metric.labels) | OF_TARGETS)
    return known | {name: frozenset({"source"}) for name in recorded if ":" in name}


def check(where: str, expression: str, known: Mapping[str, frozenset[str]]) -> None:
    """See that an expression of `where` is sound; Grafana's variables may stand in it.

    Raises:
        RuleError: it can't be parsed, names an unknown metric or selects by a label that it doesn't have, or sums over sources.
    """
    try:
        tree = promql_parser.parse(GRAFANA_SPANS.sub("5m", expression))
    except ValueError as error:
        raise RuleError(f"{where} can't be parsed ({error})", "write PromQL") from error
    for selector in _selectors(tree):
        if selector.name not in known:
            raise RuleError(
                f"{where} asks for {selector.name}, which neither the meter tells nor a rule records",
                "see docs/metrics.md for what there is",
            )
        unknown = {each.name for each in selector.matchers.matchers} - known[selector.name]
        if unknown and known[selector.name] >= OF_TARGETS:
            raise RuleError(
                f"{where} selects {selector.name} by {', '.join(sorted(unknown))}, which it doesn't have",
                f"it has {', '.join(sorted(known[selector.name] - OF_TARGETS))}",
            )
    for aggregate in _walk(tree):
        if isinstance(aggregate, promql_parser.AggregateExpr) and not _keeps_source(aggregate, known):
            raise RuleError(
                f"{where} adds figures of several sources: {aggregate.prettify()}",
                "name source in its by(), or select one",
            )


def _keeps_source(aggregate: Any, known: Mapping[str, frozenset[str]]) -> bool:
    modifier = aggregate.modifier
    if modifier is not None:
        by = modifier.type == promql_parser.AggModifierType.By
        if ("source" in modifier.labels) == by:
            return True
    return not any("source" in known[each.name] and not _is_of_one_source(each) for each in _selectors(aggregate))


def _is_of_one_source(selector: Any) -> bool:
    return any(each.name == "source" and each.op == promql_parser.MatchOp.Equal for each in selector.matchers.matchers)


def _selectors(tree: Any) -> Iterator[Any]:
    return (each for each in _walk(tree) if isinstance(each, promql_parser.VectorSelector))


def _walk(tree: Any) -> Iterator[Any]:
    yield tree
    parts = [getattr(tree, name, None) for name in ("lhs", "rhs", "expr", "vector_selector", "param")]
    for part in (*parts, *getattr(tree, "args", ())):
        if part is not None and not isinstance(part, str):
            yield from _walk(part)
