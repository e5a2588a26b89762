"""Which axis of an activation is the batch: found by ``tdquant.flow``, used wherever one tensor
has a step for each sample.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tdquant.errors import ClockError


@dataclass(frozen=True)
class BatchAxis:
    """Where the B samples of a call lie in a tensor. Index i of ``axis``, of size n, belongs to

        sample i // (n / B)    one sample after another: heads folded into the batch, tokens
        sample i % B           interleaved: "(frames batch)"

    Attributes:
        axis: The dimension, counted from the front; None where samples cannot be told apart, as
            among routed tokens, or share the tensor, as a table of positions.
        interleaved: Whether neighbours are of different samples.
    """

    axis: int | None = 0
    interleaved: bool = False

    def fits(self, x: Tensor, batch: int) -> bool:
        """Whether ``batch`` samples can lie in x this way."""
        axis = self.axis
        return axis is not None and axis < x.ndim and batch > 0 and x.shape[axis] % batch == 0

    def by_sample(self, x: Tensor, batch: int) -> Tensor:
        """x as ``(B, *)``, one entry for each sample.

        Raises:
            ClockError: Samples cannot be told apart.
        """
        if not self.fits(x, batch):
            raise cannot_tell(x, batch)
        axis = self.axis or 0
        if x.shape[axis] == batch:
            return x.movedim(axis, 0)
        sizes = (-1, batch) if self.interleaved else (batch, -1)
        return x.unflatten(axis, sizes).movedim(axis + self.interleaved, 0)

    def expand(self, values: Tensor, x: Tensor) -> Tensor:
        """Values ``(B,)``, one for each sample, shaped to broadcast over x."""
        axis = self.axis or 0
        repeat = x.shape[axis] // values.shape[0]
        if repeat > 1:  # by expanding: exporters do not repeat a free number of times
            shape = (repeat, -1) if self.interleaved else (-1, repeat)
            values = values.unsqueeze(0 if self.interleaved else 1).expand(shape)
        return values.reshape([-1 if d == axis else 1 for d in range(x.ndim)])


TOGETHER = BatchAxis(None)
"""Samples cannot be told apart, or share the tensor."""


def cannot_tell(x: Tensor, batch: int) -> ClockError:
    """The error of steps that differ between samples that cannot be told apart."""
    return ClockError(
        f"{batch} different timesteps for an activation of shape {tuple(x.shape)}",
        why="which of its rows belong to which sample is not known",
        fix="call the model with one timestep, or give the layer a static scale",
    )


def axis_of(x: Tensor, batch: int, known: BatchAxis | None) -> BatchAxis | None:
    """The batch axis of x: the known one if it fits, the first of an untraced tensor if it has the
    size of the batch, else None.
    """
    found = BatchAxis() if known is None and x.ndim and x.shape[0] == batch else known
    return found if found is not None and found.fits(x, batch) else None
