r"""Initial activation scales as in the published code, from calls of the float model.

    s = mean over calls of (mean(x) + k sigma(x)) / qmax,    k = 3, and 16 after SiLU

The published calls are one batch of training images under 100 draws of the timestep. Where a
negative mean outweighs sigma there would be no step, and its absolute value is taken.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import torch
from torch import Tensor, nn

from tdquant.calibration.observe import refuse_layers
from tdquant.calibration.report import Calibration, LayerChoice
from tdquant.calibration.time_histograms import TimeRange
from tdquant.calls.call import Call, run
from tdquant.calls.observing import observing
from tdquant.clock import clock_of
from tdquant.flow.settle import settle_roles
from tdquant.quantizers import ActivationQuantizer, OffsetQuantizer, activation_quantizers
from tdquant.scales import PublishedScale, Scale, StaticScale
from tdquant.state import note
from tdquant.support.devices import device_at
from tdquant.support.progress import track
from tdquant.support.thread_modes import DrawingFrom

SIGMAS, SIGMAS_AFTER_SILU = 3.0, 16.0


@torch.no_grad()
def start_as_published(
    model: nn.Module,
    batches: Iterable[Call],
    *,
    time_range: tuple[float, float] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Calibration:
    """Initializes the scales of a model that ``Recipe.published`` quantized.

    Arguments:
        model: The quantized model.
        batches: Calls, tuples of positional or dictionaries of keyword arguments.
        time_range: First and last timestep; those that ``calibrate`` takes if None.
        seed: Seed of the networks of temporal scales.
        progress: Draw a bar.

    Raises:
        CalibrationError: No batches, a layer that no call reached, or activations that are NaN,
            infinite or zero throughout. The model is then left as it was.
    """
    quantizers = dict(activation_quantizers(model))
    if not quantizers:
        return Calibration([])
    stream = iter(track(batches, "starting scales", show=progress))
    first = settle_roles(model, stream)
    found: dict[str, list[float]] = {name: [] for name in quantizers}
    times, clock = TimeRange(), clock_of(model)

    def look(name: str, x: Tensor, timestep: Tensor) -> Tensor:
        found[name].append(_step(x, quantizers[name]))
        return x

    with observing(model, quantizers, look):
        for call in chain(first, stream):
            run(model, call)
            times.update(clock.last)
    steps = {name: sum(each) / max(len(each), 1) for name, each in found.items()}
    refuse_layers(
        [name for name, step in steps.items() if not 0 < step < float("inf")],
        "{} activation scales cannot start",
        "calls of the float model on training images, at least one",
        "no call reached them, or the activations are NaN, infinite or all zero",
    )
    span, layers, nan = time_range or times.resolve(), [], float("nan")
    with DrawingFrom(torch.Generator().manual_seed(seed)):
        for name, q in quantizers.items():
            published = q.wanted == PublishedScale.kind
            scale: Scale = (
                PublishedScale(steps[name], span, **q.options)
                if published
                else StaticScale(steps[name])
            )
            q.scale = scale.to(device_at(model, name)).train(q.training)
            layers.append(LayerChoice(name, scale.kind, "published", nan, nan, 1.0, 0.0))
    note(model, "calibrate", calls=len(next(iter(found.values()))), start="published")
    return Calibration(layers)


def _step(x: Tensor, quantizer: ActivationQuantizer) -> float:
    sigmas = SIGMAS_AFTER_SILU if isinstance(quantizer, OffsetQuantizer) else SIGMAS
    x = x.float()
    mean, sigma = x.mean(), x.std() if x.numel() > 1 else x.new_zeros(())
    step = float((mean + sigmas * sigma) / quantizer.grid.high)
    return step if step > 0 else float((mean.abs() + sigmas * sigma) / quantizer.grid.high)
