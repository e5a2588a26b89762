r"""The Pareto frontier of a sum: one option for each item, least total error at every total size.

    min sum_l e_l(o_l)  subject to  sum_l c_l(o_l) <= C,    for every C at once

Items are added one after the other, keeping the totals that no smaller one betters. That is exact;
where there are too many totals, the best of each of ``LIMIT`` even ranges of size is kept.

References:
    Nemhauser, Ullmann: Discrete Dynamic Programming and Capital Allocation, Management Science
    15(9), 1969.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LIMIT = 8192


@dataclass(frozen=True)
class Frontier:
    """Pareto-optimal totals, by increasing size and decreasing error.

    Attributes:
        sizes: ``(P,)``.
        errors: ``(P,)``.
        steps: For each item, where each total came from: ``(parents (P_l,), options (P_l,))``.
    """

    sizes: NDArray[np.int64]
    errors: NDArray[np.float64]
    steps: list[tuple[NDArray[np.int64], NDArray[np.int64]]]

    def within_size(self, size: float) -> int | None:
        """Index of the total with the least error that is no larger, or None."""
        index = int(np.searchsorted(self.sizes, size, side="right")) - 1
        return index if index >= 0 else None

    def within_error(self, error: float) -> int | None:
        """Index of the smallest total with no larger error, or None."""
        index = int(np.searchsorted(-self.errors, -error, side="left"))
        return index if index < len(self.errors) else None

    def options(self, index: int) -> list[int]:
        """The options of all items that make up a total."""
        chosen = []
        for parents, options in reversed(self.steps):
            chosen.append(int(options[index]))
            index = int(parents[index])
        return chosen[::-1]


def find_frontier(
    sizes: Sequence[Sequence[int]], errors: Sequence[Sequence[float]], limit: int = LIMIT
) -> Frontier:
    """The frontier over one option for each item.

    Arguments:
        sizes: Size of every option of every item.
        errors: Their errors, of the same form.
        limit: Totals to keep.
    """
    size, error = np.zeros(1, np.int64), np.zeros(1)
    steps = []
    for item_sizes, item_errors in zip(sizes, errors, strict=True):
        count = len(item_sizes)
        all_sizes = (size[:, None] + np.asarray(item_sizes, np.int64)).ravel()
        all_errors = (error[:, None] + np.asarray(item_errors, np.float64)).ravel()
        order = np.lexsort((all_errors, all_sizes))
        before = np.minimum.accumulate(np.r_[np.inf, all_errors[order][:-1]])
        kept = _thinned(order[all_errors[order] < before], all_sizes, limit)
        size, error = all_sizes[kept], all_errors[kept]
        steps.append((kept // count, kept % count))
    return Frontier(size, error, steps)


def _thinned(kept: NDArray[np.int64], sizes: NDArray[np.int64], limit: int) -> NDArray[np.int64]:
    """The largest total, which has the least error, of each of ``limit`` ranges of size, and the
    smallest of all.
    """
    if len(kept) <= limit:
        return kept
    found = sizes[kept].astype(np.float64)
    place = np.floor((found - found[0]) / (found[-1] - found[0]) * (limit - 1))
    last = np.r_[place[1:] != place[:-1], True]
    last[0] = True
    return kept[last]
