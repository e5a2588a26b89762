"""Spending a budget on what gains most for its cost."""

from __future__ import annotations

from collections.abc import Mapping


def within(budget: float, gains: Mapping[str, float], costs: Mapping[str, float]) -> list[str]:
    """Picks those with the largest gain for their cost, as long as their costs fit the budget."""
    chosen, spent = [], 0.0
    for path in sorted(gains, key=lambda p: -gains[p] / max(costs[p], 1e-12)):
        if spent + costs[path] <= budget:
            chosen.append(path)
            spent += costs[path]
    return chosen
