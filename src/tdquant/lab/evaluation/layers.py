r"""The error of rounding the input of each layer of a frozen model, over calls of a trajectory.

For a layer with input x_k at call k, and with s the step sizes that it has,

    error        = mean_k |x_k - x_hat_k(s(t_k))|^2 / |x_k|^2
    error_static = min_s mean_k |x_k - x_hat_k(s)|^2 / |x_k|^2
    saved        = 1 - error / error_static

so ``saved`` is the share of the best single step size's error that step sizes over time save; it
is negative where they cost. The inputs are those of the frozen model, errors of the layers before
included.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.calls.call import Call, run
from tdquant.clock import clock_of
from tdquant.errors import DataError
from tdquant.files.documents import json_safe
from tdquant.layers import QuantLayer, quantized_layers
from tdquant.model_summary import layer_row
from tdquant.numerics.fake_quantize import fake_quantize
from tdquant.quantizers import ActivationQuantizer, OffsetQuantizer
from tdquant.scales import TableScale
from tdquant.support.hooks import hooked

FORMAT, VERSION = "tdquant-layers", 1
TIMES = 64
"""Largest number of times at which step sizes are listed."""

_VALUES = 4096
_STEPS = torch.logspace(-1, 1, 41, dtype=torch.float32)


class _Watch:
    """A forward pre-hook on one layer that accumulates errors of its input."""

    def __init__(self, path: str, layer: QuantLayer, clock: Any) -> None:
        self.path, self.layer, self.clock = path, layer, clock
        self.steps: dict[float, list[float]] = {}
        self.spread: list[tuple[float, float]] = []
        self.error = self.sampled = 0.0
        self.static = torch.zeros(len(_STEPS), dtype=torch.float32)
        self.random = torch.Generator().manual_seed(0)
        self.centre = 0.0

    @torch.no_grad()
    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0].detach()
        quantizer = self.layer.input_quantizer
        flat = x.float().reshape(-1)
        time = float(self.clock.read().float().mean())
        self.spread.append((time, float(flat.std(correction=0))))
        if not isinstance(quantizer, ActivationQuantizer):
            return
        step = float(quantizer.step(x).float().log().mean().exp())
        self.steps.setdefault(time, []).append(step)
        signal = float(flat.square().mean()) or 1.0
        rounded = quantizer(x).float().reshape(-1)
        self.error += float((flat - rounded).square().mean()) / signal
        self.centre = self.centre or _middle(quantizer, step)
        # Drawn at random: a stride that is a multiple of the row would see only one column.
        drawn = torch.arange(flat.numel())
        if len(drawn) > _VALUES:
            drawn = torch.randint(flat.numel(), (_VALUES,), generator=self.random)
        drawn = drawn.to(flat.device)
        some = flat[drawn]
        power = float(some.square().mean()) or 1.0
        self.sampled += float((some - rounded[drawn]).square().mean()) / power
        origin = quantizer.offset if isinstance(quantizer, OffsetQuantizer) else 0.0
        candidates = (self.centre * _STEPS).to(some.device)[:, None]
        grid = quantizer.grid
        tried = fake_quantize((some - origin)[None], candidates, grid.low, grid.high) + origin
        self.static += ((some - tried).square().mean(1) / power).cpu()

    def row(self, exact: Tensor | None) -> dict[str, Any]:
        """Its row of layers.json."""
        layer = layer_row(self.path, self.layer)
        calls = max(len(self.spread), 1)
        steps = [_geometric_mean(found) for _, found in sorted(self.steps.items())]
        error, static = self.error / calls, float(self.static.min())
        # Both on the drawn values, so that their ratio does not depend on which those are.
        ratio = static / self.sampled if self.sampled else 1.0
        return {
            "path": self.path,
            "type": layer.layer,
            "weight_bits": layer.weight_bits,
            "input_bits": layer.input_bits,
            "scale": layer.scale or "float",
            "zero_point": layer.zero_point,
            "steps": steps,
            "error": error,
            "error_static": error * ratio,
            "saved": 1 - 1 / ratio if ratio else 0.0,
            "weight_error": _weight_error(self.layer, exact),
            "range": max(steps) / min(steps) if steps else 1.0,
            "correlation": _pearson(self.spread),
            "parameters": self.layer.weight.numel(),
        }


def layer_report(
    model: nn.Module,
    calls: Iterable[Call],
    exact: nn.Module | None = None,
) -> dict[str, Any]:
    """The content of ``layers.json`` for a frozen model.

    Arguments:
        model: The frozen model, not compiled.
        calls: A few calls, such as trajectories of the float model; at most ``TIMES`` times.
        exact: The float model, for errors of weights.

    Raises:
        ConversionError: The model is not quantized.
        DataError: There are no calls, or too many times.
    """
    clock = clock_of(model)
    watches = [_Watch(path, layer, clock) for path, layer in quantized_layers(model)]
    times: set[float] = set()
    with torch.no_grad(), hooked(w.layer.register_forward_pre_hook(w) for w in watches):
        for call in calls:
            run(model, call)
            times.add(float(clock.last.float().mean()))
    if not 0 < len(times) <= TIMES:
        raise DataError(
            f"calls at {len(times)} times", where="layer_report", fix=f"1 to {TIMES} of them"
        )
    weights = dict(exact.named_parameters()) if exact is not None else {}
    rows = [w.row(weights.get(f"{w.path}.weight")) for w in watches if w.spread]
    spec = {"format": FORMAT, "version": VERSION, "times": sorted(times), "layers": rows}
    return json_safe(spec)


def _middle(quantizer: ActivationQuantizer, step: float) -> float:
    """The middle of a layer's step sizes, around which static ones are tried."""
    scale = quantizer.scale
    if not isinstance(scale, TableScale):
        return step
    return math.sqrt(float(scale.table.min()) * float(scale.table.max()))


def _weight_error(layer: QuantLayer, exact: Tensor | None) -> float | None:
    """Squared error of the weight over its squared norm; None if the float one is not known."""
    if exact is None or exact.shape != layer.weight.shape or not layer.weight.is_floating_point():
        return None
    exact = exact.detach().float().to(layer.weight.device)
    off = float((layer.weight.detach().float() - exact).square().sum())
    return off / (float(exact.square().sum()) or 1.0)


def _geometric_mean(values: list[float]) -> float:
    return math.exp(sum(math.log(v) for v in values) / len(values))


def _pearson(pairs: list[tuple[float, float]]) -> float:
    """Correlation of two variables, 0 if one of them is constant."""
    if len(pairs) < 2:
        return 0.0
    t, spread = torch.tensor(pairs, dtype=torch.float64).T
    t, spread = t - t.mean(), spread - spread.mean()
    norm = float(t.norm() * spread.norm())
    return float(t @ spread) / norm if norm > 1e-12 else 0.0
