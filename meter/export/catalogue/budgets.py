"""What budgets have left: of the window that is open now, absent where no budget is configured."""

from etameter.export.catalogue.declaration import Declaration

USED = Declaration(
    "etameter_budget_used_joules",
    "gauge",
    "joules",
    ("budget", "window", "source"),
    "Energy attributed to the requests of a budget since its window began, by when it was spent. What may have been anybody's is not in it.",
)
LIMIT = Declaration(
    "etameter_budget_limit_joules", "gauge", "joules", ("budget", "window"), "What they may take in one window."
)
SHARE = Declaration(
    "etameter_budget_used_ratio",
    "gauge",
    "ratio",
    ("budget", "window", "bound", "source"),
    "Used energy over the limit: what is known, and the bounds of what is possible.",
)
