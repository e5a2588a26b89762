"""Successive halving over the arms of a search, with ladders that have no edge.

All arms are measured with few steps; those of the least loss are measured with more, and so on.
Rates are values of a ladder: where a rung walks, the neighbours of the best arm are measured too,
up and down each ladder, until none of them is better. So what is best lies between values that
were tried, not at the edge of a range.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

Arm = TypeVar("Arm")


@dataclass(frozen=True)
class Rung:
    """A stage of the search.

    Attributes:
        steps: Optimizer steps of each arm.
        keep: Arms that reach it, of those before: a share below 1, or a number of them.
        walk: Whether neighbours of its best arm are measured.
    """

    steps: int
    keep: float = 1.0
    walk: bool = False

    def reached(self, order: Sequence[Arm], first: bool) -> list[Arm]:
        """Those of the arms before, in the order of their losses, that reach it."""
        if first:
            return list(order)
        count = self.keep if self.keep >= 1 else len(order) * self.keep
        return list(order[: max(round(count), 1)])


@dataclass(frozen=True)
class Outcome:
    """What a rung gave.

    Attributes:
        steps: Optimizer steps of each arm.
        losses: Of every arm that was measured, least first; infinite where training diverged.
        walked: Whether no neighbour of the best arm was better.
    """

    steps: int
    losses: Mapping[Arm, float]  # type: ignore[valid-type]
    walked: bool

    @property
    def best(self) -> Arm:  # type: ignore[type-var]
        """The arm of the least loss."""
        return next(iter(self.losses))


def halving(
    arms: Iterable[Arm],
    rungs: Iterable[Rung],
    measure: Callable[[Arm, int], float | None],
    neighbours: Callable[[Arm], Iterable[Arm]],
) -> Iterator[Outcome]:
    """The rungs that can be told, one after another.

    Arguments:
        arms: Those that the first rung measures.
        rungs: The stages.
        measure: The loss of an arm after so many steps, or None if it is not known yet: the search
            ends there.
        neighbours: Arms that differ from one in one thing.
    """
    order: list[Arm] = list(arms)
    for number, rung in enumerate(rungs):
        losses: dict[Arm, float] = {}

        def measured(some: Iterable[Arm], losses=losses, steps=rung.steps) -> bool:
            # All of them are asked for, so that processes that share them find work.
            found = {arm: measure(arm, steps) for arm in some if arm not in losses}
            losses.update({arm: loss for arm, loss in found.items() if loss is not None})
            return None not in found.values()

        if not measured(rung.reached(order, number == 0)):
            return
        while rung.walk:
            near = [arm for arm in neighbours(_order(losses)[0]) if arm not in losses]
            if not near:
                break
            if not measured(near):
                return
        order = _order(losses)
        yield Outcome(rung.steps, {arm: losses[arm] for arm in order}, rung.walk)


def _order(losses: Mapping[Arm, float]) -> list[Arm]:
    """Arms by their losses; equal ones as they were measured."""
    return sorted(losses, key=losses.__getitem__)


def beside(value: float, ladder: Sequence[float]) -> list[float]:
    """The values of a ladder next to one of it."""
    place = ladder.index(value)
    return [*ladder[max(place - 1, 0) : place], *ladder[place + 1 : place + 2]]
