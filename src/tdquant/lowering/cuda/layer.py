r"""A quantized layer on tensor cores.

    y = s_x s_w acc + o s_w sum_{inside} q_w + b

with ``acc`` from a kernel, and o the real number of code 0: zero but on published grids.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tdquant.layers import QuantLayer
from tdquant.lowering.cuda.kernels import FP8_EXACT, FloatProduct, Geometry, MatrixProduct
from tdquant.model_summary import Row, layer_row
from tdquant.numerics.fake_quantize import expand_scale
from tdquant.quantizers import ActivationQuantizer, FrozenWeight, OffsetQuantizer
from tdquant.scales.base import KeepFloat32Mixin


def obstacle(layer: QuantLayer) -> str:
    """Why no kernel can run a layer on codes, or empty."""
    weight, inputs = layer.weight_quantizer, layer.input_quantizer
    if not isinstance(weight, FrozenWeight):
        return "its weights are float"
    if not isinstance(inputs, ActivationQuantizer):
        return "its inputs are float"
    if max(weight.grid.bits, inputs.grid.bits) > 8:
        return "codes of more than 8 bits"
    return ""


class CudaLayer(KeepFloat32Mixin):
    """A lowered layer, called as the frozen one. It has no kernel before ``use``.

    Arguments:
        layer: A frozen quantized layer without ``obstacle``.
        path: Its path.
        fp8: Whether the device multiplies float8.

    Attributes:
        options: Name -> maker of every kernel that is right for the layer, a most exact one first.
        default: The one to take unmeasured: a matrix product where there is no window to gather.
        rows: What ``tdq.summary`` shows.
    """

    weight_scale: Tensor
    bias: Tensor | None
    border: Tensor | None
    kernel: nn.Module

    def __init__(self, layer: QuantLayer, path: str, fp8: bool) -> None:
        super().__init__()
        quantizer, weight = layer.input_quantizer, layer.weight_quantizer
        assert isinstance(quantizer, ActivationQuantizer)
        assert isinstance(weight, FrozenWeight)
        self.input_quantizer = quantizer
        self.geometry = Geometry.of(layer)
        channel = (-1, *[1] * (layer.weight.ndim - 2))
        codes = layer.weight_codes(path).to(torch.int8)
        step = weight.step.detach().expand(len(codes))
        self.register_buffer("weight_scale", step.clone().reshape(channel))
        bias = None if layer.bias is None else layer.bias.detach().float().reshape(channel)
        self.register_buffer("bias", bias)
        self.flat = codes.ndim == 3  # a convolution in one dimension
        codes = codes.unsqueeze(2) if self.flat else codes
        self.offset = quantizer.offset if isinstance(quantizer, OffsetQuantizer) else 0.0
        sums = codes.sum(1, keepdim=True) * step.reshape(-1, *[1] * (codes.ndim - 1))
        self.register_buffer("border", self.offset * sums if self.offset else None)
        self.options = self._options(codes, layer.weight.dtype, fp8)
        windows = self.geometry is not None and self.geometry.kernel != (1, 1)
        self.default = "codes" if windows else next(iter(self.options))
        self._row = layer_row(path, layer)
        self.rows: list[Row] = []

    def _options(
        self, codes: Tensor, dtype: torch.dtype, fp8: bool
    ) -> dict[str, Callable[[], MatrixProduct | FloatProduct]]:
        grid, geometry = self.input_quantizer.grid, self.geometry
        bounds, largest = (grid.low, grid.high), max(grid.high, -grid.low)
        weights = int(codes.int().abs().flatten(1).sum(1).max())
        options: dict[str, Callable[[], MatrixProduct | FloatProduct]] = {}
        matrix = geometry is None or geometry.groups == 1
        if matrix and max(largest, 128) * weights < 2**31:
            options["int8"] = partial(MatrixProduct, codes, geometry, bounds, torch.int8)
        options["codes"] = partial(FloatProduct, codes, geometry, largest * weights, dtype)
        if matrix and fp8 and max(largest, int(codes.int().abs().max())) <= FP8_EXACT:
            options["fp8"] = partial(MatrixProduct, codes, geometry, bounds, torch.float8_e4m3fn)
        return options

    def use(self, name: str, note: str = "") -> None:
        """Takes one of the options as the kernel."""
        self.kernel = self.options[name]().to(self.weight_scale.device)
        self.rows = [self._row.on(self.kernel.name, note)]  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        quantizer = self.input_quantizer
        scale = expand_scale(quantizer.step(x), x)
        v = x.float() - self.offset if self.offset else x.float()
        q = torch.div(v, scale).round_().clamp_(quantizer.grid.low, quantizer.grid.high)
        q = q.unsqueeze(2) if self.flat else q
        acc = self.kernel(q)
        y = (acc.squeeze(2) if self.flat else acc) * (scale * self.weight_scale)
        if self.border is not None:
            y = y + self._border(q)
        if self.bias is not None:
            y = y + self.bias
        return y.to(x.dtype)

    def _border(self, q: Tensor) -> Tensor:
        """``o s_w sum_{inside} q_w``: a number a channel, but for windows that hold padding."""
        geometry = self.geometry
        assert self.border is not None
        if geometry is None:
            return self.border.squeeze(1)
        ones = geometry.padded(torch.ones_like(q[:1, :1]))
        inside = F.conv2d(ones, self.border, None, geometry.stride, 0, geometry.dilation)
        return inside.squeeze(2) if self.flat else inside

    def extra_repr(self) -> str:
        return f"offset={self.offset}" if self.offset else ""
