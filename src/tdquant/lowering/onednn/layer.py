"""``compile(frozen, backend="onednn")``: every quantized layer runs its first input on each kernel
that is exact on this processor, and keeps the fastest.
"""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.errors import BackendError
from tdquant.layers import QuantLayer
from tdquant.lowering import labels
from tdquant.lowering.backends import Example, register_backend
from tdquant.lowering.onednn.kernels import (
    Float,
    Kernel,
    Maker,
    NotPickled,
    channels_last,
    exact_kernels,
    obstacle,
)
from tdquant.lowering.operation import Operation
from tdquant.lowering.products import lower_layers
from tdquant.model_summary import Row, layer_row
from tdquant.support.adapters import refuse_weight_readers
from tdquant.support.memory import trim_heap

_ROUNDS = 3
_ONE = torch.ones((), dtype=torch.float32)


@register_backend("onednn")
def lower(frozen: nn.Module, example: Example | None = None) -> nn.Module:
    """Lowers a copy of the frozen model to torch's int8 operators, channels last.

    A layer whose operator is not exact on this processor, or not faster than float on the example
    or else on the first call, computes with rounded inputs in float.

    Raises:
        BackendError: The model is on another device, or has an adapter of kind DoRA, LoHa or LoKr.
    """
    devices = {p.device.type for p in frozen.parameters()}
    if devices - {"cpu"}:
        raise BackendError(
            f"the model is on {', '.join(sorted(devices))}", where="onednn", fix="model.cpu()"
        )
    refuse_weight_readers(frozen, "onednn")
    model = lower_layers(frozen, partial(OneDnnLayer, Trials()))
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.contiguous(memory_format=torch.channels_last)
    if example is not None:
        with torch.no_grad():
            model(*example)
    return model


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
        trials: Shared by the layers of a model.
        layer: A frozen quantized layer.
        path: Its path, for errors.
        operation: What it computes.
    """

    def __init__(self, trials: Trials, layer: QuantLayer, path: str, operation: Operation) -> None:
        super().__init__()
        self.input_quantizer: Any = layer.input_quantizer
        self.dims, self.inputs = operation.geometry.dims, operation.inputs
        self.channels = operation.weight.shape[1] * operation.geometry.groups
        self.operation: Operation | None = operation.lifted()
        self.kernel: Kernel | None = None
        self._trials, self._row, self._note = trials, layer_row(path, layer), ""
        trials.left += 1
        # Models ask their layers for the weight's dtype and device, and for sizes.
        dtype = getattr(layer.weight_quantizer, "dtype", layer.weight.dtype)
        empty = layer.weight.new_empty(0, dtype=dtype)
        self.weight = nn.Parameter(empty, requires_grad=False)
        for name in layer.geometry:
            setattr(self, name, getattr(layer, name))

    @property
    def rows(self) -> list[Row]:
        """The layer in the summary."""
        if self.kernel is None:
            return [self._row.on(labels.UNTRIED, labels.AT_FIRST_CALL)]
        return [self._row.on(self.kernel.name, self._note)]

    @property
    def packed_tensors(self) -> list[Tensor]:
        """The tensors that the layer keeps beside its parameters and buffers."""
        if self.kernel is not None:
            return self.kernel.packed_tensors
        return [] if self.operation is None else [self.operation.weight]

    def forward(self, input: Tensor) -> Tensor:
        """The layer on ``(B, *, C)`` or, a convolution, ``(B, C, *)``."""
        fits = not self.dims or input.ndim == self.dims + 2
        if not fits or input.shape[1 if self.dims else -1] != self.channels:
            raise BackendError(
                f"an input of shape {tuple(input.shape)} for {self.channels} channels",
                where=self._row.path,
                why=f"the layer takes (B, C{', *' * self.dims})"
                if self.dims
                else "the layer takes (B, *, C)",
            )
        x = input
        if self.dims:
            x = x.unsqueeze(2) if self.dims == 1 else x
            x = channels_last(x.float())
        else:
            x = (x.flatten(1, 2) if x.ndim == 4 else x).float().contiguous()  # 4 are an image's
        step = self._step(input, x)
        kernel = self.kernel or self._choose(x, step)
        y = kernel(x, step)
        if self.dims == 1:
            y = y.squeeze(2)
        elif not self.dims and input.ndim == 4:
            y = y.unflatten(1, input.shape[1:3])
        return y if y.dtype == input.dtype else y.to(input.dtype)

    def _step(self, input: Tensor, x: Tensor) -> Tensor:
        """The step of the input, ``()`` or shaped to broadcast over x."""
        if self.inputs is None:
            return _ONE
        step: Tensor = self.input_quantizer.step(input)
        if not step.ndim or not input.numel():
            return step if input.numel() else step.new_ones(())
        if self.dims == 1:
            return step.unsqueeze(2)
        return step.expand(*input.shape[:3], 1).flatten(1, 2) if step.ndim > x.ndim else step

    def _choose(self, x: Tensor, step: Tensor) -> Kernel:
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
                    self._trials.seconds[key] = _times(makers, operation, x, step)
                seconds = self._trials.seconds[key]
            best = min(seconds, key=seconds.__getitem__, default=next(iter(makers)))
            self._note = _explain(best, seconds, operation)
            self.kernel, self.operation = makers[best](operation, x.shape), None
            self._trials.left -= 1
            if not self._trials.left:
                trim_heap()
            return self.kernel


def _times(
    makers: dict[str, Maker], operation: Operation, x: Tensor, step: Tensor
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
                kernel(x, step)
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
        return why or labels.NO_PRIMITIVE
    if best == Float.name:
        fastest = min(time for name, time in seconds.items() if name != best)
        return f"{fastest / seconds[best]:.2f}x the time as integers"
    return f"{seconds[Float.name] / seconds[best]:.1f}x as fast as float"
