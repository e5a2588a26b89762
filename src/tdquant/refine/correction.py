r"""``correct``: takes back what quantization systematically takes off a denoiser's prediction.

With y the float model's prediction and z the quantized one's for the same input,

    z = (1 + k(t)) y + d,    E[d y] = 0,    g(t) = <y, y> / max(<z, y>, min(<z, z>, <y, y>))

over all samples at timestep t. Near the image, x holds little noise, coarse codes lose some of it,
and a model that is trained to the least squared error then predicts less, as it should for that
error alone: k is negative. But noise that is not predicted is not removed; it stays in the sample,
and in the next input beside the noise that the timestep stands for. For such a model
<z, z> <= <z, y>, and g = 1 / (1 + k) makes the prediction unbiased. Its squared error is a little
larger, the samples' distance to the data smaller. Rounding that no training has seen adds as much
as it takes: where z has the energy of y in spite of k, multiplying would multiply what was added,
and the gain stays at 1.

References:
    He et al., PTQD: Accurate Post-Training Quantization for Diffusion Models, 2023
    (https://arxiv.org/abs/2305.10657).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.calls.call import Call, run
from tdquant.clock import Clock, clock_of
from tdquant.errors import CalibrationError, FreezeError
from tdquant.freezing import copy_model, is_frozen
from tdquant.layers.gain import OutputGain, gain_of, values_of
from tdquant.numerics.fake_quantize import expand_scale
from tdquant.scales import TableScale
from tdquant.scales.table import training_timesteps
from tdquant.state import note
from tdquant.support.announce import announce
from tdquant.support.progress import track

LIMIT = 2.0
"""The largest gain, and one over the least: where less than half of the prediction is left, more
than a gain is wrong, and near the image the last of the noise is not worth multiplying for.
"""
KNOTS = 256
"""Knots at most: where calls have more times than that, neighbours are taken together."""


@torch.no_grad()
def correct(
    frozen: nn.Module,
    teacher: Callable[..., Any],
    calls: Iterable[Call],
    *,
    rounds: int = 2,
    progress: bool = True,
) -> nn.Module:
    """Returns a copy of a frozen model with a gain over time behind its output, which takes back
    what its predictions have lost against the float model's.

    Arguments:
        frozen: What ``freeze`` or ``load`` returned. A gain that it has already is fitted anew.
        teacher: The float model, with the same call.
        calls: Calls ``(x, t)``, best those of the quantized model's own samples:
            ``tdq.trajectories(frozen, scheduler, 32, shape)``. They are gone through ``rounds``
            times; the gain found in one round is on ``frozen`` during the next, so that
            trajectories follow it.
        rounds: Times to go through the calls; an iterator is gone through once.
        progress: Draw a bar.

    Returns:
        The corrected model; ``frozen`` is as it was. Saving, compiling and exporting take the gain
        along, and the history of the model tells of it.

    Raises:
        FreezeError: The model is not frozen: what changes weights or scales comes first.
        CalibrationError: No calls, or predictions that are not finite.
    """
    clock = clock_of(frozen)
    if not is_frozen(frozen):
        raise FreezeError(
            "only a frozen model can be corrected",
            why="the gain is of the weights and scales as they are",
            fix="tdq.correct(tdq.freeze(model), teacher, calls)",
        )
    if rounds < 1:
        raise CalibrationError(f"{rounds=}", where="correct", fix="at least 1")
    if iter(calls) is calls:
        rounds = 1
    with _gain_restored(frozen):
        for i in range(rounds):
            label = "correcting" if rounds == 1 else f"correcting, {i + 1} of {rounds}"
            fit = _Fit(frozen, teacher, clock)
            for call in track(calls, label, show=progress):
                fit.see(call)
            knots, gains, channels = fit.solve()
            _put(frozen, clock, knots, gains, channels)
        corrected = copy_model(frozen)
    note(corrected, "correct", gain=[float(gains.min()), float(gains.max())])
    return announce(corrected)


@contextlib.contextmanager
def _gain_restored(frozen: nn.Module) -> Iterator[None]:
    """Takes off what the rounds put behind the model's output."""
    before = gain_of(frozen)
    own = None if before is None else (before.scale, before.channels)
    try:
        yield
    finally:
        gain = gain_of(frozen)
        if gain is not None and own is None:
            gain.detach(frozen)
        elif gain is not None and own is not None:
            gain.scale, gain.channels = own


class _Fit:
    """Sums over the calls of one round."""

    def __init__(self, frozen: nn.Module, teacher: Any, clock: Clock) -> None:
        self.frozen, self.teacher, self.clock = frozen, teacher, clock
        self.channels: int | None = None
        self.times: list[Tensor] = []
        self.products: list[Tensor] = []

    def see(self, call: Call) -> None:
        """Adds one call."""
        z, y = run(self.frozen, call).float(), run(self.teacher, call).float()  # type: ignore[arg-type]
        times = self.clock.last.detach().float().cpu().reshape(-1).expand(len(z))
        gain = gain_of(self.frozen)
        own = _predicted(call, z)
        if own < z.shape[1]:
            self.channels = own
        if gain is not None:
            z = z / expand_scale(values_of(gain.scale, self.clock.last), z)
        z, y = z[:, :own].flatten(1).double(), y[:, :own].flatten(1).double()
        pairs = torch.stack([(y * y).sum(1), (z * y).sum(1), (z * z).sum(1)], dim=1).cpu()
        if not bool(pairs.isfinite().all()):
            raise CalibrationError(
                "a prediction that is not finite",
                where=f"correct, timestep {float(times[0]):g}",
                fix="look for NaN or infinite weights or activations in the two models",
            )
        self.times.append(times)
        self.products.append(pairs)

    def solve(self) -> tuple[Tensor, Tensor, int | None]:
        """Knots, gains at them, and how many channels they are for."""
        if not self.times:
            raise CalibrationError("no calls", where="correct", fix="tdq.trajectories(...)")
        times, products = torch.cat(self.times).double(), torch.cat(self.products)
        known, place = times.unique(return_inverse=True)
        if len(known) > KNOTS:
            place = place * KNOTS // len(known)
        bins = int(place.max()) + 1
        each = torch.stack([torch.ones_like(times), times, *products.unbind(1)], dim=1)
        sums = torch.zeros(bins, 5).double().index_add_(0, place, each)
        count, total, yy, zy, zz = sums.unbind(1)
        kept = zy.maximum(zz.minimum(yy)) / yy.clamp(min=1e-300)
        return total / count, 1 / kept.clamp(1 / LIMIT, LIMIT), self.channels


def _predicted(call: Call, z: Tensor) -> int:
    """Channels of the output that are a prediction: half of them where there are variances."""
    values = call.values() if isinstance(call, Mapping) else call
    x = next((v for v in values if isinstance(v, Tensor) and v.ndim > 1), z)
    return x.shape[1] if z.shape[1] == 2 * x.shape[1] else z.shape[1]


def _put(frozen: nn.Module, clock: Clock, knots: Tensor, gains: Tensor, channels: Any) -> None:
    """Gives the model the gain, over all timesteps that its own tables know."""
    scale = TableScale(knots, gains)
    if clock.coverage is not None:
        knots = training_timesteps(*clock.coverage)
        scale = TableScale(knots, values_of(scale, knots).expand(len(knots)))
    scale = scale.requires_grad_(False).to(next(frozen.parameters()).device)
    gain = gain_of(frozen)
    if gain is None:
        OutputGain(scale, clock, channels).attach(frozen)
    else:
        gain.scale, gain.channels = scale, channels
