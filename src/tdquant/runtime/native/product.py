r"""Products of integer codes by the compiled kernels.

    y = s w_n (sum_k q_k c_nk - e_n) + b_n,    e_n = z sum_k c_nk

Input codes are unsigned bytes (``narrow``) where ``high - low`` fits one, z being the byte of real
zero, or signed 16-bit numbers (``wide``), where z is 0. Both are exact: sums of 16 bits are cut
into runs that cannot overflow, and 32 bits are proved enough from the weights themselves.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from tdquant.grid import Grid
from tdquant.runtime.native.library import library, threads

PANEL = 16  # output channels that one tile of the kernel computes
_INT16, _INT32 = 2**15 - 1, 2**31 - 1
_FIRST, _LAST = torch.contiguous_format, torch.channels_last


class _Codes(ctypes.Structure):
    _fields_ = (
        ("scale", ctypes.c_void_p),
        *[(n, ctypes.c_int64) for n in ("scales", "rows", "channels", "row", "wide", "threads")],
        ("low", ctypes.c_float),
        ("high", ctypes.c_float),
        ("offset", ctypes.c_float),
        ("base", ctypes.c_int32),
    )


class _Product(ctypes.Structure):
    _fields_ = (
        *[
            (name, ctypes.c_void_p)
            for name in [
                "codes",
                "zeros",
                "weight",
                "shift",
                "weight_scale",
                "bias",
                "scale",
                "out",
            ]
        ],
        *[
            (name, ctypes.c_int64)
            for name in [
                "wide",
                "run",
                "scales",
                "threads",
                "batch",
                "in_h",
                "in_w",
                "row",
                "out_h",
                "out_w",
                "groups",
                "depth",
                "outputs",
                "kernel_h",
                "kernel_w",
                "stride_h",
                "stride_w",
                "pad_h",
                "pad_w",
                "dilation_h",
                "dilation_w",
            ]
        ],
    )


@dataclass(frozen=True)
class Geometry:
    """How a two-dimensional convolution walks; a linear layer is one of a single position."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def size(self, height: int, width: int, kernel: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the output."""
        (a, b), (p, q), (d, e), (s, t) = kernel, self.padding, self.dilation, self.stride
        return (
            (height + 2 * p - d * (a - 1) - 1) // s + 1,
            (width + 2 * q - e * (b - 1) - 1) // t + 1,
        )


@dataclass(frozen=True)
class Codes:
    """How numbers become codes: ``q = clip(round((x - o) / s), low, high)``, stored as
    ``q + zero``.

    Attributes:
        grid: Range of the codes.
        wide: Whether a code has 16 bits, not 8.
        offset: The real number o of code 0.
    """

    grid: Grid
    wide: bool = False
    offset: float = 0.0

    @property
    def zero(self) -> int:
        """The code of real zero as it is stored."""
        return 0 if self.wide else -self.grid.low

    @property
    def largest(self) -> int:
        """Largest magnitude of a stored code."""
        low, high = self.grid.low, self.grid.high
        return max(-low, high) if self.wide else high - low

    @property
    def dtype(self) -> torch.dtype:
        """Type of a stored code."""
        return torch.int16 if self.wide else torch.uint8

    def of(self, x: Tensor, scale: Tensor, row: int) -> Tensor:
        """Codes ``(M, row)`` of float32 rows ``(M, C)``, zeros behind the first C of a row.

        Arguments:
            x: ``(B, *, C)`` contiguous, or ``(B, C, H, W)`` channels last.
            scale: ``()`` or ``(k,)``, each for M / k rows.
            row: Length of a row of codes, at least C.
        """
        spec = self.spec(x, scale, row)
        codes = torch.empty(spec.rows, row, dtype=self.dtype)
        library().tdq_quantize(x.data_ptr(), codes.data_ptr(), ctypes.byref(spec))
        return codes

    def rounded(self, x: Tensor, scale: Tensor) -> Tensor:
        """``s q + o`` of such an x in one pass: what the frozen model computes."""
        y = torch.empty_like(x)
        spec = self.spec(x, scale, 0)
        library().tdq_round(x.data_ptr(), y.data_ptr(), ctypes.byref(spec))
        return y

    def spec(self, x: Tensor, scale: Tensor, row: int) -> _Codes:
        """The arguments of a kernel that codes ``x``."""
        channels = x.shape[1 if x.ndim == 4 else -1]
        return _Codes(
            scale.data_ptr(), scale.numel(), x.numel() // max(channels, 1), channels, row,
            int(self.wide), threads(), self.grid.low, self.grid.high, self.offset, self.zero,
        )  # fmt: skip


def exact_widths(codes: Tensor, grid: Grid, groups: int) -> list[bool]:
    """For which ``wide`` a layer with weight codes ``(N, C / groups, ...)`` is exact."""
    largest = _largest(codes)
    depth, terms = codes.shape[1], codes[:1].numel()
    sums = largest * terms  # a bound that nearly always is enough
    if sums * max(Codes(grid, wide).largest for wide in (False, True)) > _INT32:
        sums = int(codes.flatten(1).abs().sum(1).max())
    widths = []
    for wide, unit in ((False, 4), (True, 2)):
        code = Codes(grid, wide)
        fits = largest <= (_INT16 if wide else 127) and code.largest <= (_INT16 if wide else 255)
        whole = groups == 1 or depth % unit == 0
        runs = wide or 2 * largest * code.largest <= _INT16
        if fits and whole and runs and sums * code.largest <= _INT32:
            widths.append(wide)
    return widths


def _largest(codes: Tensor) -> int:
    return max(-int(codes.min()), int(codes.max())) if codes.numel() else 0


class Product:
    """One layer's weights packed for the kernels.

    Arguments:
        codes: Weight codes ``(N, C / groups, kh, kw)``.
        weight_scale: ``(N,)`` or ``()``.
        bias: ``(N,)`` or None.
        inputs: How inputs are coded.
        geometry: Of the convolution.
    """

    def __init__(
        self,
        codes: Tensor,
        weight_scale: Tensor,
        bias: Tensor | None,
        inputs: Codes,
        geometry: Geometry,
    ) -> None:
        total, depth, kernel_h, kernel_w = codes.shape
        groups, unit = geometry.groups, 2 if inputs.wide else 4
        outputs = total // groups
        self.codes = inputs
        self.geometry, self.kernel = geometry, (kernel_h, kernel_w)
        self.outputs = total
        self.depth = -(-depth // unit) * unit
        self.row = self.depth * groups
        padded = -(-outputs // PANEL) * PANEL

        def table(values: Tensor, dtype: torch.dtype) -> Tensor:
            out = torch.zeros(groups, padded, dtype=dtype)
            out[:, :outputs] = values.reshape(groups, outputs)
            return out

        taps = kernel_h * kernel_w
        dtype = torch.int16 if inputs.wide else torch.int8
        weight = torch.zeros(groups, padded, taps, self.depth, dtype=dtype)
        weight[:, :outputs, :, :depth] = (
            codes.reshape(groups, outputs, depth, taps).transpose(2, 3).to(dtype)
        )
        self.weight = (
            weight.reshape(groups, padded // PANEL, PANEL, taps, self.depth // unit, unit)
            .permute(0, 1, 3, 4, 2, 5)
            .contiguous()
        )
        self.shift = table(
            codes.flatten(1).sum(1, dtype=torch.int32) * self.codes.zero, torch.int32
        )
        self.weight_scale = table(weight_scale.float().expand(total), torch.float32)
        self.bias = table(torch.zeros(total) if bias is None else bias, torch.float32)
        self.zeros = torch.full((self.depth,), self.codes.zero, dtype=self.codes.dtype)
        largest = max(_largest(codes) * self.codes.largest * 2, 1)
        self._shapes: dict[torch.Size, tuple[_Product, tuple[int, ...]]] = {}
        self._spec = _Product(
            zeros=self.zeros.data_ptr(),
            weight=self.weight.data_ptr(),
            shift=self.shift.data_ptr(),
            weight_scale=self.weight_scale.data_ptr(),
            bias=self.bias.data_ptr(),
            wide=int(inputs.wide),
            run=max(_INT16 // largest, 1),
            row=self.row,
            groups=groups,
            depth=self.depth,
            outputs=outputs,
            kernel_h=kernel_h,
            kernel_w=kernel_w,
            stride_h=geometry.stride[0],
            stride_w=geometry.stride[1],
            pad_h=geometry.padding[0],
            pad_w=geometry.padding[1],
            dilation_h=geometry.dilation[0],
            dilation_w=geometry.dilation[1],
        )

    @property
    def tensors(self) -> list[Tensor]:
        """What the kernel reads: packed weights and tables."""
        return [self.weight, self.shift, self.weight_scale, self.bias, self.zeros]

    def __deepcopy__(self, memo: dict[int, object]) -> Product:
        return self  # nothing in it ever changes

    def __call__(self, codes: Tensor, scale: Tensor, like: torch.Size) -> Tensor:
        """The product of codes ``(M, row)`` of an input of shape ``like``: ``(B, C, H, W)`` gives
        channels-last ``(B, N, H', W')``, ``(*, C)`` gives ``(*, N)``; float32.
        """
        known = self._shapes.get(like)
        if known is None:
            known = self._shapes[like] = self._shaped(like)
        spec, shape = _Product.from_buffer_copy(known[0]), known[1]
        y = torch.empty(shape, memory_format=_LAST if len(shape) == 4 else _FIRST)
        spec.codes, spec.scale, spec.out = codes.data_ptr(), scale.data_ptr(), y.data_ptr()
        spec.scales, spec.threads = scale.numel(), threads()
        library().tdq_multiply(ctypes.byref(spec))
        return y

    def _shaped(self, like: torch.Size) -> tuple[_Product, tuple[int, ...]]:
        """The arguments of the kernel but for what differs from call to call, and the shape of
        the output.
        """
        spec = _Product.from_buffer_copy(self._spec)
        if len(like) != 4:
            spec.batch, spec.in_h, spec.in_w = like[:-1].numel(), 1, 1
            spec.out_h, spec.out_w = 1, 1
            return spec, (*like[:-1], self.outputs)
        batch, _, height, width = like
        out_h, out_w = self.geometry.size(height, width, self.kernel)
        spec.batch, spec.in_h, spec.in_w = batch, height, width
        spec.out_h, spec.out_w = out_h, out_w
        return spec, (batch, self.outputs, out_h, out_w)
