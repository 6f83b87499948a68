"""What is said of each metric, once: the exposition and docs/metrics.md are made from it."""

from etameter.export.catalogue import budgets, devices, energy, health, requests, slack
from etameter.export.catalogue.declaration import Declaration

CATALOGUE: tuple[Declaration, ...] = tuple(
    each
    for noun in (energy, requests, slack, budgets, devices, health)
    for each in vars(noun).values()
    if isinstance(each, Declaration)
)
"""All that these modules declare, in their order."""
