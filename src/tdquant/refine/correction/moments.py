"""What is kept of pairs of predictions: sums over positions, for each sample and channel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.calls.call import Call, called, values
from tdquant.clock import Clock
from tdquant.errors import CalibrationError
from tdquant.families.roles import roles_of
from tdquant.layers.correction import prediction


@dataclass(frozen=True)
class Layout:
    """Where the channels of a prediction lie.

    Attributes:
        channels: How many of them, from the front of dimension 1, are the prediction; None if all
            are. Where there are twice as many as in x, the second half are variances.
        axis: Their dimension, 1 or -1, or None if it is not known.
    """

    channels: int | None
    axis: int | None

    @classmethod
    def of(cls, model: nn.Module, call: Call, z: Tensor) -> Layout:
        """The layout of a prediction z of ``model`` for a call.

        Images, videos and vectors have channels in dimension 1; sequences where the layers that
        give the output have theirs: last behind linear layers, in dimension 1 behind convolutions.
        A prediction of another shape than x has channels that nobody knows.
        """
        x = next((v for v in values(call) if isinstance(v, Tensor) and v.ndim > 1), z)
        doubled = z.ndim > 1 and z.shape[1] == 2 * x.shape[1]
        channels = x.shape[1] if doubled else None
        own = z[:, :channels] if doubled else z
        if own.shape != x.shape:
            return cls(channels, None)
        return cls(channels, _axis_of_sequence(model, z) if z.ndim == 3 else 1)


def _axis_of_sequence(model: nn.Module, z: Tensor) -> int | None:
    """The dimension of channels in a prediction ``(B, C, N)`` or ``(B, N, C)``."""
    last = roles_of(model).last
    found = set()
    for path in last:
        layer = model.get_submodule(path)
        width = getattr(layer, "out_features", getattr(layer, "out_channels", None))
        axis = -1 if isinstance(layer, nn.Linear) else 1
        found.add(axis if width == z.shape[axis] else None)
    return found.pop() if len(found) == 1 else None


@dataclass(frozen=True)
class Moments:
    """Sums over the positions of quantized predictions z and float ones y.

    Attributes:
        times: Time of each row ``(R,)``, one a call and sample.
        samples: The sample, or trajectory, that it is of ``(R,)``.
        sums: Of 1, z, y, z z, z y and y y, ``(R, C, 6)``; C is 1 where channels are not known.
    """

    times: Tensor
    samples: Tensor
    sums: Tensor

    def of(self, chosen: Tensor) -> Moments:
        """The rows of some samples."""
        rows = torch.isin(self.samples, chosen)
        return Moments(self.times[rows], self.samples[rows], self.sums[rows])


class Collector:
    """Adds up moments over calls.

    Arguments:
        model: The quantized model, which runs without a correction that it has.
        clock: Its clock.

    Attributes:
        layout: Where channels lie: what the first call shows.
    """

    def __init__(self, model: nn.Module, clock: Clock) -> None:
        self.model, self.clock = model, clock
        self.layout = Layout(None, None)
        self._parts: list[Moments] = []
        self._last: float | None = None
        self._direction, self._turns = 0.0, 0

    def add(self, call: Call, z: Tensor, y: Tensor) -> None:
        """Adds one call.

        Arguments:
            call: The call, which the model has just made.
            z: Its prediction ``(B, C, *)``.
            y: The float model's.

        Raises:
            CalibrationError: The two have different shapes, or are not finite.
        """
        times = self.clock.last.detach().float().cpu().reshape(-1).expand(len(z)).double()
        if z.shape != y.shape:
            raise CalibrationError(
                f"predictions {tuple(z.shape)} and {tuple(y.shape)} of one call",
                where="correct",
                fix="the float model, or its predictions, of the same calls",
            )
        if not self._parts:
            self.layout = Layout.of(self.model, call, z)
        self._parts.append(Moments(times, self._samples(times), self._sums(z, y)))
        if not bool(self._parts[-1].sums.isfinite().all()):
            raise CalibrationError(
                "a prediction that is not finite",
                where=f"correct, timestep {float(times[0]):g}",
                fix="look for NaN or infinite weights or activations in the two models",
            )

    def moments(self) -> Moments:
        """All that was added.

        Raises:
            CalibrationError: Nothing was.
        """
        if not self._parts:
            raise CalibrationError("no calls", where="correct", fix="tdq.trajectories(...)")
        parts = self._parts
        return Moments(
            torch.cat([p.times for p in parts]),
            torch.cat([p.samples for p in parts]),
            torch.cat([p.sums for p in parts]),
        )

    def _samples(self, times: Tensor) -> Tensor:
        """Numbers of the trajectories that the samples of a call belong to: their rows, of which
        the two halves belong together, as under guidance; of single rows, how often time has
        turned back to where trajectories begin.
        """
        size, now = len(times), float(times[0])
        if size > 1:
            return torch.arange(size) % (size // 2 if size > 3 and size % 2 == 0 else size)
        step = now - self._last if self._last is not None else 0.0
        self._direction = self._direction or step
        self._turns += step * self._direction < 0
        self._last = now
        return torch.tensor([self._turns])

    def _sums(self, z: Tensor, y: Tensor) -> Tensor:
        layout = self.layout
        if layout.channels is not None:
            z, y = z[:, : layout.channels], y[:, : layout.channels]
        axis = layout.axis
        z, y = (
            v.flatten(1)[:, None]
            if axis is None
            else v.movedim(axis, 1).flatten(1).unflatten(1, (v.shape[axis], -1))
            for v in (z.double(), y.double())
        )
        sums = [torch.ones_like(z), z, y, z * z, z * y, y * y]
        return torch.stack([s.sum(2) for s in sums], dim=2).cpu()


def predicted(model: Callable[..., Any], call: Call) -> Tensor:
    """What is corrected of the model's output, in float32.

    Raises:
        CalibrationError: It is not one tensor.
    """
    output = called(model, call)
    found = prediction(output)
    if not isinstance(found, Tensor):
        raise CalibrationError(
            f"an output of type {type(output).__name__}",
            where=f"correct, {type(model).__name__}",
            why="one tensor is corrected: the output, the first of a tuple, or .sample",
        )
    return found.float()
