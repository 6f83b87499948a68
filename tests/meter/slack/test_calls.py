"""What of a tool call's arguments its schema didn't ask for."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etameter.slack.calls import cut, least
from etameter.slack.fast import classify

pytestmark = pytest.mark.unit

UNIT = {"type": "string", "enum": ["C", "F"], "default": "C"}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "unit": UNIT,
        "days": {"type": "integer", "default": 1},
        "where": {"$ref": "#/$defs/place"},
        "stops": {"type": "array", "items": {"$ref": "#/$defs/place"}},
        "other": {"anyOf": [{"type": "object", "properties": {}}, {"type": "null"}]},
    },
    "required": ["city"],
    "$defs": {"place": {"type": "object", "properties": {"x": {"type": "integer", "default": 0}}}},
}


@pytest.mark.parametrize(
    ("arguments", "minimal", "white_space", "defaults", "unknown"),
    [
        ('{"city":"Paris"}', '{"city":"Paris"}', 0, 0, 0),
        ('{\n  "city": "Paris"\n}', '{"city":"Paris"}', 5, 0, 0),
        ('{"city":"Paris","unit":"C"}', '{"city":"Paris"}', 0, 11, 0),
        ('{"city":"Paris","unit":"F"}', '{"city":"Paris","unit":"F"}', 0, 0, 0),
        ('{"city":"Paris","why":"asked"}', '{"city":"Paris"}', 0, 0, 14),
        ('{"city":"Paris","why":1,"days":1}', '{"city":"Paris"}', 0, 9, 8),
        ('{"city":"Paris","where":{"x":0,"y":2}}', '{"city":"Paris","where":{}}', 0, 5, 6),
        ('{"city":"Paris","stops":[{"x":0},{"x":1}]}', '{"city":"Paris","stops":[{},{"x":1}]}', 0, 5, 0),
        ('{"city":"Paris","other":{"z":1}}', '{"city":"Paris","other":{"z":1}}', 0, 0, 0),
        ('{"city":"Paris","unit":null}', '{"city":"Paris","unit":null}', 0, 0, 0),
    ],
)
def test_what_is_beyond_the_least(arguments: str, minimal: str, white_space: int, defaults: int, unknown: int) -> None:
    found = least(arguments, SCHEMA)
    assert found is not None
    assert (found.minimal, found.white_space, found.defaults, found.unknown) == (
        minimal,
        white_space,
        defaults,
        unknown,
    )
    assert found.characters == len(arguments) == len(minimal) + white_space + defaults + unknown
    assert found.eta == pytest.approx(len(minimal) / len(arguments))


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": ["a"]},
        {"properties": "a"},
        {"properties": {"a": 1}},
        {"properties": {"a": {"default": {"b": 1}}}, "required": 5},
        {"properties": {"a": {"properties": [1]}}},
        {"$ref": "#/x/0", "x": [1]},
    ],
)
def test_what_is_no_schema_asks_for_everything(schema: dict[str, Any]) -> None:
    """Clients send what they like, and servers read no more of it than they need."""
    found = least('{"a":{"b":1}}', schema)
    assert found is not None
    assert found.minimal == '{"a":{"b":1}}'


def test_what_is_required_is_never_beyond_though_it_equals_its_default() -> None:
    schema = {**SCHEMA, "required": ["unit"]}
    found = least('{"unit":"C"}', schema)
    assert found is not None
    assert (found.minimal, found.eta) == ('{"unit":"C"}', 1.0)


def test_white_space_that_a_server_may_have_written_is_left_out_on_both_sides() -> None:
    told = json.dumps({"city": "Paris", "unit": "C"})
    found = least(told, SCHEMA)
    assert found is not None
    assert (found.white_space, found.characters, found.minimal) == (0, len(told) - 3, '{"city":"Paris"}')


@pytest.mark.parametrize(
    "open_ended",
    [{"additionalProperties": True}, {"additionalProperties": {"type": "string"}}, {"patternProperties": {}}],
)
def test_a_schema_that_names_further_keys_knows_them(open_ended: dict[str, Any]) -> None:
    found = least('{"city":"Paris","why":"so"}', {**SCHEMA, **open_ended})
    assert found is not None
    assert found.unknown == 0


@pytest.mark.parametrize("arguments", ["", "no", "[1]", "{", '"a"', "{" * 100_000])
def test_what_is_no_object_is_not_known(arguments: str) -> None:
    assert least(arguments, SCHEMA) is None


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(st.sampled_from(["city", "unit", "days", "where", "why", "$ref"]), values),
    st.sampled_from([None, 1]),
)
def test_the_least_says_nothing_new_and_is_its_own_least(told: dict[str, Any], indent: int | None) -> None:
    found = least(json.dumps(told, indent=indent), SCHEMA)
    assert found is not None
    left = json.loads(found.minimal)
    assert left.keys() <= told.keys()
    assert 0.0 < found.eta <= 1.0
    assert found.characters == len(found.minimal) + found.white_space + found.defaults + found.unknown
    again = least(found.minimal, SCHEMA)
    assert again is not None
    assert (again.minimal, again.eta) == (found.minimal, 1.0)


def test_of_a_response_the_end_of_its_calls_is_slack_as_long_as_what_is_beyond_the_least() -> None:
    response = 'I look.\n<tool_call>{"city":"Paris","unit":"C"}{"city":"Rome"}</tool_call>'
    spans = classify("Weather?", response)
    *before, call = spans
    *_, needed, beyond = cut(spans, response, [SCHEMA, SCHEMA])
    assert (needed.start, needed.end, needed.p_slack) == (call.start, len(response) - 11, None)
    assert (beyond.start, beyond.end, beyond.label, beyond.p_slack) == (len(response) - 11, len(response), "X", 1.0)
    assert cut(spans, response, [SCHEMA, SCHEMA])[: len(before)] == tuple(before)


@pytest.mark.parametrize(
    ("response", "calls"),
    [
        ('<tool_call>{"city":"Paris","unit":"C"}</tool_call>', 0),
        ('<tool_call>{"city":"Paris","unit":"C"}</tool_call>', 2),
        ('<tool_call>{"city":"Paris","unit":"C"}{"city":"Rome"}</tool_call>', 1),
        ('<tool_call>{"city":"Paris"}</tool_call>', 1),
        ('<tool_call>{"city":"Paris","unit":</tool_call>', 1),
        ("No call.", 1),
    ],
)
def test_what_can_not_be_read_or_is_the_least_stays_as_it_is(response: str, calls: int) -> None:
    spans = classify("Weather?", response)
    assert cut(spans, response, [SCHEMA] * calls) == spans


def test_a_reference_to_itself_ends() -> None:
    assert least('{"a":{"a":1}}', {"$ref": "#"}) is not None
