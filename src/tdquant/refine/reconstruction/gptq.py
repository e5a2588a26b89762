r"""GPTQ: rounds the columns of a weight one after the other, and compensates the error in the
remaining columns.

    E = (W_hat - W) H (W_hat - W)^T,    H = X_hat^T X_hat

is the error of a layer on its quantized inputs. With U the upper Cholesky factor of H^-1, rounding
column j to q leaves an error e = (w_j - q) / U_jj, and the columns k > j become ``w_k - e U_jk``.
A convolution is a product with unfolded patches, and one of G groups is G products.

Rounding the weights of the layers before moves the inputs, before they are quantized, from X to Y.
With ``drift``, the weight that is rounded is the one that takes Y to nearly the same outputs,

    W' = W + W (X - Y)^T Y (H + lambda I)^-1,

A row (an output channel) that would be worse than rounded to nearest is rounded to nearest.

References:
    Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
    Transformers, 2022 (https://arxiv.org/abs/2210.17323), algorithm 1.
    Li et al., GPTAQ: Efficient Finetuning-Free Quantization for Asymmetric Calibration, 2025
    (https://arxiv.org/abs/2504.02692): outputs of the float model as the target.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tdquant.layers import CONVOLUTIONS, QuantLayer
from tdquant.quantizers import RoundedWeight, WeightQuantizer
from tdquant.quantizers.rounding import decided

DAMPING = 0.01
"""Share of the mean diagonal of H that is added to it."""

RIDGE = 0.1
"""Lambda, as a share of the mean diagonal of H: what inputs show by chance is not followed."""

ROWS = 128
"""Rows of inputs for each column of H that suffice; of more, every n-th is taken."""

_COLUMNS = 128
"""Columns whose effect on all later columns is one product."""


def patches(layer: QuantLayer, x: Tensor) -> Tensor:
    """The rows that each group of a layer multiplies by its weight, ``(G, N, K)``."""
    if not isinstance(layer, CONVOLUTIONS):
        return x.reshape(1, -1, x.shape[-1])
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    dims = len(layer.kernel_size)
    for i in range(dims):  # (B, C, *) -> (B, C, *', *k)
        extent = layer.dilation[i] * (layer.kernel_size[i] - 1) + 1
        x = x.unfold(2 + i, extent, layer.stride[i])[..., :: layer.dilation[i]]
    rows = x.unflatten(1, (layer.groups, -1)).movedim((1, 2), (0, 2 + dims))
    return rows.flatten(2 + dims).flatten(1, 1 + dims)


class Hessian:
    """The sum of ``X^T X`` over calls.

    Arguments:
        layer: The layer.
        limit: Rows to take of one call, or None for all.
        columns: Most columns of a block; None for one block. What lies between blocks is left
            out, which bounds memory and time for wide layers.

    Attributes:
        total: The blocks on the diagonal, ``(G, k, k)`` each.
        drift: ``(X - Y)^T Y`` in the same blocks, with the inputs X of the float model and Y
            behind rounded weights.
    """

    def __init__(
        self, layer: QuantLayer, limit: int | None = None, columns: int | None = None
    ) -> None:
        self.layer, self.limit = layer, limit
        groups = getattr(layer, "groups", 1)
        self.total = [
            torch.zeros(groups, width, width, device=layer.weight.device, dtype=torch.float32)
            for width in block_widths(layer.weight[0].numel(), columns)
        ]
        self.drift = [torch.zeros_like(block) for block in self.total]
        self.rows = 0

    def take(self, x: Tensor, call: int = 0) -> Tensor:
        """The rows ``(G, N, K)`` of an input that count in the call of a number."""
        rows = patches(self.layer, x.float())
        if self.limit is not None and rows.shape[1] > self.limit:
            # Spread over all rows, and different in every call.
            places = torch.linspace(
                0, rows.shape[1] - 1, self.limit, device=x.device, dtype=torch.float32
            ).long()
            rows = rows[:, (places + call) % rows.shape[1]]
        return rows

    @torch.no_grad()
    def add(self, x: Tensor, call: int = 0) -> None:
        """Adds quantized inputs of the layer from the call of a number."""
        rows = self.take(x, call)
        for total, part in zip(self.total, self._parts(rows), strict=True):
            total += part.mT @ part
        self.rows += rows.shape[1]

    @torch.no_grad()
    def add_drift(self, moved: Tensor, exact: Tensor, call: int = 0) -> None:
        """Adds how far inputs have moved. It does not count if there were more or fewer in the
        float model: a mixture of experts sends them elsewhere.

        Arguments:
            moved: The inputs behind rounded weights, before they are quantized.
            exact: What ``take`` gave for the inputs in the float model.
            call: Number of the call.
        """
        rows = self.take(moved, call)
        if exact.shape != rows.shape:
            return
        parts = self._parts(rows), self._parts(exact - rows)
        for drift, part, away in zip(self.drift, *parts, strict=True):
            drift += away.mT @ part

    def _parts(self, rows: Tensor) -> tuple[Tensor, ...]:
        return rows.split([block.shape[1] for block in self.total], 2)


def block_widths(width: int, columns: int | None) -> list[int]:
    """Widths of the fewest blocks of at most ``columns``, as equal as can be."""
    count = -(-width // columns) if columns else 1
    return [width * (i + 1) // count - width * i // count for i in range(count)]


def quadratic(error: Tensor, hessian: Tensor) -> Tensor:
    """``e H e^T`` of every row, ``(G, C / G)``, for ``error`` ``(G, C / G, K)``."""
    return ((error @ hessian) * error).sum(-1)


@torch.no_grad()
def gptq(
    layer: QuantLayer,
    hessian: Sequence[Tensor],
    order: bool = True,
    drift: Sequence[Tensor] | None = None,
) -> tuple[RoundedWeight, float, float]:
    """The codes of a layer by GPTQ.

    Arguments:
        layer: A layer with a WeightQuantizer, whose steps are kept.
        hessian: ``(G, k, k)`` of each block of columns, in order: the sum over the rows of its
            quantized inputs.
        order: Round the columns with the largest inputs first.
        drift: Blocks of the same shapes, if the outputs of the float model are the target.

    Returns:
        The quantizer, and the summed squared output errors of the codes that it had and of
        these, on quantized inputs.
    """
    quantizer = layer.weight_quantizer
    assert isinstance(quantizer, WeightQuantizer)
    start = decided(quantizer, layer.weight)
    groups, widths = len(hessian[0]), [block.shape[1] for block in hessian]
    weight = layer.weight.detach().double().reshape(groups, -1, sum(widths))
    scale = start.scale(layer.weight).detach().double()
    scale = scale.expand(layer.weight.shape).reshape(weight.shape)
    near = start.codes.double().reshape(weight.shape)
    products = [block.double() for block in hessian]
    blocks = zip(*(x.split(widths, 2) for x in (weight, scale, near)), products, strict=True)
    chosen, errors = [], [0.0, 0.0]
    for number, (w, s, q, h) in enumerate(blocks):
        if drift is not None:
            w = _moved(w, h, drift[number].double())
        found = torch.stack(
            [
                _round_columns(*each, quantizer.grid.low, quantizer.grid.high, order)
                for each in zip(w, s, h, strict=True)
            ]
        )
        before, after = quadratic(q * s - w, h), quadratic(found * s - w, h)
        chosen.append(torch.where((after < before).unsqueeze(-1), found, q))
        errors[0] += float(before.sum())
        errors[1] += float(after.minimum(before).sum())
    codes = torch.cat(chosen, 2).reshape(layer.weight.shape)
    rounded = RoundedWeight(quantizer.grid, start.step, codes, start.groups)
    return rounded, errors[0], errors[1]


def _moved(weight: Tensor, hessian: Tensor, drift: Tensor) -> Tensor:
    """The weights ``(G, C, K)`` that make up for the drift of their inputs."""
    ridge = RIDGE * hessian.diagonal(dim1=1, dim2=2).mean(1)
    if not bool((ridge > 0).all()):  # no input ever reached a group
        return weight
    damped = hessian + ridge[:, None, None] * torch.eye(hessian.shape[1], dtype=torch.float32).to(
        hessian
    )
    return weight + torch.linalg.solve(damped, (weight @ drift).mT).mT


def _round_columns(
    weight: Tensor, scale: Tensor, hessian: Tensor, low: int, high: int, order: bool
) -> Tensor:
    """Codes ``(C, K)`` of one group, by steps ``(C, K)``."""
    diagonal = hessian.diagonal()
    mean = diagonal.mean()
    if not mean > 0:  # no input ever reached it
        return (weight / scale).round().clamp(low, high)
    damped = hessian + torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device) * (
        DAMPING * mean
    )
    permutation = (
        diagonal.argsort(descending=True, stable=True)
        if order
        else torch.arange(len(diagonal), device=hessian.device)
    )
    damped = damped[permutation][:, permutation]
    w, s = weight[:, permutation].clone(), scale[:, permutation]
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    u = torch.linalg.cholesky(inverse, upper=True)
    codes = torch.empty_like(w)
    width = w.shape[1]
    for first in range(0, width, _COLUMNS):
        last = min(first + _COLUMNS, width)
        errors = torch.empty_like(w[:, first:last])
        for j in range(first, last):
            codes[:, j] = (w[:, j] / s[:, j]).round().clamp(low, high)
            e = (w[:, j] - codes[:, j] * s[:, j]) / u[j, j]
            w[:, j:last] -= e.unsqueeze(1) * u[j, j:last]
            errors[:, j - first] = e
        w[:, last:] -= errors @ u[first:last, last:]
    return codes[:, permutation.argsort()]
