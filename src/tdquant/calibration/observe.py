"""``observe``: runs the float model over the batches once and keeps what calibration needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.calibration.channels import ChannelRanges
from tdquant.calibration.concatenations import (
    Concatenation,
    ConcatenationMode,
    PartObserver,
    input_dimension,
)
from tdquant.calibration.time_histograms import TimeHistograms, TimeRange
from tdquant.calls.call import Call, Reservoir, run
from tdquant.calls.finding import RolloutFinder
from tdquant.calls.observing import observing, watching
from tdquant.calls.rollout import Rollout
from tdquant.clock import clock_of
from tdquant.errors import CalibrationError
from tdquant.families.roles import Roles, quantizable_layers
from tdquant.flow.settle import apply_roles, settle_roles
from tdquant.layers.base import INPUT
from tdquant.quantizers import activation_quantizers
from tdquant.state import state_of
from tdquant.support.progress import track
from tdquant.support.restoring import changes_model

_UNREACHED = "no call reached it"
_ZERO = "it saw nothing but zeros"


@dataclass(frozen=True)
class Observations:
    """Statistics of the float model's activations.

    Attributes:
        seen: Path of the quantizer -> histograms over time; of parts of concatenations, under the
            paths that they would have in a split layer.
        times: The time axis.
        calls: Some of the calls, cut to a few samples each, for judging.
        parts: Path of a quantizer whose input is a concatenation -> its parts.
        count: Calls that were seen.
        made_by: Origin of the calls, if known.
        roles: Roles of the model's layers.
        rollouts: Trajectories found in the calls.
        macs: Path of a layer that can be quantized, whether it is or not -> multiply-accumulates
            for one sample.
        channels: Path of the quantizer of a layer's input -> extremes of its channels; of parts as
            in ``seen``.
    """

    seen: dict[str, TimeHistograms]
    times: TimeRange
    calls: list[Call]
    parts: dict[str, Concatenation] = field(default_factory=dict)
    count: int = 0
    made_by: Mapping[str, Any] = field(default_factory=dict)
    roles: Roles | None = None
    rollouts: list[Rollout] = field(default_factory=list)
    macs: dict[str, int] = field(default_factory=dict)
    channels: dict[str, ChannelRanges] = field(default_factory=dict)


@changes_model
def observe(
    model: nn.Module,
    batches: Iterable[Call],
    *,
    calls: int = 64,
    samples: int = 8,
    seed: int = 0,
    progress: bool = True,
) -> Observations:
    """Runs a quantized model in float over the batches once, in bounded memory.

    Arguments:
        model: A model that ``quantize`` returned. The first call settles the roles of its layers,
            see ``tdquant.flow``, and layers that no call reaches become float layers.
        batches: Calls, tuples of positional or dictionaries of keyword arguments.
        calls: Calls to keep for judging.
        samples: Samples to keep of each.
        seed: Seed of the choice of calls.
        progress: Draw a bar.

    Raises:
        CalibrationError: No batches, none that reached a layer, or NaN or infinite activations.
            The model is then left as it was.
        ConversionError: The model is not quantized.
    """
    clock, stream = clock_of(model), iter(track(batches, "observing", show=progress))
    first = settle_roles(model, stream)
    quantizers = dict(activation_quantizers(model))
    seen = {name: TimeHistograms() for name in quantizers}
    times, mode = TimeRange(), ConcatenationMode()
    reservoir = Reservoir(calls, samples, seed)
    observer = PartObserver(model, quantizers, mode)
    dimensions = {name: input_dimension(model, name, q) for name, q in quantizers.items()}
    channels = {name: ChannelRanges(d) for name, d in dimensions.items() if d is not None}

    def look(name: str, x: Tensor, timestep: Tensor) -> Tensor:
        try:
            seen[name].update(x, timestep, quantizers[name].batch)
            observer.update(name, x, timestep, quantizers[name].batch)
            if name in channels:
                channels[name].update(x, timestep, quantizers[name].batch)
        except CalibrationError as error:
            raise CalibrationError(error.what, where=name, fix=error.fix) from error
        return x

    finder, macs = RolloutFinder(), dict[str, int]()

    def count(path: str, layer: nn.Module, x: Tensor, y: Tensor) -> None:
        if not reservoir.seen:
            weight: Any = layer.weight
            each = weight[0].numel() if weight.ndim > 1 else 1
            macs[path] = macs.get(path, 0) + y[0].numel() * each

    with observing(model, quantizers, look), watching(quantizable_layers(model), count):
        for call in chain(first, stream):
            with torch.no_grad(), mode:
                output = run(model, call)
            mode.forget()
            times.update(clock.last)
            reservoir.offer(call)
            finder.offer(call, output, clock.last)
    if not reservoir.seen:
        raise CalibrationError(
            "there are no batches", where="calibrate", fix="an iterable of (x, t), at least one"
        )
    left_out = {n: _UNREACHED for n, s in seen.items() if not s.by_time}
    left_out |= {n: _ZERO for n, s in seen.items() if s.by_time and s.all_zero}
    if left_out and len(left_out) == len(seen):
        refuse_layers(
            list(left_out),
            "no batch gave any of {} activations a value",
            "batches from real trajectories, whose calls run the layers",
        )
    refuse_layers(
        [name for name in left_out if not name.endswith(INPUT)],
        "{} operands of attention have no value in any batch",
        "batches that run every attention block, or Recipe(attention=32)",
    )
    parts, in_parts = observer.found()
    roles = state_of(model).roles
    if left_out:
        roles = replace(roles, left_out={**roles.left_out, **left_out})
        apply_roles(model, roles)
    for name, concatenation in parts.items():
        pieces = zip(concatenation.names(name), concatenation.spans(), strict=True)
        channels |= {piece: channels[name].part(*span) for piece, span in pieces}
    return Observations(
        {name: s for name, s in (seen | in_parts).items() if name not in left_out},
        times,
        reservoir.calls,
        {name: part for name, part in parts.items() if name not in left_out},
        reservoir.seen,
        getattr(batches, "made_by", {}),
        roles,
        finder.found(),
        macs,
        channels,
    )


def observed(
    model: nn.Module, batches: Iterable[Call] | Observations, seed: int, progress: bool
) -> Observations:
    """Observations of a model: the given ones, if they are of its layers, or new ones.

    Raises:
        CalibrationError: As ``observe``; or the given ones are of other layers.
    """
    if not isinstance(batches, Observations):
        batches = observe(model, batches, seed=seed, progress=progress)
    elif state_of(model).roles is None and batches.roles is not None:
        apply_roles(model, batches.roles)
    refuse_layers(
        [name for name, _ in activation_quantizers(model) if name not in batches.seen],
        "{} activations are not in the observations",
        "observe a model with the same layers quantized",
    )
    return batches


def refuse_layers(names: list[str], what: str, fix: str, why: str = "") -> None:
    """Raises CalibrationError, which shows the first five names, unless there are none."""
    if names:
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise CalibrationError(what.format(len(names)), where=shown, why=why, fix=fix)
