"""``compile(frozen, backend="cuda")``: every quantized layer on tensor cores, one lookup of scales
a call.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.errors import BackendError
from tdquant.layers import QuantLayer
from tdquant.lowering.backends import Example, register_backend, time_calls
from tdquant.lowering.cuda.kernels import FP8_EXACT, FloatProduct, MatrixProduct
from tdquant.lowering.operation import Operation
from tdquant.lowering.products import ProductLayer, lower_layers
from tdquant.support.adapters import refuse_weight_readers
from tdquant.support.hooks import hooked

FP8_CAPABILITY = (8, 9)
"""Least compute capability that multiplies float8: Ada and Hopper."""


@register_backend("cuda")
def lower(frozen: nn.Module, example: Example | None = None) -> nn.Module:
    """A copy of the frozen model on the GPU: that of the model, or the current one.

    With an example every layer runs the fastest of its kernels, measured on it, else those that
    ``docs/backends.md`` names.

    Raises:
        BackendError: There is no CUDA device.
    """
    if not torch.cuda.is_available():
        built = torch.version.cuda is not None
        raise BackendError(
            "there is no CUDA device",
            where="cuda",
            why="torch sees none" if built else "this build of torch has no CUDA",
            fix='backend="auto" takes what runs here',
        )
    devices = {p.device for p in frozen.parameters() if p.is_cuda}
    return lower_on(frozen, next(iter(devices), torch.device("cuda")), example)


def lower_on(
    frozen: nn.Module,
    device: torch.device | str,
    example: Example | None = None,
    fp8: bool | None = None,
) -> nn.Module:
    """``lower`` on any device: on the CPU the same arithmetic, slowly.

    Arguments:
        frozen: The frozen model; it stays as it is.
        device: Where the copy goes.
        example: Arguments of a call to measure kernels with.
        fp8: Whether float8 may be used; None asks the device.
    """
    refuse_weight_readers(frozen, "cuda")
    device = torch.device(device)
    if fp8 is None:
        fp8 = device.type == "cuda" and torch.cuda.get_device_capability(device) >= FP8_CAPABILITY
    layers: list[CudaLayer] = []

    def make(layer: QuantLayer, path: str, operation: Operation) -> nn.Module:
        if operation.float_reason:
            raise BackendError(operation.float_reason)
        layers.append(CudaLayer(layer, path, operation, fp8))
        return layers[-1]

    model = lower_layers(frozen, make)
    model.to(device)
    for layer in layers:
        layer.take(layer.default)
    if example is not None:
        _measure(model, layers, tuple(_moved(value, device) for value in example))
    for layer in layers:
        layer.options = {}  # they hold a copy of the codes
    return model


class CudaLayer(ProductLayer):
    """A layer that has no kernel before ``take``.

    Arguments:
        layer: A frozen quantized layer.
        path: Its path.
        operation: A product of 8-bit codes.
        fp8: Whether the device multiplies float8.

    Attributes:
        options: Name -> maker of every kernel that is right for the layer, a most exact one first.
        default: The one to take unmeasured: a matrix product where there is no window to gather.
        key: Equal for layers that run equally fast on equal inputs.
    """

    def __init__(self, layer: QuantLayer, path: str, operation: Operation, fp8: bool) -> None:
        super().__init__(layer, path, operation, weight=False)
        assert operation.inputs is not None
        options: dict[str, Callable[[], nn.Module]] = {}
        matrix = operation.geometry.groups == 1
        if matrix and not operation.int32_reason:
            options["int8"] = partial(MatrixProduct, operation, torch.int8)
        options["codes"] = partial(FloatProduct, operation, self.weight.dtype)
        if matrix and fp8 and max(operation.inputs.largest, operation.largest) <= FP8_EXACT:
            options["fp8"] = partial(MatrixProduct, operation, torch.float8_e4m3fn)
        self.options, self.key = options, (operation.signature(), tuple(options))
        self.default = "codes" if {*operation.taps} - {1} else next(iter(options))

    def take(self, name: str, note: str = "") -> None:
        """Takes one of the options as the kernel."""
        self.use(self.options[name]().to(self.sums.step.device), name, note)


@torch.no_grad()
def _measure(model: nn.Module, layers: list[CudaLayer], example: Example) -> None:
    """Has every layer try its kernels on its input, in one call, and keep the fastest that agrees
    with the first; equal layers on inputs of one size are tried once.
    """
    known: dict[Any, tuple[str, str]] = {}

    def choose(layer: nn.Module, args: tuple[Any, ...]) -> None:
        assert isinstance(layer, CudaLayer)
        x = args[0]
        key = layer.key, tuple(x.shape), x.dtype
        if key not in known:
            known[key] = _fastest(layer, x)
        layer.take(*known[key])

    hooks = [layer.register_forward_pre_hook(choose) for layer in layers if len(layer.options) > 1]
    with hooked(hooks):
        model(*example)


def _fastest(layer: CudaLayer, x: Tensor) -> tuple[str, str]:
    """The fastest right option of a layer, and a note of the times."""
    tolerance = 1e-5 if x.dtype == torch.float32 else 2 * torch.finfo(x.dtype).eps
    exact: Tensor | None = None
    kernels: dict[str, Any] = {}
    for name in layer.options:
        layer.take(name)
        y = layer.forward(x)
        exact = y if exact is None else exact
        if (y - exact).abs().max() <= tolerance * exact.abs().max():
            kernels[name] = layer.sums.kernel

    def run(name: str) -> Any:
        def call(x: Tensor) -> Tensor:
            layer.sums.kernel = kernels[name]
            return layer.forward(x)

        return call

    seconds = time_calls({name: run(name) for name in kernels}, (x,))
    times = ", ".join(f"{name} {1e6 * s:.0f}" for name, s in seconds.items())
    return min(seconds, key=seconds.__getitem__), f"measured, us: {times}"


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value
