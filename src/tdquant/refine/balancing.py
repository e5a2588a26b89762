r"""``balance``: scales the input channels of layers before a float model is quantized.

    c_j = a_j^alpha / w_j^(1 - alpha),    a_j = max |x_j|,   w_j = max_i |W_ij|

a_j is over calls, positions and samples, w_j over the taps of a convolution as well. alpha = 1
equalizes all channels of the input, alpha = 0 all columns of the weight. ``"search"`` takes for
each layer the alpha with the least

    |W_hat(c) x_hat(c) - W x|^2

on a sample of what its products see (rows of inputs, patches under a window) with both operands
rounded to nearest; no division is a candidate too, so that a layer never gets worse by this
measure.

References:
    Xiao et al., SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language
    Models, 2022 (https://arxiv.org/abs/2211.10438), equation 4.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tdquant.calls.call import Call, run
from tdquant.calls.observing import watching
from tdquant.clock import is_quantized
from tdquant.errors import CalibrationError, ConversionError
from tdquant.families import family_of
from tdquant.layers import replace_module
from tdquant.layers.balance import BalancedLayer
from tdquant.layers.base import keep_layers_called, shared_parameters
from tdquant.layers.structure import CHANNELS, channel_dimension, names_of
from tdquant.numerics.fake_quantize import FLOOR, fake_quantize
from tdquant.numerics.grid import Grid
from tdquant.quantizers.steps import mse_step
from tdquant.state import note, state_of
from tdquant.support.hooks import check_onloaded
from tdquant.support.patterns import matching, unmatched_patterns
from tdquant.support.progress import track
from tdquant.support.restoring import changes_model, evaluating

M = TypeVar("M", bound=nn.Module)

ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Candidates of ``"search"``, beside no division."""

ROWS = 512
"""Rows of a layer's inputs to search with."""


@changes_model
def balance(
    model: M,
    batches: Iterable[Call],
    *,
    alpha: float | Literal["search"] = 0.5,
    layers: Iterable[str] | None = None,
    weights: int = 8,
    activations: int = 8,
    progress: bool = True,
) -> M:
    """Divides the input channels of linear layers and convolutions of a float model, in place. A
    later ``quantize`` finds plain layers behind the divisions.

    Arguments:
        model: A float model.
        batches: Calls of it, as for ``calibrate``.
        alpha: Share of the range that moves from inputs into weights, in [0, 1], or ``"search"``.
        layers: Glob patterns over paths; None takes every layer that a call reaches, except on the
            time path, at the edges, and those whose weight another module reads as well.
        weights: Bits of the weights that the search assumes.
        activations: Bits of the inputs that the search assumes.
        progress: Draw a bar.

    Returns:
        The model. ``model.tdq.balance`` is the alpha of every balanced layer by its path. A path
        leads to the same place as before; the plain layer is ``<path>.layer``.

    Raises:
        ConversionError: The model is quantized already, has no such layer, a named layer's weight
            is read by another module as well, or alpha is out of range.
        CalibrationError: No batches, or inputs that are not finite. The model is then left as it
            was.
    """
    if is_quantized(model):
        raise ConversionError(
            "the model is quantized already",
            where="balance",
            why="codes were chosen for weights that balancing would change",
            fix="tdq.balance(model, batches) before tdq.quantize(model, recipe)",
        )
    if alpha != "search" and not 0 <= alpha <= 1:
        raise ConversionError(f"{alpha=}", where="balance", fix='0 to 1, or "search"')
    check_onloaded(model, "tdq.balance")
    chosen = _choose(model, layers)
    largest, rows = _watch(model, chosen, batches, alpha == "search", progress)
    grids = Grid.signed(weights, narrow=True), Grid.signed(activations)
    found: dict[str, float] = {}
    for path, most in track(largest.items(), "balancing", len(largest), progress):
        layer = chosen[path]
        searching = alpha == "search"
        best = (
            _search(layer, most, torch.cat(rows[path], 1), *grids) if searching else float(alpha)
        )
        if best is not None:
            new = BalancedLayer.balanced(layer, factors(most, layer, best))
            replace_module(model, layer, new.train(layer.training))
            found[path] = best
    keep_layers_called(model)
    state = state_of(model)
    state.balance = {**(state.balance or {}), **found}
    note(model, "balance", layers=len(found))
    return model


def factors(largest: Tensor, layer: nn.Module, alpha: float) -> Tensor:
    """The divisors c ``(C,)``, of geometric mean 1; an unused channel, or one that no weight
    reads, keeps 1.

    Arguments:
        largest: ``max |x_j|``, ``(C,)``.
        layer: A linear layer or convolution.
        alpha: Share of the range that moves.
    """
    columns = _matrices(layer).abs().amax(1).reshape(len(largest), -1).amax(1)
    used = (largest > 0) & (columns > 0)
    log_c = alpha * largest.clamp(min=FLOOR).log() - (1 - alpha) * columns.clamp(min=FLOOR).log()
    mean = log_c[used].mean() if bool(used.any()) else log_c.new_zeros(())
    c = torch.where(used, log_c - mean, torch.zeros_like(log_c)).clamp(-12, 12).exp()
    # Products have to stay within the dtype of the weight, which may be float16.
    room = torch.finfo(layer.weight.dtype).max / 2  # type: ignore[arg-type]
    return c.minimum(room / columns.clamp(min=FLOOR))


def _matrices(layer: Any) -> Tensor:
    """The weight as a float32 matrix for each group, ``(groups, out / groups, in * taps)``."""
    weight, groups = layer.weight.detach().float(), getattr(layer, "groups", 1)
    return weight.reshape(groups, len(weight) // groups, -1)


def _patches(layer: Any, x: Tensor, count: int) -> Tensor:
    """An even choice of what a layer's products see, ``(groups, n, in * taps)``, on the CPU."""
    if isinstance(layer, nn.Linear):
        rows = x.reshape(-1, x.shape[-1])
        return rows[:: max(len(rows) // count, 1)][:count].cpu().unsqueeze(0)
    dims = len(layer.kernel_size)
    x = F.pad(x if x.ndim > dims + 1 else x[None], layer._reversed_padding_repeated_twice)
    taps = zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)
    for d, (size, stride, dilation) in enumerate(taps):
        x = x.unfold(2 + d, dilation * (size - 1) + 1, stride)[..., ::dilation]
    places = torch.Size((len(x), *x.shape[2 : 2 + dims]))
    # A golden ratio apart: even in every dimension.
    index = (
        torch.arange(min(count, places.numel()), dtype=torch.float32) * 0.6180339887 % 1
    ) * places.numel()
    sample, *place = torch.unravel_index(index.long().to(x.device), places)
    found = x.movedim(1, 1 + dims)[(sample, *place)]
    return found.reshape(len(index), layer.groups, -1).transpose(0, 1).cpu()


def _choose(model: nn.Module, patterns: Iterable[str] | None) -> dict[str, nn.Module]:
    family = family_of(model)
    left_out = () if patterns else (*family.first, *family.last, *family.time_path)
    shared = shared_parameters(model)
    wanted = ["*"] if patterns is None else list(patterns)
    inside = {id(part.layer) for part in model.modules() if isinstance(part, BalancedLayer)}
    found = {
        path: module
        for path, module in model.named_modules()
        if type(module) in CHANNELS
        and id(module) not in inside
        and matching(names_of(model, path), wanted)
        and not matching(names_of(model, path), left_out)
    }
    unknown = unmatched_patterns(wanted, {n for path in found for n in names_of(model, path)})
    if unknown:
        raise ConversionError(
            "patterns that match no layer: " + ", ".join(map(repr, unknown)),
            where="balance(layers=)",
            fix="globs over module paths, such as 'transformer_blocks.*.ff.*'",
        )
    read_elsewhere = [
        path
        for path, layer in found.items()
        if id(layer.weight) in shared or matching(names_of(model, path), family.read_by_parent)
    ]
    if patterns is not None and read_elsewhere:
        raise ConversionError(
            f"{len(read_elsewhere)} weights are read by another module as well",
            where=", ".join(read_elsewhere[:5]),
            why="it would read them multiplied, with an input that is not divided",
            fix="leave these layers out of layers=, as layers=None does",
        )
    return {path: layer for path, layer in found.items() if path not in read_elsewhere}


@torch.no_grad()
def _watch(
    model: nn.Module,
    layers: dict[str, nn.Module],
    batches: Iterable[Call],
    keep: bool,
    progress: bool,
) -> tuple[dict[str, Tensor], dict[str, list[Tensor]]]:
    """The largest magnitude of each input channel, ``(C,)``, of every layer that calls reach, and
    with ``keep`` an even choice of what its products see.
    """
    largest: dict[str, Tensor] = {}
    kept: dict[str, list[Tensor]] = {}

    def see(path: str, layer: nn.Module, x: Tensor, y: Tensor) -> None:
        x, channels = x.detach().float(), channel_dimension(layer)
        assert channels is not None
        most = x.movedim(channels, -1).reshape(-1, x.shape[channels]).abs().amax(0)
        largest[path] = most.maximum(largest.get(path, most))
        if keep:
            kept.setdefault(path, []).append(_patches(layer, x, ROWS // 16))

    count = 0
    with evaluating(model), watching(layers, see):
        for call in track(batches, "watching inputs", show=progress):
            run(model, call)
            count += 1
    if not count:
        raise CalibrationError("no batches", where="balance", fix="yield calls, such as (x, t)")
    bad = [path for path, most in largest.items() if not most.isfinite().all()]
    if bad:
        raise CalibrationError(
            f"inputs of {len(bad)} layers are NaN or infinite", where=", ".join(bad[:5])
        )
    return largest, kept


def _search(
    layer: nn.Module, largest: Tensor, rows: Tensor, weight_grid: Grid, input_grid: Grid
) -> float | None:
    """The alpha with the least output error, or None for no division."""
    weight = _matrices(layer)
    rows = rows[:, :: -(-rows.shape[1] // ROWS)].to(weight.device)
    exact = rows @ weight.mT

    def error(c: Tensor) -> float:
        columns = c.reshape(len(weight), 1, -1)
        columns = columns.repeat_interleave(weight.shape[2] // columns.shape[2], 2)
        x, w = rows / columns, weight * columns
        if not w.any():
            return 0.0
        # The input step with the least squared error, as in calibration.
        one = torch.ones((), dtype=torch.float32)
        step = mse_step(x, input_grid, per_channel=False) if x.any() else one
        x = fake_quantize(x, step, input_grid.low, input_grid.high)
        steps = mse_step(w.flatten(0, 1), weight_grid, per_channel=True)
        w = fake_quantize(w, steps.reshape(*w.shape[:2], 1), weight_grid.low, weight_grid.high)
        return float((x @ w.mT - exact).square().mean())

    errors: dict[float | None, float] = {None: error(torch.ones_like(largest))}
    for alpha in ALPHAS:
        errors[alpha] = error(factors(largest, layer, alpha))
    return min(errors, key=errors.__getitem__)
