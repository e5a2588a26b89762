"""``freeze``: from a quantized model that can learn to one that only runs, with every scale a
table.

    scales over time -> TableScale over the training timesteps     WeightQuantizer -> FrozenWeight
    other scales     -> TableScale of one knot                     weight          -> its nearest
    grid points

The frozen fake-quantized model is the reference semantics: every backend and exporter is a
lowering of it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tdquant.clock import clock_of, time_tensor
from tdquant.errors import CalibrationError, FreezeError
from tdquant.layers import QuantLayer, quantized_layers
from tdquant.layers.correction import correction_of
from tdquant.numerics.fake_quantize import fake_quantize
from tdquant.numerics.grid import Grid
from tdquant.quantizers import (
    ActivationQuantizer,
    FrozenWeight,
    WeightQuantizer,
    activation_quantizers,
)
from tdquant.quantizers.starting import start_steps
from tdquant.scales import DynamicScale, PendingScale, Scale, TableScale
from tdquant.scales.base import floored, steps_at
from tdquant.scales.table import training_timesteps
from tdquant.state import seen_times
from tdquant.support.announce import announce
from tdquant.support.hooks import check_onloaded
from tdquant.support.restoring import with_gradients

M = TypeVar("M", bound=nn.Module)

_NOWHERE = torch.empty(0, dtype=torch.float32)


def is_frozen(model: nn.Module) -> bool:
    """Whether every quantizer of the model is in its frozen form."""
    return all(
        isinstance(q.scale, (TableScale, DynamicScale))
        and not any(p.requires_grad for p in q.parameters())
        for _, q in activation_quantizers(model)
    ) and not any(
        isinstance(layer.weight_quantizer, WeightQuantizer) for _, layer in quantized_layers(model)
    )


def check_calibrated(model: nn.Module, then: str) -> None:
    """Refuses a model some of whose activation scales are pending.

    Arguments:
        model: A quantized model.
        then: The call that wants them, for the error.

    Raises:
        CalibrationError: They are; the first are named.
    """
    pending = [
        name for name, q in activation_quantizers(model) if isinstance(q.scale, PendingScale)
    ]
    if pending:
        raise CalibrationError(
            f"{len(pending)} activation scales are not calibrated",
            where=", ".join(pending[:5]) + (", ..." if len(pending) > 5 else ""),
            fix=f"tdq.calibrate(model, batches) before {then}",
        )


@with_gradients
def freeze(model: M, timesteps: int | Iterable[float] | Tensor | None = None) -> M:
    """A frozen copy of a calibrated or trained model, with the same call.

    Arguments:
        model: A quantized model, every scale calibrated.
        timesteps: Times of the tables: an iterable of them, or a number T for ``0 .. T-1``. None
            takes every training timestep, or knots over a continuous range, even in time or, over
            noise levels that span more than a factor of 100, in their logarithm; between knots
            tables interpolate.

    Raises:
        CalibrationError: A scale is still pending; all such layers are named.
        FreezeError: The times are empty or not finite.
        ConversionError: The model is not quantized, or its weights are offloaded.
    """
    clock_of(model)
    check_onloaded(model, "tdq.freeze")
    check_calibrated(model, "tdq.freeze(model)")
    knots = _knots(timesteps)
    frozen = copy_model(model).eval().requires_grad_(False)
    with torch.no_grad():
        for _, layer in quantized_layers(frozen):
            quantizer = layer.weight_quantizer
            if isinstance(quantizer, WeightQuantizer):
                # A parameter of its own: another layer may share the live one.
                layer.weight = nn.Parameter(quantizer(layer.weight), requires_grad=False)
                step = floored(quantizer.step)
                layer.weight_quantizer = FrozenWeight(quantizer.grid, step, quantizer.groups)
        coverage: list[float] = []
        quantizers = [q for _, q in activation_quantizers(frozen)]
        known = _tables_of_batches(quantizers, knots)
        for q in quantizers:
            q.scale = known.get(q.scale) or frozen_scale(q.scale, q.grid, knots)
            if isinstance(q.scale, TableScale) and not q.scale.static:
                coverage += [float(q.scale.knots[0]), float(q.scale.knots[-1])]
    clock_of(frozen).seen = fitted_times(frozen)
    if coverage:
        span = clock_of(frozen).coverage = min(coverage), max(coverage)
        correction = correction_of(frozen)
        if correction is not None:  # one lookup finds rows for all
            correction.resample(training_timesteps(*span) if knots is None else knots)
    return announce(frozen)


def copy_model(model: M) -> M:
    """A deep copy of a quantized model that shares weights held as codes: they never change."""
    # The memo keeps every copy alive, so nobody may keep the memo.
    codes = [layer.codes for _, layer in quantized_layers(model) if "codes" in layer._parameters]
    return copy.deepcopy(model, {id(c): c for c in codes})


def fitted_times(frozen: nn.Module) -> tuple[float, float] | None:
    """Lowest and highest time that calibration of a frozen model's scales saw, static ones
    included; None where it is not known, or nothing was fitted.
    """
    scales = [quantizer.scale for _, quantizer in activation_quantizers(frozen)]
    return seen_times(frozen) if any(isinstance(s, TableScale) for s in scales) else None


def frozen_scale(scale: Scale, grid: Grid, knots: Tensor | None = None) -> Scale:
    """The frozen form of one scale; ``knots`` None takes the scale's own training timesteps."""
    if isinstance(scale, DynamicScale):
        return scale
    device = next(scale.parameters()).device
    if not scale.timed:
        one = torch.zeros(1, device=device, dtype=torch.float32)
        return TableScale(one, scale(None, _NOWHERE, grid).reshape(1)).requires_grad_(False)
    static = isinstance(scale, TableScale) and scale.static
    times = scale.training_times() if knots is None or static else knots
    if times is None:
        raise FreezeError(
            f"no training timesteps are known for a {scale.kind} scale",
            why="its class has no training_times",
            fix="tdq.freeze(model, timesteps=1000)",
        )
    times = times.to(device)
    was_training, scale = scale.training, scale.eval()
    table = scale(times, _NOWHERE, grid).reshape(-1)
    scale.train(was_training)
    return TableScale(times, table).requires_grad_(False)


@torch.no_grad()
def requantize(layer: QuantLayer) -> None:
    """Puts the weight of a frozen layer, changed from outside, back on a grid of the same codes,
    by steps that fit it, in place.
    """
    old, weight = layer.weight_quantizer, layer.weight
    assert isinstance(old, FrozenWeight)
    step, groups = start_steps(weight, old.grid, old.step.ndim > 0, old.group)
    new = FrozenWeight(old.grid, floored(step), groups)
    rounded = fake_quantize(
        weight, new.scale(weight), old.grid.low, old.grid.high, new.spread(weight)
    )
    layer.weight = nn.Parameter(rounded, requires_grad=False)
    layer.weight_quantizer = new


def _tables_of_batches(
    quantizers: list[ActivationQuantizer], knots: Tensor | None
) -> dict[Scale, TableScale]:
    """The tables of scales that are computed together, as they are in a call. Tables are left
    out: they interpolate by themselves.
    """
    groups: dict[tuple[Any, ...], list[ActivationQuantizer]] = {}
    for q in quantizers:
        if isinstance(q.scale, TableScale) or not hasattr(q.scale, "batched_steps"):
            continue
        times = q.scale.training_times() if knots is None else knots
        if times is not None:
            groups.setdefault((type(q.scale), *times.tolist()), []).append(q)
    tables: dict[Scale, TableScale] = {}
    for (_, *places), group in groups.items():
        scales, times = [q.scale for q in group], torch.tensor(places, dtype=torch.float32)
        found = steps_at(scales, times, [q.grid for q in group])
        for scale, table in zip(scales, found, strict=True):
            tables[scale] = TableScale(times.to(table.device), table).requires_grad_(False)
    return tables


def _knots(timesteps: int | Iterable[float] | Tensor | None) -> Tensor | None:
    if timesteps is None:
        return None
    if isinstance(timesteps, int):
        timesteps = range(timesteps)
    values = time_tensor(timesteps if isinstance(timesteps, Tensor) else list(timesteps)).float()
    if not values.numel() or not values.isfinite().all():
        raise FreezeError(
            "no usable timesteps",
            where="freeze(timesteps=)",
            fix="a number of them, or finite times",
        )
    return values.flatten().unique()
