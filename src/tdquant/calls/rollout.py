r"""Trajectories along which any version of a model can be run.

    x_{k+1} = a_k x_k + \sum_i b_ki y_k,i + \sum_i c_ki y_{k-1},i + r_k

with y the model's output, in two halves under classifier-free guidance. Samplers are of this form:
Euler's method and DDIM with c = 0, solvers of two steps such as DPM-Solver++ with c, those that
draw noise with it in the rest r. ``tdquant.calls.finding`` works a, b and c out from recorded
calls; r is what they leave, so that the float model's own trajectory is met exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.calls.call import Call, batch_size, run, take_samples, values
from tdquant.support.progress import track

KURTOSIS = 0.5
"""Largest excess kurtosis of what is taken for normal noise, beside what chance makes."""


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

    @property
    def samples(self) -> int:
        """Number of samples; both halves under guidance are one."""
        return len(self.start) // len(halves(self.start))

    @torch.no_grad()
    def run(
        self, model: nn.Module, label: str = "", see: Callable[[Call], None] | None = None
    ) -> Tensor:
        """The end of the trajectory of a model, ``(B, *)`` in float32.

        Arguments:
            model: The model.
            label: Of a progress bar, which there is if this is not empty.
            see: Called with every call of the model.
        """
        x, before = self.start, list[Tensor]()
        last = self.steps[-2]
        for step in track(self.steps, label, len(self.steps), bool(label)):
            call = _with_input(step.call, x)
            if see is not None:
                see(call)
            outputs = predictions_of(run(model, call), x)
            weights = last.weights if step.weights is None else step.weights
            assert weights is not None
            terms = [own(x, outputs), *outputs, *before]
            moved: Tensor = sum(w * v.double() for w, v in zip(weights, terms, strict=False))  # type: ignore[assignment]
            if step.rest is not None:
                moved = moved + step.rest
            x = repeat(moved.to(x.dtype), len(x) // len(moved))
            before = outputs
        return x.float()

    def first(self, count: int) -> Rollout:
        """The trajectory of the first samples."""
        own = self.samples
        if own <= count:
            return self
        kept = torch.arange(count)
        chosen = torch.cat([kept + first for first in range(0, len(self.start), own)])
        steps = [
            replace(
                step,
                call=take_samples(step.call, chosen, len(self.start)),
                rest=None if step.rest is None else step.rest[kept],
            )
            for step in self.steps
        ]
        return Rollout(self.start[chosen], steps)

    def redrawn(self, seed: int = 0) -> Rollout:
        """A trajectory from other noise, which nothing was fitted to.

        The starts are mixed by a random orthogonal matrix over the samples, which leaves normal
        noise what it is. Starts that are no normal noise, such as images with noise on them, stay.
        """
        start = self.start[: self.samples].double()
        centred = (start - start.mean()) / start.std().clamp(min=1e-12)
        chance = 3 * (24 / centred.numel()) ** 0.5
        if abs(float(centred.pow(4).mean()) - 3) > KURTOSIS + chance:
            return self
        generator = torch.Generator().manual_seed(seed)
        square = torch.randn(len(start), len(start), generator=generator, dtype=torch.float64)
        mixing, triangle = torch.linalg.qr(square)
        mixing = mixing * triangle.diagonal().sign()  # uniform over orthogonal matrices
        if len(start) == 1:
            mixing = -torch.ones_like(mixing)
        mixed = (mixing.to(start.device) @ start.flatten(1)).reshape(start.shape)
        return replace(
            self, start=repeat(mixed.to(self.start.dtype), len(self.start) // self.samples)
        )


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


def predictions_of(output: Any, x: Tensor) -> list[Tensor]:
    """The predictions in a model's output, without variances behind them: one, or one for each
    half of the batch where both halves of x are the same. Empty if they are not of the size of x.
    """
    if output.ndim > 1 and output.shape[1] == 2 * x.shape[1]:
        output = output[:, : x.shape[1]]
    if output.shape != x.shape:
        return []
    return list(output.chunk(len(halves(x))))


def halves(x: Tensor) -> tuple[Tensor, ...]:
    """Both halves of x if they are the same, as under guidance; else x alone."""
    two = x.chunk(2)
    return two if len(x) % 2 == 0 and torch.equal(*two) else (x,)


def own(x: Tensor, outputs: list[Tensor]) -> Tensor:
    """x without its second half if outputs come in two."""
    return x[: len(outputs[0])]


def repeat(x: Tensor, copies: int) -> Tensor:
    """x with so many copies of its samples behind each other."""
    return x.repeat(copies, *[1] * (x.ndim - 1))
