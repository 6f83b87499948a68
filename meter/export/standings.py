"""What a response says of a budget: an item of a structured field (RFC 9651), to which who sends it adds the seconds until the window ends.

"team";state=within;remaining=86399.0;used=1.0;error=0.25;unknown=0.0;limit=86400.0;window=day;source=measured;resets=3600
"""

from etameter.budgets import Standing

MOST = 999_999_999_999.999
"""Of a number of such a field."""


def told(name: str, standing: Standing) -> tuple[str, int]:
    """All but `resets`, and when that is (s since 1970)."""
    joules = {
        "remaining": max(standing.limit_j - standing.used_j, 0.0),
        "used": standing.used_j,
        "error": standing.error_j,
        "unknown": standing.unknown_j,
        "limit": standing.limit_j,
    }
    amounts = ";".join(f"{key}={_decimal(amount)}" for key, amount in joules.items())
    said = f'"{name}";state={standing.level};{amounts};window={standing.window};source={standing.source}'
    return said, standing.end_s


def _decimal(amount: float) -> str:
    """With one to three digits after the point."""
    text = f"{min(amount, MOST):.3f}".rstrip("0")
    return f"{text}0" if text.endswith(".") else text
