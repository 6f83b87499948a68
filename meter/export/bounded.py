"""Label values from sets that no client can enlarge; anything else becomes ``other``."""

import re
from collections.abc import Iterable
from typing import Final

from etameter.export.catalogue.labels import OTHER, UNLABELLED

MAX_MODELS: Final = 16
MAX_GROUPS: Final = 10
"""Pairs of model and arm that have series of their own, `other` with `other` among them."""

_WORD = re.compile(r"[A-Za-z0-9./~_][A-Za-z0-9._:/@+~-]{0,254}")
"""A device, an engine, or a model, which may be a path."""


class Bounded:
    """Label values that the meter itself brings, of which there may be at most `most`."""

    def __init__(self, most: int, known: Iterable[str] = ()) -> None:
        self._most = most
        self._known: set[str] = set()
        for value in known:
            self.admit(value)

    def admit(self, value: str) -> str:
        """Take it for a label value from now on, where there is room."""
        if value not in self._known and len(self._known) < self._most and _WORD.fullmatch(value):
            self._known.add(value)
        return self.label(value)

    def label(self, value: str) -> str:
        return value if value in self._known else OTHER


class Groups:
    """Pairs of served model and configured arm. Each are few, but their pairs may be many: late ones are `other` in both."""

    def __init__(self, models: Iterable[str], arms: Iterable[str]) -> None:
        self._models = Bounded(MAX_MODELS, models)
        self._arms = frozenset({*arms, UNLABELLED})
        self._taken = {(OTHER, OTHER)}

    def know_model(self, name: str) -> None:
        self._models.admit(name)

    def labels(self, model: str, arm: str) -> tuple[str, str]:
        group = self._models.label(model), arm if arm in self._arms else OTHER
        if group not in self._taken and len(self._taken) == MAX_GROUPS:
            return OTHER, OTHER
        self._taken.add(group)
        return group
