"""Numbers as text."""

from __future__ import annotations

import math
from typing import Any, TypeGuard

NONE = "–"


def is_number(value: Any) -> TypeGuard[float]:
    """Whether the value is a finite number, and no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def numeral(value: Any, digits: int | None = None) -> str:
    """A number as text, with a true minus sign; a dash for None and what is not finite.

    Arguments:
        value: The number. Anything else is converted by ``str``.
        digits: Places after the point; four significant ones if None, three beside a power of
            ten, without zeros at the end.
    """
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return NONE
    if not is_number(value):
        return str(value)
    if digits is not None:
        text = f"{value:,.{digits}f}"
    elif isinstance(value, int):
        text = f"{value:,}"
    elif value != 0 and not 1e-3 <= abs(value) < 1e6:
        mantissa, power = f"{value:.2e}".split("e")
        text = f"{mantissa.rstrip('0').rstrip('.')}e{int(power)}"
    else:
        text = f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if not text.strip("-0.,"):
        text = text.removeprefix("-")  # a number that rounds to zero has no sign
    return text.replace(",", "\u202f").replace("-", "−")


def interval(low: float, high: float, digits: int | None = None) -> str:
    """Two ends as text; a word between them where a dash would meet a minus sign."""
    between = "–" if low >= 0 else " to "
    return f"{numeral(low, digits)}{between}{numeral(high, digits)}"


def resolution(low: float, high: float) -> int | None:
    """Places after the point at which half of an interval has two digits; None if it is empty."""
    half = (high - low) / 2
    return min(max(0, 1 - math.floor(math.log10(half))), 6) if half > 0 else None


def duration(seconds: float) -> str:
    """Such as ``"40 s"``, ``"12 min"`` and ``"3.4 h"``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
