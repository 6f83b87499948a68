"""A SELECT in two: one for each of many parts of a table, and one for all of their answers together.

What can be asked so has one table, and sums, counts, means and extremes: `avg` becomes a sum and a count. The rest is refused, with what to do instead.
DuckDB parses the question and writes the two; nothing is cut out of text here.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import duckdb

from etameter.errors import ArchiveError

Node = dict[str, Any]
_MERGED: Final = {"sum": "sum", "count": "sum", "count_star": "sum", "min": "min", "max": "max"}
"""By which aggregate the parts' answers become the whole's."""
_APART: Final = frozenset({"query_location", "query_location_length", "alias"})
"""Members of a node by which two of one meaning may differ."""


@dataclass(frozen=True, slots=True)
class Halves:
    """`each` is asked of every part, where the table has its own name; `all` of the table `answers`."""

    table: str
    each: str
    all: str


def halves(connection: duckdb.DuckDBPyConnection, query: str) -> Halves:
    """`connection` has the tables, of which rows are not needed.

    Raises:
        ArchiveError: the question can't be asked of parts.
        duckdb.Error: the question is wrong.
    """
    described = connection.execute(f"DESCRIBE {query}").fetchall()
    ((told,),) = connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [query]).fetchall()
    tree = json.loads(told)
    node = tree["statements"][0]["node"]
    table = _table(node)
    aggregates = frozenset(
        name
        for (name,) in connection.execute(
            "SELECT DISTINCT function_name FROM duckdb_functions() WHERE function_type = 'aggregate'"
        ).fetchall()
    )
    splitting = _Splitting(aggregates)
    grouped = splitting.groups(node)
    each, whole = (splitting.grouped if grouped else splitting.listed)(node, [name for name, *_ in described])

    columns = ", ".join(f"CAST({_quoted(name)} AS {kind}) AS {_quoted(name)}" for name, kind, *_ in described)
    whole_text = _written(connection, tree, whole)
    return Halves(table, _written(connection, tree, each), f"SELECT {columns} FROM ({whole_text})")  # noqa: S608  # what DuckDB itself says


def _written(connection: duckdb.DuckDBPyConnection, tree: Node, select: Node) -> str:
    statement = {**tree["statements"][0], "node": select}
    told = json.dumps({**tree, "statements": [statement]})
    ((text,),) = connection.execute("SELECT json_deserialize_sql(?::JSON)", [told]).fetchall()
    return str(text)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _table(node: Node) -> str:
    source = node.get("from_table", {})
    if node["type"] != "SELECT_NODE" or node["cte_map"]["map"] or source.get("type") != "BASE_TABLE":
        raise _refused("more than one table")
    if node["qualify"] is not None or node["sample"] is not None or len(node["group_sets"]) > 1:
        raise _refused("QUALIFY, a sample or several groupings")
    return str(source["table_name"])


def _refused(what: str) -> ArchiveError:
    return ArchiveError(
        f"the query has {what}, which isn't asked of parts one by one",
        "ask one table for sum, count, avg, min and max, or leave out --engine ray",
    )


class _Splitting:
    def __init__(self, aggregates: frozenset[str]) -> None:
        self._aggregates = aggregates
        self._partial: list[Node] = []
        self._keys: list[tuple[Node, Node]] = []

    def groups(self, node: Node) -> bool:
        """Whether it aggregates at all."""
        found = False
        for each in _walk(node):
            if each.get("class") in {"SUBQUERY", "WINDOW"}:
                raise _refused("a subquery or a window")
            found |= self._is_aggregate(each)
        return found or bool(node["group_expressions"]) or node["aggregate_handling"] == "FORCE_AGGREGATES"

    def listed(self, node: Node, names: Sequence[str]) -> tuple[Node, Node]:
        """Rows as they are: each part gives as many as the whole may want."""
        for order in (order for modifier in node["modifiers"] for order in modifier.get("orders", ())):
            _check_listed(order["expression"], names)
        each = {**node, "modifiers": [_from_the_first(modifier) for modifier in node["modifiers"]]}
        whole = {**_bare(node), "select_list": [_column(name) for name in names], "from_table": _answers(node)}
        return each, whole

    def grouped(self, node: Node, names: Sequence[str]) -> tuple[Node, Node]:
        keys = self._key_expressions(node)
        self._keys = [(_meaning(key), _column(f"k{place}")) for place, key in enumerate(keys)]
        chosen = [{**self._merged(each), "alias": name} for each, name in zip(node["select_list"], names, strict=True)]
        having, modifiers = self._merged(node["having"]), self._merged(node["modifiers"])
        of_parts = [{**key, "alias": f"k{place}"} for place, key in enumerate(keys)] + self._partial
        each = {**_bare(node), "where_clause": node["where_clause"], "select_list": of_parts, "modifiers": []}
        each["aggregate_handling"] = "FORCE_AGGREGATES"
        places = [_column(f"k{place}") for place in range(len(keys))]
        whole = {**_bare(node), "modifiers": modifiers, "having": having, "from_table": _answers(node)}
        whole |= {"select_list": chosen, "group_expressions": places}
        return each, {**whole, "group_sets": [list(range(len(places)))] if places else []}

    def _key_expressions(self, node: Node) -> list[Node]:
        """What it groups by: what it says, or all that it lists and doesn't aggregate."""
        listed = node["select_list"]
        if node["aggregate_handling"] == "FORCE_AGGREGATES":
            return [each for each in listed if not any(map(self._is_aggregate, _walk(each)))]
        named = {each["alias"]: each for each in listed if each["alias"]}
        return [_meant(key, listed, named) for key in node["group_expressions"]]

    def _merged(self, node: Any) -> Any:
        """The same of the parts' answers."""
        if isinstance(node, list):
            return [self._merged(each) for each in node]
        if not isinstance(node, dict):
            return node
        for meaning, column in self._keys:
            if _meaning(node) == meaning:
                return {**column, "alias": node.get("alias", "")}
        if self._is_aggregate(node):
            return self._aggregate(node)
        return {name: self._merged(value) for name, value in node.items()}

    def _aggregate(self, node: Node) -> Node:
        name = node["function_name"]
        if node["distinct"] or node["order_bys"]["orders"] or (name not in _MERGED and name != "avg"):
            raise _refused(f"{name} of distinct or ordered values" if name in _MERGED else name)
        if name == "avg":
            total, count = (self._asked(_called(node, each), "sum") for each in ("sum", "count"))
            return {**_call("/", total, count, is_operator=True), "alias": node["alias"]}
        merged = self._asked(node, _MERGED[name])
        if name.startswith("count"):  # of no part at all there are none
            merged = {"class": "OPERATOR", "type": "OPERATOR_COALESCE", "children": [merged, _constant(0)]}
        return {**merged, "alias": node["alias"]}

    def _asked(self, node: Node, by: str) -> Node:
        name = f"a{len(self._partial)}"
        self._partial.append({**node, "alias": name})
        return _call(by, _column(name))

    def _is_aggregate(self, node: Mapping[str, Any]) -> bool:
        return node.get("class") == "FUNCTION" and not node["is_operator"] and node["function_name"] in self._aggregates


def _walk(node: Any) -> "list[Node]":
    if isinstance(node, list):
        return [found for each in node for found in _walk(each)]
    if not isinstance(node, dict):
        return []
    return [node, *(found for value in node.values() for found in _walk(value))]


def _meant(key: Node, listed: Sequence[Node], named: Mapping[str, Node]) -> Node:
    """What is grouped by, where that is said by its place in the list or by its name there."""
    if key["class"] == "CONSTANT" and key["literal"]["kind"] == "INTEGER":
        return listed[int(key["literal"]["text"]) - 1]
    return named.get(key["column_names"][-1], key) if key["class"] == "COLUMN_REF" else key


def _meaning(node: Any) -> Any:
    """A node without what two of one meaning may differ by."""
    if isinstance(node, list):
        return [_meaning(each) for each in node]
    if not isinstance(node, dict):
        return node
    return {name: _meaning(value) for name, value in node.items() if name not in _APART}


def _bare(node: Node) -> Node:
    """Of all rows, as they are."""
    none: Node = {"where_clause": None, "having": None, "group_expressions": [], "group_sets": []}
    return {**node, **none, "aggregate_handling": "STANDARD_HANDLING"}


def _answers(node: Node) -> Node:
    return {**node["from_table"], "alias": "", "table_name": "answers", "qualified_name": {"path": ["answers"]}}


def _from_the_first(modifier: Node) -> Node:
    """A part's rows that the whole may want: it is the whole that passes over the first."""
    if modifier["type"] == "DISTINCT_MODIFIER" and modifier["distinct_on_targets"]:
        raise _refused("DISTINCT ON")
    if modifier["type"] != "LIMIT_MODIFIER":
        return modifier
    numbers = [each for each in (modifier["limit"], modifier["offset"]) if each is not None]
    if modifier["limit_type"] != "ROW_COUNT" or any(each["class"] != "CONSTANT" for each in numbers):
        raise _refused("a LIMIT that is no number")
    if modifier["limit"] is None:
        return {**modifier, "offset": None}
    return {**modifier, "limit": _constant(sum(int(each["literal"]["text"]) for each in numbers)), "offset": None}


def _check_listed(ordered_by: Node, names: Sequence[str]) -> None:
    listed = ordered_by["class"] == "COLUMN_REF" and ordered_by["column_names"][-1] in names
    if not listed and ordered_by["class"] not in {"CONSTANT", "STAR"}:
        raise _refused("an ORDER BY of what it doesn't list")


def _called(node: Node, name: str) -> Node:
    return {**node, "function_name": name, "qualified_name": {"path": [name]}}


def _call(name: str, *arguments: Node, is_operator: bool = False) -> Node:
    return {
        "class": "FUNCTION",
        "type": "FUNCTION",
        "alias": "",
        "function_name": name,
        "schema": "",
        "filter": None,
        "order_bys": {"type": "ORDER_MODIFIER", "orders": []},
        "distinct": False,
        "is_operator": is_operator,
        "export_state": False,
        "catalog": "",
        "arguments": [{"name": "", "expression": each} for each in arguments],
        "qualified_name": {"path": [name]},
    }


def _column(name: str) -> Node:
    return {"class": "COLUMN_REF", "type": "COLUMN_REF", "alias": "", "column_names": [name]}


def _constant(number: int) -> Node:
    literal = {"kind": "INTEGER", "text": str(number)}
    return {"class": "CONSTANT", "type": "VALUE_CONSTANT", "alias": "", "literal": literal}
