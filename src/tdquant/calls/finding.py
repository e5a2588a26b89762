r"""Finding trajectories in recorded calls, in whatever order they come.

Calls in the order of a sampler are linked as they come: least squares over all elements of two
consecutive calls give the weights a, b and c of ``tdquant.calls.rollout``, and calls belong
together where the rest r is small and time does not turn back. Calls in another order, as from a
shuffled dataset, are kept and sorted by time at the end; of several calls at the next time, the
one with the least rest follows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby

import torch
from torch import Tensor

from tdquant.calls.call import Call, take_samples, tensors_in
from tdquant.calls.rollout import Rollout, Step, halves, input_of, own, predictions_of

REST = 0.1
"""Largest share of the energy of the next input that may be left in r: more is another
trajectory.
"""
LEAST = 1e-9
"""Least share of the energy of the next input that comes from outputs of the model."""

SHORTEST = 3
"""Fewest calls of a trajectory."""

RIVALS = 16
"""Most calls at one time among which the next one is looked for."""

MEMORY = 1 << 29
"""Bytes of calls that are kept until their order is known."""


@dataclass(frozen=True)
class Seen:
    """Some samples of a call.

    Attributes:
        call: The call.
        x: Its input, ``(B, *)``.
        outputs: The model's predictions.
        time: Its time.
        number: Its place in the stream.
    """

    call: Call
    x: Tensor
    outputs: list[Tensor]
    time: float
    number: int

    @property
    def samples(self) -> int:
        """Number of samples; both halves under guidance are one."""
        return len(self.outputs[0])


@dataclass(frozen=True)
class Link:
    """How the input of a call follows from the call before.

    Attributes:
        weights: a, b and c.
        rest: r.
        share: Its share of the energy of the input.
    """

    weights: Tensor
    rest: Tensor
    share: float


@dataclass
class Chain:
    """A trajectory that is being found: its calls, and the links between them."""

    calls: list[Seen]
    links: list[Link] = field(default_factory=list)

    @property
    def rest(self) -> float:
        """The mean share of the rests."""
        return sum(one.share for one in self.links) / max(len(self.links), 1)

    def link(self, seen: Seen) -> Link | None:
        """The link to a call, if it follows and time does not turn back."""
        first, last = self.calls[0].time, self.calls[-1].time
        if (last - first) * (seen.time - last) < 0:
            return None
        return link(self.calls[-1], seen, self.calls[-2].outputs if self.links else [])

    def rollout(self) -> Rollout:
        """The trajectory."""
        ways = [*((one.weights, one.rest.float()) for one in self.links), (None, None)]
        pairs = zip(self.calls, ways, strict=True)
        return Rollout(self.calls[0].x, [Step(seen.call, *way) for seen, way in pairs])


class RolloutFinder:
    """Finds trajectories in a stream of calls.

    Arguments:
        samples: Samples to keep of all trajectories together.
        memory: Bytes of calls to keep until their order is known.
    """

    def __init__(self, samples: int = 16, memory: int = MEMORY) -> None:
        self._samples, self._memory = samples, memory
        self._chain: Chain | None = None
        self._chains: list[Chain] = []  # found in the order of the stream
        self._pool: list[Seen] = []
        self._times: set[float] = set()
        self._number = 0

    @torch.no_grad()
    def offer(self, call: Call, output: Tensor, timestep: Tensor) -> None:
        """Takes in a call, the model's output for it, and its time ``()`` or times ``(B,)``."""
        times = timestep.detach().reshape(-1).unique().tolist()
        self._times.update(times)
        if self._enough():
            self._pool.clear()
            return
        self._number += 1
        seen = self._see(call, output, times)
        if seen is None:
            self._end()
            return
        if self._memory > 0:
            self._pool.append(seen)
            held = [*tensors_in(seen.call), seen.x, *seen.outputs]
            self._memory -= sum(tensor.nbytes for tensor in held)
        if self._chain is not None and (found := self._chain.link(seen)) is not None:
            self._chain.calls.append(seen)
            self._chain.links.append(found)
            return
        if self._chain is not None and seen.time == self._chain.calls[0].time:
            self._end()  # another one starts where this one did
        self._chain = None if self._enough() else Chain([seen])

    def found(self) -> list[Rollout]:
        """The trajectories."""
        self._end()
        chains = [c for c in self._chains if 2 * len(c.calls) >= len(self._times)]
        chains = chains or self._sorted()
        rollouts, left = [], self._samples
        for chain in chains:
            if left > 0:
                rollouts.append(chain.rollout().first(left))
                left -= chain.calls[0].samples
        self._pool, self._chains = [], []
        return rollouts

    def _see(self, call: Call, output: Tensor, times: list[float]) -> Seen | None:
        """What is kept of a call; None if it can be part of no trajectory."""
        x = input_of(call)
        if x is None or len(output) != len(x) or len(times) != 1:
            return None
        x = x.detach()
        outputs = predictions_of(output.detach(), x)
        if not outputs:
            return None
        whole = Seen(call, x, outputs, times[0], self._number)
        kept = torch.arange(min(self._samples, whole.samples))
        chosen = torch.cat([kept + whole.samples * half for half in range(len(outputs))])
        return replace(
            whole,
            call=take_samples(call, chosen, len(x)),
            x=x[chosen].clone(),
            outputs=[y[kept].clone() for y in outputs],
        )

    def _end(self) -> None:
        if self._chain is not None and len(self._chain.calls) >= SHORTEST:
            self._chains.append(self._chain)
        self._chain = None

    def _enough(self) -> bool:
        return sum(chain.calls[0].samples for chain in self._chains) >= self._samples

    def _sorted(self) -> list[Chain]:
        """Trajectories among the calls in the order of their times, or in the reverse one if that
        leaves less.
        """
        falling = sorted(self._pool, key=lambda seen: (-seen.time, seen.number))
        rising = sorted(self._pool, key=lambda seen: (seen.time, seen.number))
        found = [list(self._through(calls)) for calls in (falling, rising)]
        found = [chains for chains in found if chains]
        return min(found, key=lambda chains: max(chain.rest for chain in chains), default=[])

    def _through(self, calls: list[Seen]) -> Iterator[Chain]:
        """Trajectories from the first times on."""
        moments = [list(group) for _, group in groupby(calls, lambda seen: seen.time)]
        left = self._samples
        for start in moments[0] if moments else ():
            if left <= 0:
                return
            chain = Chain([start])
            for rivals in moments[1:]:
                tried = [(chain.link(seen), seen) for seen in rivals[:RIVALS]]
                fitting = [(one, seen) for one, seen in tried if one is not None]
                if fitting:
                    best, seen = min(fitting, key=lambda pair: pair[0].share)
                    chain.calls.append(seen)
                    chain.links.append(best)
            if len(chain.calls) >= SHORTEST:
                left -= start.samples
                yield chain


def link(last: Seen, seen: Seen, before: list[Tensor]) -> Link | None:
    """How the input of a call follows from the call before it.

    Arguments:
        last: The call before.
        seen: The call.
        before: Outputs of the one before ``last``, if any.

    Returns:
        The link, or None: the call is of another trajectory.
    """
    x, outputs = seen.x, last.outputs
    if last.x.shape != x.shape or len(halves(x)) < len(outputs):
        return None
    terms = [own(last.x, outputs), *outputs, *before]
    target = own(x, outputs).double()
    matrix = torch.stack([term.double().flatten() for term in terms])
    gram, right = (matrix @ matrix.T).cpu(), (matrix @ target.flatten()).cpu()
    if not bool(gram.isfinite().all() and right.isfinite().all()):
        return None
    weights = torch.linalg.lstsq(gram, right[:, None], driver="gelsd").solution[:, 0]
    rest = target - (weights.to(x.device) @ matrix).reshape(target.shape)
    energy = float(target.square().sum())
    moved = weights[1:].to(x.device) @ matrix[1:]
    left = float(rest.square().sum())
    if left > REST * energy or float(moved.square().sum()) <= LEAST * energy:
        return None  # or the same x again: what the model gives has no part in it
    return Link(weights, rest, left / max(energy, 1e-30))
