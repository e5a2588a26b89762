r"""Rules of verdicts on parts of the paper's claims.

A part says that a number is below a bound (or above it: signs are turned then). It *holds* if the
whole interval of 95 % is on its side, *does not hold* if the whole interval is on the other, and
is *not decided* if the interval is too wide for either, or if there are fewer than SEEDS seeds.
A part of several comparisons holds if all of them do, and does not hold if one does not.

- Over seeds: ``mean +- t s / sqrt(J)``, with t of Student's distribution of J - 1 degrees of
  freedom.
- Over layers, of a share: Wilson's interval; of the difference of two shares, Newcombe's.

References:
    Wilson, Probable inference, the law of succession, and statistical inference, 1927.
    Newcombe, Interval estimation for the difference between independent proportions, 1998.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

HOLDS, FAILS, OPEN = "holds", "does not hold", "not decided"

GAIN = 0.05
"""Share below which nothing is a gain, however sure it is."""

SEEDS = 3
"""Fewest seeds for a verdict on what depends on them."""

STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571}
"""97.5 % quantile of Student's distribution by number of seeds; the normal one's beyond."""

NORMAL = 1.96


@dataclass(frozen=True)
class Evidence:
    """One comparison of a part.

    Attributes:
        what: Which, in words.
        value: The number that was measured.
        low: Lower end of its interval; NaN if it has none.
        high: Upper end.
        bound: The part says that the number is below it.
        above: The part says *above* instead.
    """

    what: str
    value: float
    low: float
    high: float
    bound: float
    above: bool = False

    @property
    def verdict(self) -> str:
        """What the interval says."""
        if self.low > self.bound:
            return HOLDS if self.above else FAILS
        if self.high < self.bound:
            return FAILS if self.above else HOLDS
        return OPEN

    @property
    def against(self) -> float:
        """How far the near end of the interval is on the wrong side of the bound, in units of the
        interval: the largest is the strongest counter-example.
        """
        beyond = self.bound - self.high if self.above else self.low - self.bound
        width = self.high - self.low
        if math.isnan(width):
            value = self.bound - self.value if self.above else self.value - self.bound
            return value - 1e9  # what has no interval says less than anything that has one
        return beyond / width if width else math.copysign(math.inf, beyond)


def decided(evidence: Sequence[Evidence]) -> tuple[str, Evidence]:
    """The verdict on a part, and the comparison that says most against it."""
    verdicts = {each.verdict for each in evidence}
    worst = max(evidence, key=lambda each: each.against)
    if FAILS in verdicts:
        return FAILS, worst
    return (HOLDS if verdicts == {HOLDS} else OPEN), worst


def over_seeds(
    what: str, values: Iterable[float], bound: float, *, ratio: bool = False, above: bool = False
) -> Evidence:
    """The mean over seeds with its interval; of a ratio, the geometric mean."""
    found = [math.log(value) if ratio else value for value in values]
    turned = math.exp if ratio else float
    mean = statistics.mean(found)
    if len(found) < SEEDS:
        return Evidence(what, turned(mean), math.nan, math.nan, bound, above)
    half = STUDENT.get(len(found), NORMAL) * statistics.stdev(found) / math.sqrt(len(found))
    return Evidence(what, turned(mean), turned(mean - half), turned(mean + half), bound, above)


def share(what: str, flags: Sequence[bool], bound: float, above: bool = True) -> Evidence:
    """The share of flags that are set, with Wilson's interval."""
    low, high = wilson(sum(flags), len(flags))
    return Evidence(what, sum(flags) / len(flags), low, high, bound, above)


def wilson(count: int, of: int) -> tuple[float, float]:
    """The interval of a share."""
    z = NORMAL**2 / of
    p = count / of
    centre = (p + z / 2) / (1 + z)
    half = NORMAL * math.sqrt(p * (1 - p) / of + z / (4 * of)) / (1 + z)
    return centre - half, centre + half


def lead(what: str, a: Sequence[bool], b: Sequence[bool], bound: float = 0.0) -> Evidence:
    """The share of a minus that of b, which is said to be below the bound."""
    p, q = sum(a) / len(a), sum(b) / len(b)
    (p_low, p_high), (q_low, q_high) = wilson(sum(a), len(a)), wilson(sum(b), len(b))
    low = p - q - math.hypot(p - p_low, q_high - q)
    return Evidence(what, p - q, low, p - q + math.hypot(p_high - p, q - q_low), bound)
