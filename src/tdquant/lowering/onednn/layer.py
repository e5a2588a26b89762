"""A quantized layer on the CPU that runs its first input on every exact kernel and keeps the
fastest.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tdquant.errors import BackendError, ClockError
from tdquant.layers import QuantConv1d, QuantConv2d, QuantLayer
from tdquant.lowering.onednn.kernels import (
    Float,
    Kernel,
    Maker,
    NotPickled,
    exact_kernels,
    obstacle,
)
from tdquant.lowering.operation import Operation
from tdquant.model_summary import Row, layer_row
from tdquant.support.memory import trim_heap

_ROUNDS = 3
_ONE = torch.ones(())


class Trials(NotPickled):
    """Times of the kernels in one model: layers of one signature on inputs of one size run the
    same kernel, timed once.

    Attributes:
        lock: Held while kernels are timed: threads may make the first call together.
        seconds: Signature and shape of the input -> kernel -> time.
        left: Layers without a kernel yet.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.seconds: dict[tuple[Any, ...], dict[str, float]] = {}
        self.left = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Trials:
        return self


class OneDnnLayer(nn.Module):
    """A lowered layer, called as the frozen one.

    Arguments:
        layer: A frozen quantized layer.
        path: Its path, for errors.
        trials: Shared by the layers of a model.
    """

    def __init__(self, layer: QuantLayer, path: str, trials: Trials) -> None:
        super().__init__()
        self.input_quantizer: Any = layer.input_quantizer
        frozen = layer.weight_quantizer
        self.dimensions = 2 * isinstance(layer, QuantConv2d) + isinstance(layer, QuantConv1d)
        self.operation: Operation | None = Operation.of(layer, path)
        self.kernel: Kernel | None = None
        channels: Any = layer.in_channels if self.dimensions else layer.in_features
        self.channels: int = channels
        self.inputs = self.operation.inputs
        self.pad = self.operation.pad
        self._trials, self._row, self._note = trials, layer_row(path, layer), ""
        trials.left += 1
        # Models ask their layers for the weight's dtype and device, and for sizes.
        empty = layer.weight.new_empty(0, dtype=getattr(frozen, "dtype", layer.weight.dtype))
        self.weight = nn.Parameter(empty, requires_grad=False)
        for name in layer.geometry:
            setattr(self, name, getattr(layer, name))

    @property
    def rows(self) -> list[Row]:
        """The layer in the summary."""
        if self.kernel is None:
            return [self._row.on("untried", "chosen at the first call, or compile(example=)")]
        return [self._row.on(self.kernel.name, self._note)]

    @property
    def packed_tensors(self) -> list[Tensor]:
        """The tensors that the layer keeps beside its parameters and buffers."""
        if self.kernel is not None:
            return self.kernel.packed_tensors
        return [] if self.operation is None else [self.operation.weight]

    def forward(self, input: Tensor) -> Tensor:
        """The layer on ``(B, *, C)`` or, a convolution, ``(B, C, *)``."""
        fits = not self.dimensions or input.ndim == self.dimensions + 2
        if not fits or input.shape[1 if self.dimensions else -1] != self.channels:
            raise BackendError(
                f"an input of shape {tuple(input.shape)} for {self.channels} channels",
                where=self._row.path,
                why=f"the layer takes (B, C{', *' * self.dimensions})"
                if self.dimensions
                else "the layer takes (B, *, C)",
            )
        scale, x = self._step(input), input
        if not self.dimensions:
            # Four dimensions would be an image's.
            x = (x.flatten(0, 2) if x.ndim == 4 else x).float().contiguous()
        else:
            if self.pad is not None:
                x = F.pad(x, *self.pad)
            if self.dimensions == 1:
                x = x.unsqueeze(2)
            x = x.float().contiguous(memory_format=torch.channels_last)
        kernel = self.kernel or self._choose(x, scale)
        y = kernel(x, scale)
        if self.dimensions == 1:
            y = y.squeeze(2)
        elif not self.dimensions and input.ndim == 4:
            y = y.unflatten(0, input.shape[:3])
        return y if y.dtype == input.dtype else y.to(input.dtype)

    def _step(self, input: Tensor) -> Tensor:
        """The scale of the input, ``()`` or ``(k,)`` with k a divisor of its batch."""
        if self.inputs is None:
            return _ONE
        scale: Tensor = self.input_quantizer.step(input)
        if not scale.ndim or not input.numel():
            return scale.new_ones(()) if scale.ndim else scale
        if input.shape[0] % scale.numel():
            raise ClockError(
                f"{scale.numel()} timesteps for a batch of {input.shape[0]}",
                where=self._row.path,
                why="there is one timestep for the whole batch or one for each sample",
            )
        return scale.contiguous()

    def _choose(self, x: Tensor, scale: Tensor) -> Kernel:
        """The fastest exact kernel for such inputs, tried unless a layer like this one was."""
        with self._trials.lock:
            if self.kernel is not None:  # another thread was first
                return self.kernel
            operation = self.operation
            assert operation is not None
            if not x.numel():  # an empty batch times nothing
                return Float(operation)
            makers = exact_kernels(operation)
            seconds: dict[str, float] = {}
            if len(makers) > 1:
                key = (operation.signature(), x.shape)
                if key not in self._trials.seconds:
                    self._trials.seconds[key] = _times(makers, operation, x, scale)
                seconds = self._trials.seconds[key]
            best = min(seconds, key=seconds.__getitem__, default=next(iter(makers)))
            self._note = _explain(best, seconds, operation)
            self.kernel, self.operation = makers[best](operation, x.shape), None
            self._trials.left -= 1
            if not self._trials.left:
                trim_heap()
            return self.kernel


def _times(
    makers: dict[str, Maker], operation: Operation, x: Tensor, scale: Tensor
) -> dict[str, float]:
    """Kernel -> seconds of the fastest of a few calls, after one that warms up; without those
    that oneDNN has no implementation for.
    """
    seconds = {}
    for name, make in makers.items():
        times = []
        try:
            kernel = make(operation, x.shape)
            for _ in range(_ROUNDS + 1):
                start = time.perf_counter()
                kernel(x, scale)
                times.append(time.perf_counter() - start)
        except RuntimeError:
            if name == Float.name:
                raise
            continue
        seconds[name] = min(times[1:])
        del kernel
        trim_heap()
    return seconds


def _explain(best: str, seconds: dict[str, float], operation: Operation) -> str:
    """Why the kernel was taken."""
    why = obstacle(operation)
    if why or len(seconds) < 2:
        return why or "oneDNN has no operator for its sizes"
    if best == Float.name:
        fastest = min(time for name, time in seconds.items() if name != best)
        return f"{fastest / seconds[best]:.2f}x the time as integers"
    return f"{seconds[Float.name] / seconds[best]:.1f}x as fast as float"
