r"""``correct``: compensates the systematic part of quantization error in a denoiser's output.

With y the float model's prediction and z the quantized one's for the same input,

    z = (1 + k(t)) y + d,    E[d y] = 0,    g(t) = <y, y> / max(<z, y>, min(<z, z>, <y, y>))

over all samples at timestep t. Near the image, x holds little noise, coarse codes lose some of it,
and a model trained to the least squared error then predicts less, as it should for that error:
k is negative. But noise that is not predicted is not removed; it stays in the sample, and in the
next input in addition to the noise of the timestep. For such a model <z, z> <= <z, y>, and
g = 1 / (1 + k) makes the prediction unbiased. Its squared error is a little larger, the samples'
distance to the data smaller. Rounding that no training has seen adds as much as it takes: where z
has the energy of y in spite of k, multiplying would multiply what was added, and the gain is 1.

References:
    He et al., PTQD: Accurate Post-Training Quantization for Diffusion Models, 2023
    (https://arxiv.org/abs/2305.10657).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.calls.call import Call, called, values
from tdquant.clock import Clock, clock_of
from tdquant.errors import CalibrationError, FreezeError
from tdquant.freezing import copy_model, is_frozen
from tdquant.layers.gain import OutputGain, gain_of, prediction, values_of
from tdquant.numerics.fake_quantize import expand_scale
from tdquant.scales import TableScale
from tdquant.scales.table import training_timesteps
from tdquant.state import note
from tdquant.support.announce import announce
from tdquant.support.progress import track
from tdquant.support.restoring import with_gradients

LIMIT = 2.0
"""Largest gain, and one over the least. Where less than half of the prediction is left, more than
a gain is wrong, and near the image the rest of the noise matters little.
"""
KNOTS = 256
"""Most knots; with more times in the calls, neighbours are pooled."""


@with_gradients
@torch.no_grad()
def correct(
    frozen: nn.Module,
    teacher: Callable[..., Any],
    calls: Iterable[Call],
    *,
    rounds: int = 2,
    progress: bool = True,
) -> nn.Module:
    """Returns a copy of a frozen model with a gain over time behind its output, which compensates
    what its predictions have lost against those of the float model. Of several outputs the first,
    or ``.sample``, is the prediction.

    Arguments:
        frozen: A model that ``freeze`` or ``load`` returned. A gain that it has is fitted anew.
        teacher: The float model, with the same call.
        calls: Calls ``(x, t)``, best those of the quantized model's own samples:
            ``tdq.trajectories(frozen, scheduler, 32, shape)``. ``frozen`` has the gain found in
            one round during the next, so that trajectories follow it.
        rounds: Passes over the calls; one over an iterator.
        progress: Draw a bar.

    Returns:
        The corrected model; ``frozen`` is unchanged. Saving, compiling and exporting keep the
        gain, and the history of the model records it.

    Raises:
        FreezeError: The model is not frozen: what changes weights or scales comes first.
        CalibrationError: No calls, or predictions that are not finite or not one tensor.
    """
    clock = clock_of(frozen)
    if not is_frozen(frozen):
        raise FreezeError(
            "only a frozen model can be corrected",
            why="the gain is fitted to its final weights and scales",
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
                fit.add(call)
            knots, gains = fit.solve()
            _install(frozen, clock, knots, gains, fit.channels)
        corrected = copy_model(frozen)
    note(corrected, "correct", gain=[float(gains.min()), float(gains.max())])
    return announce(corrected)


@contextlib.contextmanager
def _gain_restored(frozen: nn.Module) -> Iterator[None]:
    """Restores the gain behind the model's output."""
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
        self.rows: list[Tensor] = []

    def add(self, call: Call) -> None:
        """Adds one call: 1, t, <y, y>, <z, y> and <z, z> of every sample."""
        z, y = (_predicted(model, call) for model in (self.frozen, self.teacher))
        times = self.clock.last.detach().float().cpu().reshape(-1).expand(len(z)).double()
        # Half of the channels are variances where there are twice as many as in x.
        x = next((v for v in values(call) if isinstance(v, Tensor) and v.ndim > 1), z)
        own = z.shape[1]
        if own == 2 * x.shape[1]:
            own = self.channels = x.shape[1]
        gain = gain_of(self.frozen)
        if gain is not None:
            z = z / expand_scale(values_of(gain.scale, self.clock.last), z)
        z, y = z[:, :own].flatten(1).double(), y[:, :own].flatten(1).double()
        products = [(y * y).sum(1).cpu(), (z * y).sum(1).cpu(), (z * z).sum(1).cpu()]
        row = torch.stack([torch.ones_like(times), times, *products], dim=1)
        if not bool(row.isfinite().all()):
            raise CalibrationError(
                "a prediction that is not finite",
                where=f"correct, timestep {float(times[0]):g}",
                fix="look for NaN or infinite weights or activations in the two models",
            )
        self.rows.append(row)

    def solve(self) -> tuple[Tensor, Tensor]:
        """Knots, and gains at them."""
        if not self.rows:
            raise CalibrationError("no calls", where="correct", fix="tdq.trajectories(...)")
        rows = torch.cat(self.rows)
        known, place = rows[:, 1].unique(return_inverse=True)
        if len(known) > KNOTS:
            place = place * KNOTS // len(known)
        sums = torch.zeros(int(place.max()) + 1, 5).double().index_add_(0, place, rows)
        count, total, yy, zy, zz = sums.unbind(1)
        kept = zy.maximum(zz.minimum(yy)) / yy.clamp(min=1e-300)
        return total / count, 1 / kept.clamp(1 / LIMIT, LIMIT)


def _predicted(model: Callable[..., Any], call: Call) -> Tensor:
    """What a gain multiplies of the model's output, in float32."""
    output = called(model, call)
    found = prediction(output)
    if not isinstance(found, Tensor):
        raise CalibrationError(
            f"an output of type {type(output).__name__}",
            where=f"correct, {type(model).__name__}",
            why="the gain multiplies one tensor: the output, the first of a tuple, or .sample",
        )
    return found.float()


def _install(
    frozen: nn.Module, clock: Clock, knots: Tensor, gains: Tensor, channels: int | None
) -> None:
    """Installs the gain, over all timesteps of the model's own tables."""
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
