"""Which arm a request belongs to: the one that its header names, else the first whose system prompt, API key or model it has.

Names are a closed set, because they become labels. Prompts and keys are known by their SHA-256 alone.
"""

import hashlib
import hmac
import json
import os
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple, Self

from etameter.config import audit_key_path

UNLABELLED = "unlabelled"
"""Of a request that says nothing of arms, where no arm is known by anything else."""
OTHER = "other"
"""Of a request that names no known arm, or has nothing by which one is known."""
NAMES, RULES = "ETAMETER_ARMS", "ETAMETER_ARM_RULES"
"""Environment variables: names with commas between them, and a JSON object of `Rule`s by name."""
DEFAULT_ARMS = "unconstrained,entrace,entrace-stack,entrace-task,seed,deterministic,concise,placebo,audit"

AUDIT = "audit"
"""Of what etameter itself asks to find slack: its requests bear a key that only the server's own user can read."""

_HEADER = b"x-etameter-arm"
_AUDIT_HEADER = b"x-etameter-audit"
_KEY_HEADERS = frozenset({b"authorization", b"x-api-key"})
_SYSTEM = frozenset({"system", "developer"})


class Rule(NamedTuple):
    """By what an arm is known beside its name. Hashes are lower-case hexadecimal."""

    system_prompts: frozenset[str]
    api_keys: frozenset[str]
    models: frozenset[str]


class Arms:
    def __init__(self, names: Iterable[str], rules: Mapping[str, Rule]) -> None:
        self._names = frozenset(names)
        self._prompts: dict[str | None, str] = {
            known: name for name, rule in rules.items() for known in rule.system_prompts
        }
        self._keys: dict[str | None, str] = {known: name for name, rule in rules.items() for known in rule.api_keys}
        self._models = {known: name for name, rule in rules.items() for known in rule.models}
        self._otherwise = OTHER if self._prompts or self._keys or self._models else UNLABELLED

    @classmethod
    def from_environment(cls) -> Self:
        """As `etameter serve` has set it. Raises ValueError where somebody else has."""
        told = json.loads(os.environ.get(RULES, "{}"))
        rules = {name: Rule(*(frozenset(known) for known in rule)) for name, rule in told.items()}
        return cls(filter(None, os.environ.get(NAMES, DEFAULT_ARMS).split(",")), rules)

    def of(self, scope: MutableMapping[str, Any], request: object) -> str:
        """The arm of a request with these headers and this body; None for a body that was too long to be looked into."""
        for name, value in scope["headers"]:
            if name == _HEADER:
                arm = value.decode("latin-1").strip()
                return arm if arm in self._names and (arm != AUDIT or _is_audit(scope["headers"])) else OTHER
        if self._otherwise == UNLABELLED:
            return UNLABELLED
        asked = request if isinstance(request, dict) else {}
        prompt = system_prompt(asked)
        return (
            self._prompts.get("" if prompt is None else _sha256(prompt))
            or next((arm for key in key_hashes(scope["headers"]) if (arm := self._keys.get(key))), None)
            or self._models.get(str(asked.get("model")))
            or self._otherwise
        )


def environment(names: Sequence[str], rules: Mapping[str, Rule]) -> dict[str, str]:
    """What the server's processes are told of arms."""
    told = {name: [sorted(known) for known in rule] for name, rule in rules.items() if any(rule)}
    return {NAMES: ",".join(names), RULES: json.dumps(told)}


def system_prompt(request: Mapping[str, Any]) -> str | None:
    """The text of a chat's first message, where that is the system's or the developer's: of several parts, those that are text, joined by nothing."""
    messages = request.get("messages")
    first = messages[0] if isinstance(messages, list) and messages else None
    if not isinstance(first, dict) or first.get("role") not in _SYSTEM:
        return None
    content = first.get("content")
    parts = content if isinstance(content, list) else [{"text": content}]
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return "".join(text for text in texts if isinstance(text, str))


def _is_audit(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    borne = next((value for name, value in headers if name == _AUDIT_HEADER), b"")
    try:
        key = audit_key_path().read_bytes()
    except OSError:  # without a meter there is nobody whom it matters to
        return False
    return bool(key) and hmac.compare_digest(borne, key)


def key_hashes(headers: Iterable[tuple[bytes, bytes]]) -> list[str]:
    """SHA-256, as the configuration has it, of each API key that a request with these headers bears, without the word `Bearer` before it.

    Of each, because the server looks at one of them alone: a second one, that nobody knows, hides none.
    """
    told = [value.decode("latin-1").strip().partition(" ") for name, value in headers if name in _KEY_HEADERS]
    keys = (key.strip() if scheme.lower() == "bearer" else scheme for scheme, _, key in told)
    return [_sha256(key) for key in keys]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()
