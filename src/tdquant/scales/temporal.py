r"""TDQ's temporal scale: a small network from the timestep to the step.

    s(t) = softplus(MLP(enc(t'))) + floor

with enc the Fourier features of ``tdquant.scales.encodings`` and ``t' = (t - t_low) * 999 /
(t_high - t_low)``: time normalised to the model's own range, or the sigmas of a flow model, all in
[0, 1], would feed the network almost nothing. Noise levels over decades are normalised by their
logarithm, or those below 0.08 of 0.002 .. 80 would be one time to it. The last layer starts small
and its bias at the inverse softplus of the first step, so that training starts from a calibrated
static scale.

References:
    So et al., Temporal Dynamic Quantization for Diffusion Models, 2023
    (https://arxiv.org/abs/2306.02316), section 4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tdquant.errors import RecipeError
from tdquant.numerics.fake_quantize import FLOOR
from tdquant.numerics.grid import Grid
from tdquant.scales.base import Scale, check_step, inverse_softplus
from tdquant.scales.curves import Curves
from tdquant.scales.encodings import ENCODINGS, NOMINAL, encoded_width
from tdquant.scales.fit import fit
from tdquant.scales.table import training_timesteps, wide_range
from tdquant.support.hooks import onloaded
from tdquant.support.thread_modes import DrawingFrom


def normalised(t: Tensor, time_range: Tensor, log_time: bool = False) -> Tensor:
    """Times t, or their logarithm, mapped from the range ``(*, 2)`` of the model to ``0 ..
    NOMINAL``.
    """
    low, high = time_range.unbind(-1)
    if log_time:
        return (t.maximum(low) / low).log() * (NOMINAL / (high / low).log())
    return (t - low) * (NOMINAL / (high - low))


class TemporalScale(Scale):
    """The learned function s(t).

    Arguments:
        start: Step at every timestep before training.
        time_range: Lowest and highest time of the model: training indices, or continuous times.
        features: Width d of the encoding, even.
        hidden: Width of the hidden layers.
        depth: Number of linear layers; the published network has 4.
        dropout: Rate before the last layer in training. It makes training see other scales than
            sampling does, so it is off unless the published setting (0.2) is wanted.
        encoding: Encoding of time: ``"fourier"``, ``"time"`` or ``"log-snr"``, see ``ENCODINGS``.
            The last two are one number, whatever ``features`` says.
        log_time: Normalise the logarithm of time, for noise levels over decades.

    Raises:
        RecipeError: A width, depth, rate, range or encoding is invalid.
    """

    kind = "temporal"
    time_range: Tensor
    timed = True

    def __init__(
        self,
        start: float = 1.0,
        time_range: tuple[float, float] = (0.0, NOMINAL),
        features: int = 64,
        hidden: int = 64,
        depth: int = 4,
        dropout: float = 0.0,
        encoding: str = "fourier",
        log_time: bool = False,
    ) -> None:
        super().__init__()
        low, high = time_range
        if encoding not in ENCODINGS:
            raise RecipeError(
                f"{encoding=}", where="TemporalScale", fix=f"one of {', '.join(ENCODINGS)}"
            )
        if features < 2 or features % 2 or hidden < 1 or depth < 1 or not 0 <= dropout < 1:
            raise RecipeError(
                f"{features=}, {hidden=}, {depth=}, {dropout=}",
                where="TemporalScale",
                fix="even features, at least one hidden unit and layer, 0 <= dropout < 1",
            )
        if not low < high or (log_time and low <= 0):
            raise RecipeError(
                f"time range [{low}, {high}]",
                where="TemporalScale",
                fix="low < high, and 0 < low where log_time=True",
            )
        self.features, self.hidden, self.depth = features, hidden, depth
        self.dropout, self.encoding, self.log_time = dropout, encoding, log_time
        self.register_buffer("time_range", torch.tensor([low, high], dtype=torch.float32))
        widths = [encoded_width(encoding, features)] + [hidden] * (depth - 1)
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Linear(a, b, dtype=torch.float32), nn.ReLU()]
        if dropout:
            layers.append(nn.Dropout(dropout))
        layers.append(nn.Linear(widths[-1], 1, dtype=torch.float32))
        self.network = nn.Sequential(*layers)
        self.reset(start)

    @classmethod
    def from_curves(cls, curves: Curves, options: Mapping[str, Any]) -> list[TemporalScale]:
        """Creates networks and fits them to the curves, all at once: see ``scales.fit``."""
        options = {**options, **({"log_time": True} if wide_range(*curves.span) else {})}
        with DrawingFrom(torch.Generator().manual_seed(curves.seed)):
            scales = [cls(1.0, curves.span, **options) for _ in curves.steps]
        for scale, steps in zip(scales, curves.steps, strict=True):
            scale.reset(math.exp(float(steps.detach().float().log().mean())))
        if scales:
            features = scales[0].encode(curves.times.cpu()).cpu()
            layers = [scale.layers for scale in scales]
            fit(layers, features, curves.steps, curves.weights, seed=curves.seed)
        return scales

    def training_times(self) -> Tensor:
        low, high = self.time_range.tolist()
        return training_timesteps(low, high)

    def settings(self) -> dict[str, Any]:
        return {
            "features": self.features, "hidden": self.hidden, "depth": self.depth,
            "dropout": self.dropout, "encoding": self.encoding,
            **({"log_time": True} if self.log_time else {}),
        }  # fmt: skip

    @torch.no_grad()
    def reset(self, start: float) -> None:
        """Sets s(t) to almost ``start`` at every t; the hidden layers stay as they are."""
        last = self.network[-1]
        assert isinstance(last, nn.Linear)
        last.weight.mul_(1e-2)
        step = torch.tensor(check_step(start, "TemporalScale"), dtype=torch.float64)
        last.bias.fill_(float(inverse_softplus((step - FLOOR).clamp(min=FLOOR))))

    def encode(self, timestep: Tensor) -> Tensor:
        """Features ``(B, d)`` of times ``(B,)``."""
        t = timestep.to(self.time_range.device, torch.float32)
        return self.encode_normalised(normalised(t, self.time_range, self.log_time))

    def encode_normalised(self, t: Tensor) -> Tensor:
        """Features ``(*, d)`` of times ``(*)`` in 0 .. NOMINAL."""
        return ENCODINGS[self.encoding](t, self.features)

    @property
    def layers(self) -> list[nn.Linear]:
        """The linear layers of the network."""
        return [m for m in self.network if isinstance(m, nn.Linear)]

    def forward(self, timestep: Tensor | None, x: Tensor, grid: Grid) -> Tensor:
        assert timestep is not None
        with onloaded(self.network):
            return evaluate([self], timestep)[0]

    @staticmethod
    def batched_steps(
        scales: Sequence[TemporalScale], timestep: Tensor
    ) -> dict[nn.Module, Tensor]:
        """Computes the steps of all scales at once: see ``tdquant.clock``."""
        alike: dict[tuple[object, ...], list[TemporalScale]] = {}
        for scale in scales:
            # A weight that is sharded or offloaded is whole only in its own layer.
            last: Any = scale.network[-1]
            if last.weight.device.type != "meta" and not hasattr(last.weight, "device_mesh"):
                alike.setdefault(scale.architecture, []).append(scale)
        steps: dict[nn.Module, Tensor] = {}
        for group in alike.values():
            steps |= zip(group, evaluate(group, timestep).unbind(), strict=True)
        return steps

    @property
    def architecture(self) -> tuple[object, ...]:
        """Scales of equal architecture are computed together."""
        dropout = self.dropout if self.training else 0.0
        width = self.features, self.hidden, self.depth
        return *width, self.encoding, self.log_time, dropout, self.time_range.device


def evaluate(scales: Sequence[TemporalScale], timestep: Tensor) -> Tensor:
    """``s_l(t)`` of L scales of one architecture, in one batched product for each of its layers.

    In float64, rounded at the end: in float32 the last bit of s would depend on how many timesteps
    and scales are evaluated together, and a live model would round ties otherwise than its frozen
    table. The number of times is a multiple of 8 for the same reason: small products take other
    paths through the BLAS.

    Arguments:
        scales: The L scales.
        timestep: ``()`` or ``(B,)``.

    Returns:
        ``(L,)`` or ``(L, B)``, float32, differentiable in all parameters.
    """
    first = scales[0]
    device = first.time_range.device
    t = timestep.reshape(-1).to(device, torch.float32)
    ranges = torch.stack([scale.time_range for scale in scales]).unsqueeze(1)
    t = normalised(t, ranges, first.log_time)
    count = t.shape[1]
    t = F.pad(t, (0, -count % 8))
    with torch.autocast(device.type, enabled=False):
        # Times are columns: so gradients of weights come out in the layout of the weights.
        h = first.encode_normalised(t).double().mT
        parameters = zip(*(scale.layers for scale in scales), strict=True)
        for number, layers in enumerate(parameters, start=1):
            if number == first.depth and first.dropout:
                h = F.dropout(h, first.dropout, first.training)
            weight = torch.stack([layer.weight for layer in layers]).double()
            bias = torch.stack([layer.bias for layer in layers]).double()
            h = torch.baddbmm(bias.unsqueeze(2), weight, h)
            if number < first.depth:
                h = h.relu()
        s = F.softplus(h.squeeze(1)[:, :count]).float() + FLOOR
    return s.reshape(len(scales), *timestep.shape)
