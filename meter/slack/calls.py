"""What of a tool call's arguments its schema didn't ask for: the least JSON that says the same, beside what was written.

Beyond it are white space, optional arguments that equal their default, and keys that the schema doesn't know. A value under a schema that offers a choice (`anyOf`
and the like) is taken as it is, as is a `null`, which some tools take for something else than nothing.

Servers that parse calls write the arguments anew as a rule. Where they stand as `json.dumps` would write them, the white space may be the server's and not the
model's, and is left out on both sides.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from .fast import Labelled
from .labels import UNTOLD

OPEN, CLOSE = "<tool_call>", "</tool_call>"
"""Between which the server tells the arguments of calls: see `etameter.serving.texts`."""
_DEEPEST: Final = 32
_DECODER: Final = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class Call:
    """Characters of a call's arguments."""

    minimal: str
    characters: int
    """As they count: see above of white space."""
    white_space: int
    defaults: int
    unknown: int

    @property
    def eta(self) -> float:
        """Share that the schema asked for."""
        return min(len(self.minimal) / self.characters, 1.0) if self.characters else 1.0


def least(arguments: str, schema: Mapping[str, Any]) -> Call | None:
    """None where the arguments are no JSON object. What is no schema, which nobody has looked at yet, asks for everything."""
    try:
        told = json.loads(arguments)
    except (ValueError, RecursionError):
        return None
    if not isinstance(told, dict):
        return None
    compact = _compact(told)
    rewritten = arguments in {json.dumps(told), json.dumps(told, ensure_ascii=False)}
    characters = len(compact) if rewritten else max(len(arguments), len(compact))
    known = _without(told, schema, schema, _is_unknown)
    minimal = _without(known, schema, schema, _is_default)
    return Call(
        minimal=_compact(minimal),
        characters=characters,
        white_space=characters - len(compact),
        defaults=len(_compact(known)) - len(_compact(minimal)),
        unknown=len(compact) - len(_compact(known)),
    )


def cut(spans: Sequence[Labelled], response: str, schemas: Sequence[Mapping[str, Any]]) -> tuple[Labelled, ...]:
    """A response's spans, in which that of its calls, which stand one after the other between their marks, is parted: as much of its end as is beyond the least
    is slack, for sure. Where it stands is not told apart. As they were where the calls can't be read.
    """
    place = max((place for place, span in enumerate(spans) if span.kind == "tool_call"), default=None)
    if place is None or not schemas:
        return tuple(spans)
    span = spans[place]
    told = response[span.start : span.end].strip().removeprefix(OPEN)
    beyond = 0
    for schema in schemas:
        told = told.lstrip()
        try:
            _, end = _DECODER.raw_decode(told)
        except (ValueError, RecursionError):
            return tuple(spans)
        call = least(told[:end], schema)
        if call is None:
            return tuple(spans)
        beyond += max(call.characters - len(call.minimal), 0)
        told = told[end:]
    if not beyond or told.strip() != CLOSE:
        return tuple(spans)
    parts = replace(span, end=span.end - beyond), replace(span, start=span.end - beyond, label=UNTOLD, p_slack=1.0)
    return *spans[:place], *parts, *spans[place + 1 :]


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def _is_unknown(key: str, _value: object, schema: Mapping[str, Any]) -> bool:
    """A schema that says nothing of further keys allows them; a tool has no use for them all the same."""
    properties = schema.get("properties")
    open_ended = schema.get("additionalProperties", False) is not False or "patternProperties" in schema
    return isinstance(properties, Mapping) and key not in properties and not open_ended


def _is_default(key: str, value: object, schema: Mapping[str, Any]) -> bool:
    of_key, required = _properties(schema).get(key), schema.get("required")
    return (
        isinstance(of_key, Mapping)
        and "default" in of_key
        and (required is None or (isinstance(required, list) and key not in required))
        and _compact(of_key["default"]) == _compact(value)
    )


def _properties(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    told = schema.get("properties")
    return told if isinstance(told, Mapping) else {}


def _without(value: Any, schema: object, root: Mapping[str, Any], goes: Any, deep: int = 0) -> Any:
    """The value without those keys of it, and of what is in it, that go."""
    schema = _resolved(schema, root)
    if schema is None or deep > _DEEPEST:
        return value
    if isinstance(value, dict):
        properties = _properties(schema)
        return {
            key: _without(each, properties.get(key), root, goes, deep + 1)
            for key, each in value.items()
            if not goes(key, each, schema)
        }
    if isinstance(value, list):
        return [_without(each, schema.get("items"), root, goes, deep + 1) for each in value]
    return value


def _resolved(schema: object, root: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The schema that a reference within its document names; None where there is none, or one that offers a choice."""
    for _ in range(_DEEPEST):
        if not isinstance(schema, Mapping) or {"anyOf", "oneOf", "allOf", "if", "not"} & schema.keys():
            return None
        reference = schema.get("$ref")
        if reference is None:
            return schema
        if not isinstance(reference, str) or not reference.startswith("#/"):
            return None
        schema = root
        for part in reference[2:].split("/"):
            schema = schema.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(schema, Mapping) else None
    return None
