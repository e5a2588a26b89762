r"""Ways to compute an operation on the CPU. Each equals the frozen layer up to float32 rounding.

    int8 onednn    torch's oneDNN operators: uint8 codes of the input, int8 codes of the weight
    float          rounded inputs and a float product

A NaN of the input has no code. It makes the step NaN, and so every output of the call, or of the
sample where samples have steps of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from tdquant.errors import BackendError
from tdquant.lowering import labels
from tdquant.lowering.geometry import Geometry
from tdquant.lowering.operation import Operation
from tdquant.support.machine import instructions

_REST: tuple[Any, ...] = (1.0, 0, torch.float32, "none", [], "")
"""Of an operator's arguments: float32 results, nothing fused behind."""


class Kernel(Protocol):
    """``kernel(x, step) -> y``: float32 ``(B, C, H, W)`` or ``(B, C, D, H, W)``, channels last,
    or, for a linear layer, contiguous ``(*, C)`` of another number of dimensions; and the step of
    x, ``()`` or shaped to broadcast over it.

    Attributes:
        name: What the summary calls it.
        packed_tensors: The tensors that it keeps.
    """

    name: str
    packed_tensors: list[Tensor]

    def __call__(self, x: Tensor, step: Tensor) -> Tensor: ...


class NotPickled:
    """Base of what a compiled model consists of, and a saved one must not."""

    def __reduce__(self) -> Any:
        raise BackendError(
            "a compiled model cannot be pickled",
            where="onednn",
            why="its weights are packed for this processor",
            fix="tdq.save the frozen model, and compile it where it is to run",
        )


def channels_last(x: Tensor) -> Tensor:
    """``(B, C, H, W)`` or ``(B, C, D, H, W)`` with channels last in memory."""
    format = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    return x.contiguous(memory_format=format)


def _is_image(x: Tensor, geometry: Geometry) -> bool:
    """Whether a tensor has channels in dimension 1: a linear layer's never has as many."""
    return x.ndim == geometry.dims + 2


class OneDnn(NotPickled):
    """oneDNN's 8-bit product through torch: of matrices where the window is one position, else a
    convolution.

    Arguments:
        operation: In two dimensions or three, without ``obstacle``.
        shape: Of a typical input, for which the weight is packed.
    """

    name = labels.ONEDNN

    def __init__(self, operation: Operation, shape: torch.Size) -> None:
        assert operation.inputs is not None
        self.codes, self.geometry = operation.inputs, operation.geometry
        self.zero = -self.codes.low  # of real zero, as the unsigned integers that oneDNN takes
        g, sides = self.geometry, self.geometry.even
        self.pads = g.mode != "constant" or sides is None
        walk = (g.stride, (0, 0) if self.pads else sides, g.dilation)
        self.walk = (*(list(pair or ()) for pair in walk), g.groups)
        self.matrix, self.bias = operation.is_matrix, operation.bias
        self.steps = operation.channel_steps()
        if self.matrix:
            self.packed = torch.ops.onednn.qlinear_prepack(operation.weight.flatten(1), None)
        else:
            self.packed = torch.ops.onednn.qconv_prepack(
                operation.weight, self.steps, 1.0, self.zero, *self.walk, list(shape)
            )
        self.zeros = torch.zeros(operation.outputs, dtype=torch.int32)
        self.columns = operation.channel_sums() if self.codes.offset else None
        self.packed_tensors = [self.packed, self.steps, self.zeros]

    def __deepcopy__(self, memo: dict[int, object]) -> OneDnn:
        return self  # nothing in it changes, and packed tensors cannot be copied

    def __call__(self, x: Tensor, step: Tensor) -> Tensor:
        q = self.codes.quantize(x, step)
        one = not step.ndim
        nan = 0 * (q.sum() if one else q.sum(tuple(range(1, q.ndim)), keepdim=True))
        q = q.add_(self.zero) if self.zero else q
        if self.pads:
            q = channels_last(self.geometry.padded(q, self.zero))
        stored = q.to(torch.uint8)
        y = self._product(stored, float(step + nan) if one else 1.0, self.bias if one else None)
        if not one:
            y *= step + nan
            if self.bias is not None:
                y += self._channels(self.bias, y)
        return y if self.columns is None else y.add_(self._of_offset(x, self.columns))

    def _of_offset(self, x: Tensor, columns: Tensor) -> Tensor:
        """``o s_w sum_{inside} q_w``."""
        if not _is_image(x, self.geometry):
            return self.codes.offset * self.steps * columns.flatten()
        sums = self.geometry.ones_product(x, columns)
        return self.codes.offset * self._channels(self.steps, x) * sums

    def _channels(self, values: Tensor, x: Tensor) -> Tensor:
        """A number for each channel that broadcasts over x."""
        return values.reshape(self.geometry.channel) if _is_image(x, self.geometry) else values

    def _product(self, q: Tensor, step: float, bias: Tensor | None) -> Tensor:
        image = _is_image(q, self.geometry)
        codes = (self.packed, self.steps, self.zeros)
        if not self.matrix:
            pointwise = getattr(torch.ops.onednn, f"qconv{self.geometry.dims}d_pointwise")
            return pointwise(q, step, self.zero, *codes, bias, *self.walk, *_REST)
        rows = q.movedim(1, -1) if image else q
        y = torch.ops.onednn.qlinear_pointwise(
            rows.reshape(-1, rows.shape[-1]), step, self.zero, *codes, bias, *_REST
        ).view(*rows.shape[:-1], len(self.zeros))
        return y.movedim(-1, 1) if image else y


class Float:
    """A float product of the rounded input: right everywhere, no faster than the float model.

    Arguments:
        operation: In two dimensions or three.
        shape: Not used.
    """

    name = labels.FLOAT

    def __init__(self, operation: Operation, shape: torch.Size | None = None) -> None:
        self.inputs, self.geometry = operation.inputs, operation.geometry
        self.bias = operation.bias
        self.weight = channels_last(operation.float_weight())
        self.packed_tensors = [self.weight]

    def __call__(self, x: Tensor, step: Tensor) -> Tensor:
        if self.inputs is not None:
            x = self.inputs.quantize(x, step).mul_(step)
            x = x.add_(self.inputs.offset) if self.inputs.offset else x
        if not _is_image(x, self.geometry):
            return torch.nn.functional.linear(x, self.weight.flatten(1), self.bias)
        return self.geometry.convolve(x, self.weight, self.bias)


Maker = Callable[[Operation, torch.Size], Kernel]


def exact_kernels(operation: Operation) -> dict[str, Maker]:
    """Name -> maker of every kernel that computes the operation exactly on this machine."""
    found: dict[str, Maker] = {} if obstacle(operation) else {OneDnn.name: OneDnn}
    return {**found, Float.name: Float}


def obstacle(operation: Operation) -> str:
    """Why oneDNN's product of codes is not exact for an operation on this machine, or empty."""
    if operation.float_reason:
        return operation.float_reason
    if not instructions() or not torch.backends.mkldnn.is_available():
        return labels.NO_OPERATORS
    if operation.saturates and not instructions() & {"vnni", "amx"}:
        return labels.SATURATES
    if operation.geometry.lies_beyond(operation.weight.shape[2:]):
        return labels.BEYOND  # oneDNN 3.12 reads past the input there, for some of them
    return operation.int32_reason
