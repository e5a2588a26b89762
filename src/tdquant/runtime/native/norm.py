r"""Group normalization with what follows it by the compiled kernels.

    v = (x - mean_g) / sqrt(var_g + eps) w_c + b_c,    y = v or v sigmoid(v)

to float, or on to codes of y: x is read twice and nothing but the result is written.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from tdquant.runtime.native.library import library, threads
from tdquant.runtime.native.product import Codes


class _Norm(ctypes.Structure):
    _fields_ = (
        *[(name, ctypes.c_void_p) for name in ("x", "weight", "bias")],
        *[
            (name, ctypes.c_int64)
            for name in ("batch", "rows", "channels", "groups", "silu", "threads")
        ],
        ("eps", ctypes.c_double),
    )


@dataclass(frozen=True)
class GroupNorm:
    """A normalization: G groups, weight and bias ``(C,)`` float32 or None, and whether SiLU
    follows.
    """

    groups: int
    weight: Tensor | None
    bias: Tensor | None
    eps: float
    silu: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        """y of float32 ``(B, C, *)``, dense with the channels last."""
        y = torch.empty_like(x)
        library().tdq_normalize(ctypes.byref(self._spec(x)), None, y.data_ptr())
        return y

    def codes(self, x: Tensor, codes: Codes, scale: Tensor, row: int) -> Tensor:
        """Codes ``(M, row)`` of y for such an image ``(B, C, H, W)``; ``scale`` as ``Codes.of``
        takes it.
        """
        spec = codes.spec(x, scale, row)
        out = torch.empty(spec.rows, row, dtype=codes.dtype)
        library().tdq_normalize(ctypes.byref(self._spec(x)), ctypes.byref(spec), out.data_ptr())
        return out

    def _spec(self, x: Tensor) -> _Norm:
        batch, channels = x.shape[:2]
        return _Norm(
            x.data_ptr(), _p(self.weight), _p(self.bias), batch, x.numel() // (batch * channels),
            channels, self.groups, int(self.silu), threads(), self.eps,
        )  # fmt: skip


def _p(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
