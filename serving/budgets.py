"""On which energy budgets a request draws: those of its arm, and those that have its API key. Keys are known by their SHA-256 alone.

Nobody is refused anything here. The response says how its budgets stand, as the meter last told.
"""

import json
import os
from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any, Final, NamedTuple, Self

from etameter.serving.arms import key_hashes

BUDGETS: Final = "ETAMETER_BUDGETS"
"""Environment variable: a JSON object of `Members` by the budget's name."""
HEADER: Final = b"x-etameter-budget"


class Members(NamedTuple):
    """Whose requests draw on a budget. Hashes are lower-case hexadecimal."""

    arms: frozenset[str]
    api_keys: frozenset[str]


class Budgets:
    def __init__(self, members: Mapping[str, Members]) -> None:
        self._members = dict(members)
        self._has_keys = any(each.api_keys for each in members.values())

    def __bool__(self) -> bool:
        return bool(self._members)

    @classmethod
    def from_environment(cls) -> Self:
        """As `etameter serve` has set it. Raises ValueError where somebody else has."""
        told = json.loads(os.environ.get(BUDGETS) or "{}")
        return cls({name: Members(*(frozenset(known) for known in members)) for name, members in told.items()})

    def of(self, scope: MutableMapping[str, Any], arm: str) -> tuple[str, ...]:
        """Names, in the order of the configuration."""
        keys = key_hashes(scope["headers"]) if self._has_keys else ()
        return tuple(
            name for name, each in self._members.items() if arm in each.arms or not each.api_keys.isdisjoint(keys)
        )


def environment(members: Mapping[str, tuple[Iterable[str], Iterable[str]]]) -> dict[str, str]:
    """What the server's processes are told of budgets: arms and hashes of keys, by name."""
    return {BUDGETS: json.dumps({name: [sorted(known) for known in each] for name, each in members.items()})}
