r"""``balance``: divides the input channels of linear layers before a float model is quantized.

    c_j = a_j^alpha / w_j^(1 - alpha),    a_j = max |x_j|,   w_j = max_i |W_ij|

over calls, positions and samples. alpha = 1 makes all channels of the input equally large, and
alpha = 0 all columns of the weight. ``"search"`` takes for each layer the alpha with the least

    |W_hat(c) x_hat(c) - W x|^2

on a sample of its inputs, both operands rounded to nearest; no division at all is among the
candidates, so that a layer never gets worse by this measure.

References:
    Xiao et al., SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language
    Models, 2022 (https://arxiv.org/abs/2211.10438), equation 4.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from tdquant.calls.call import Call, run
from tdquant.clock import is_quantized
from tdquant.errors import CalibrationError, ConversionError
from tdquant.families import family_of
from tdquant.layers import replace_module
from tdquant.layers.balance import BalancedLayer
from tdquant.numerics.fake_quantize import FLOOR, fake_quantize
from tdquant.numerics.grid import Grid
from tdquant.quantizers.weight import mse_step
from tdquant.state import state_of
from tdquant.support.hooks import hooked
from tdquant.support.patterns import idle, matching
from tdquant.support.progress import track

ALPHAS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""What ``"search"`` tries beside no division."""

ROWS = 512
"""Rows of a layer's inputs that are kept to search with."""


class _Inputs:
    """What a layer sees: the largest magnitude of each channel, and an even choice of rows."""

    def __init__(self) -> None:
        self.largest: Tensor | None = None
        self.rows: list[Tensor] = []

    def add(self, x: Tensor, keep: int) -> None:
        rows = x.detach().float().reshape(-1, x.shape[-1])
        largest = rows.abs().amax(0)
        self.largest = largest if self.largest is None else self.largest.maximum(largest)
        if keep:
            self.rows.append(rows[:: max(len(rows) // keep, 1)][:keep].cpu())


def balance(
    model: nn.Module,
    batches: Iterable[Call],
    *,
    alpha: float | Literal["search"] = 0.5,
    layers: Iterable[str] | None = None,
    weights: int = 8,
    activations: int = 8,
    progress: bool = True,
) -> nn.Module:
    """Divides the input channels of linear layers of a float model, in place. ``quantize`` comes
    after it and finds plain linear layers behind the divisions.

    Arguments:
        model: A float model.
        batches: Calls of it, as for ``calibrate``.
        alpha: Share of the range that moves from inputs into weights, in [0, 1], or ``"search"``.
        layers: Glob patterns over paths; None takes every linear layer that a call reaches, except
            on the time path and at the edges.
        weights: Bits to search for.
        activations: Bits to search for.
        progress: Draw a bar.

    Returns:
        The model. ``model.tdq.balance`` is the alpha of every balanced layer by its path. A path
        leads to the same place as before; the plain layer is ``<path>.layer``.

    Raises:
        ConversionError: The model is quantized already, has no such layer, or alpha is out of
            range.
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
    chosen = _choose(model, layers)
    seen = _watch(model, chosen, batches, alpha == "search", progress)
    found: dict[str, float] = {}
    for path, inputs in track(seen.items(), "balancing", len(seen), progress):
        layer, largest = chosen[path], inputs.largest
        assert largest is not None
        best = (
            _search(layer, inputs, Grid.signed(weights, narrow=True), Grid.signed(activations))
            if alpha == "search"
            else float(alpha)
        )
        if best is not None:
            new = BalancedLayer.balanced(layer, factors(largest, layer.weight, best))
            replace_module(model, layer, new.train(layer.training))
            found[path] = best
    state_of(model).balance = found
    return model


def factors(largest: Tensor, weight: Tensor, alpha: float) -> Tensor:
    """``c`` ``(C,)``, geometric mean 1; a channel that is never used, or that no weight reads,
    keeps 1.

    Arguments:
        largest: ``max |x_j|``, ``(C,)``.
        weight: ``(out, C)``.
        alpha: Share of the range that moves.
    """
    columns = weight.detach().float().abs().amax(0)
    used = (largest > 0) & (columns > 0)
    log_c = alpha * largest.clamp(min=FLOOR).log() - (1 - alpha) * columns.clamp(min=FLOOR).log()
    mean = log_c[used].mean() if bool(used.any()) else log_c.new_zeros(())
    return torch.where(used, log_c - mean, torch.zeros_like(log_c)).clamp(-12, 12).exp()


def _choose(model: nn.Module, patterns: Iterable[str] | None) -> dict[str, nn.Linear]:
    family = family_of(model)
    # Edges and time path have other widths, and are told by their paths.
    left = () if patterns else (*family.first, *family.last, *family.time_path)
    wanted = ["*"] if patterns is None else list(patterns)
    inside = {id(part.layer) for part in model.modules() if isinstance(part, BalancedLayer)}
    found = {
        path: module
        for path, module in model.named_modules()
        if type(module) is nn.Linear
        and id(module) not in inside
        and matching(path, wanted)
        and not matching(path, left)
    }
    unknown = idle(wanted, found)
    if unknown:
        raise ConversionError(
            "patterns that match no linear layer: " + ", ".join(map(repr, unknown)),
            where="balance(layers=)",
            fix="globs over module paths, such as 'transformer_blocks.*.ff.*'",
        )
    return found


@torch.no_grad()
def _watch(
    model: nn.Module,
    layers: dict[str, nn.Linear],
    batches: Iterable[Call],
    keep: bool,
    progress: bool,
) -> dict[str, _Inputs]:
    """What every layer that calls reach got."""
    seen: dict[str, _Inputs] = {}

    def note(path: str, x: Tensor) -> None:
        seen.setdefault(path, _Inputs()).add(x, ROWS // 16 if keep else 0)

    hooks = [
        layer.register_forward_pre_hook(lambda m, args, path=path: note(path, args[0]))  # type: ignore[misc]
        for path, layer in layers.items()
    ]
    was_training, count = model.training, 0
    model.eval()
    try:
        with hooked(hooks):
            for call in track(batches, "watching inputs", show=progress):
                run(model, call)
                count += 1
    finally:
        model.train(was_training)
    if not count:
        raise CalibrationError("no batches", where="balance", fix="yield calls, such as (x, t)")
    bad = [p for p, s in seen.items() if s.largest is not None and not s.largest.isfinite().all()]
    if bad:
        raise CalibrationError(
            f"inputs of {len(bad)} layers are NaN or infinite", where=", ".join(bad[:5])
        )
    return seen


def _search(
    layer: nn.Linear, inputs: _Inputs, weight_grid: Grid, input_grid: Grid
) -> float | None:
    """The alpha with the least output error, or None for no division."""
    rows = torch.cat(inputs.rows)
    rows = rows[:: -(-len(rows) // ROWS)].to(layer.weight.device)
    weight, largest = layer.weight.detach().float(), inputs.largest
    assert largest is not None
    exact = rows @ weight.T

    def error(c: Tensor) -> float:
        x, w = rows / c, weight * c
        if not w.any():
            return 0.0
        # The step of the inputs that is least in error, as calibration would find it.
        step = mse_step(x, input_grid, per_channel=False) if x.any() else torch.ones(())
        x = fake_quantize(x, step, input_grid.low, input_grid.high)
        steps = mse_step(w, weight_grid, per_channel=True).unsqueeze(1)
        w = fake_quantize(w, steps, weight_grid.low, weight_grid.high)
        return float((x @ w.T - exact).square().mean())

    errors: dict[float | None, float] = {None: error(torch.ones_like(largest))}
    for alpha in ALPHAS:
        errors[alpha] = error(factors(largest, weight, alpha))
    return min(errors, key=errors.__getitem__)
