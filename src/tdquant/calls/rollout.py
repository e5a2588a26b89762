r"""Trajectories found in recorded calls: what a sampler does between two calls is worked out from
the calls themselves, so that any version of the model can be run along them.

    x_{k+1} = a_k x_k + \sum_i b_ki y_k,i + \sum_i c_ki y_{k-1},i + r_k

with y the model's output, in two halves under classifier-free guidance. Samplers are of this form:
Euler's method and DDIM with c = 0, solvers of two steps such as DPM-Solver++ with c, those that
draw noise with it in the rest r. Least squares over all elements of consecutive calls give a, b
and c; r is what they leave, so that the float model's own trajectory is met exactly. Calls belong
together where r is small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.calls.call import Call, batch_size, run, take_samples, values

REST = 0.1
"""Largest share of the energy of the next input that may be left in r: more is another
trajectory.
"""
LEAST = 1e-9
"""Least share of the energy of the next input that comes from outputs of the model."""

SHORTEST = 3
"""Fewest calls of a trajectory."""


@dataclass(frozen=True)
class Step:
    """One call of a trajectory, and how the next input comes from it.

    Attributes:
        call: The call of some samples; its x is replaced.
        weights: a, b and c; None until the next call is known.
        rest: r, of the samples.
    """

    call: Call
    weights: Tensor | None = None
    rest: Tensor | None = None


@dataclass(frozen=True)
class Rollout:
    """A trajectory along which a model can be run.

    Arguments:
        start: The input of the first call, ``(B, *)``.
        steps: The calls. What would follow the last is taken to weigh its output as the one
            before did.
    """

    start: Tensor
    steps: Sequence[Step]

    @torch.no_grad()
    def run(self, model: nn.Module) -> Tensor:
        """The end of the trajectory of a model, ``(B, *)`` in float32."""
        x, before = self.start, list[Tensor]()
        last = self.steps[-2]
        for step in self.steps:
            outputs = _outputs(run(model, _with_input(step.call, x)), x)
            weights = last.weights if step.weights is None else step.weights
            assert weights is not None
            terms = [_own(x, outputs), *outputs, *before]
            moved: Tensor = sum(w * v.double() for w, v in zip(weights, terms, strict=False))  # type: ignore[assignment]
            if step.rest is not None:
                moved = moved + step.rest
            copies = len(x) // len(moved)
            x = moved.to(x.dtype).repeat(copies, *[1] * (x.ndim - 1))
            before = outputs
        return x.float()


class RolloutFinder:
    """Finds trajectories in a stream of calls.

    Arguments:
        samples: Samples to keep of all trajectories together.
    """

    def __init__(self, samples: int = 16) -> None:
        self._left = samples
        self._found: list[Rollout] = []
        self._start: Tensor | None = None
        self._steps: list[Step] = []
        self._chosen = torch.zeros(0, dtype=torch.long)
        self._last: tuple[Tensor, list[Tensor], list[Tensor]] | None = None

    @torch.no_grad()
    def offer(self, call: Call, output: Tensor) -> None:
        """Takes in a call and the model's output for it."""
        if self._left < 1:
            return
        x = input_of(call)
        if x is None or len(output) != len(x):
            self._end()
            return
        outputs = _outputs(output.detach(), x)
        if not (outputs and self._link(x)):
            self._end()
            if not outputs:
                return
            own, size = len(outputs[0]), len(x)
            kept = torch.arange(min(own, self._left))
            # Under guidance both halves of a sample.
            self._chosen = torch.cat([kept + own * i for i in range(size // own)])
            self._start = x[self._chosen].detach().clone()
        before = self._last[1] if self._last is not None else []
        self._last = x.detach(), outputs, before
        self._steps.append(Step(take_samples(call, self._chosen, len(x))))

    def found(self) -> list[Rollout]:
        """The trajectories."""
        self._end()
        return self._found

    def _link(self, x: Tensor) -> bool:
        """Whether x follows from the call before, whose step then gets its weights."""
        if self._last is None or self._last[0].shape != x.shape:
            return False
        last, outputs, before = self._last
        if len(outputs) > 1 and not torch.equal(*x.chunk(2)):
            return False
        terms = [_own(last, outputs), *outputs, *before]
        target = _own(x, outputs).double()
        matrix = torch.stack([term.double().flatten() for term in terms])
        gram, right = matrix @ matrix.T, matrix @ target.flatten()
        if not bool(gram.isfinite().all() and right.isfinite().all()):
            return False
        weights = torch.linalg.lstsq(gram.cpu(), right.cpu()[:, None], driver="gelsd").solution[
            :, 0
        ]
        rest = target - (weights.to(x.device) @ matrix).reshape(target.shape)
        energy = float(target.square().sum())
        moved = weights[1:].to(x.device) @ matrix[1:]
        if float(rest.square().sum()) > REST * energy:
            return False
        if float(moved.square().sum()) <= LEAST * energy:
            return False  # the same x again: what the model gives has no part in it
        kept = self._chosen[: len(self._chosen) // len(outputs)]
        self._steps[-1] = Step(self._steps[-1].call, weights, rest[kept].float())
        return True

    def _end(self) -> None:
        if self._start is not None and len(self._steps) >= SHORTEST:
            self._found.append(Rollout(self._start, self._steps))
            self._left -= len(self._start) // len(_halves(self._start))
        self._start, self._steps, self._last = None, [], None


def input_of(call: Call) -> Tensor | None:
    """The x of a call: its first argument with the batch in front, if that is a float tensor."""
    size = batch_size(call)
    found = next((v for v in values(call) if isinstance(v, Tensor) and v.ndim > 1), None)
    if found is None or not found.is_floating_point() or len(found) != size:
        return None
    return found


def _with_input(call: Call, x: Tensor) -> Call:
    old = input_of(call)
    if isinstance(call, Mapping):
        return {key: x if value is old else value for key, value in call.items()}
    return tuple(x if value is old else value for value in call)


def _outputs(output: Any, x: Tensor) -> list[Tensor]:
    """The predictions in a model's output, without variances behind them: one, or one for each
    half of the batch where both halves of x are the same. Empty if they are not of the size of x.
    """
    if output.ndim > 1 and output.shape[1] == 2 * x.shape[1]:
        output = output[:, : x.shape[1]]
    if output.shape != x.shape:
        return []
    halves = _halves(x)
    return list(output.chunk(len(halves)))


def _halves(x: Tensor) -> tuple[Tensor, ...]:
    halves = x.chunk(2)
    return halves if len(x) % 2 == 0 and torch.equal(*halves) else (x,)


def _own(x: Tensor, outputs: list[Tensor]) -> Tensor:
    """x without its second half if outputs come in two."""
    return x[: len(outputs[0])]
