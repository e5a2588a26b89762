r"""Judging scales by what they do at the model's output, for every candidate of every layer at
once.

Quantizing one activation x changes the output y by about J dx, with J the Jacobian of y. For a
random normal projection r of the output,

    E_r[(r^T J dx)^2] = |J dx|^2

and ``g = J^T r`` comes for all layers from one backward pass. So one forward and one backward of
the float model per call, and then elementwise work, measure all candidates; local squared error
does not tell clipping, whose errors agree in sign and add up, from rounding, whose errors cancel.
This does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tdquant.calibrate.calls import Call, run
from tdquant.calibrate.candidates import Candidate
from tdquant.calibrate.observers import observing
from tdquant.errors import CalibrationError
from tdquant.fakequant import expand_scale, fake_quantize
from tdquant.grid import Grid
from tdquant.quantizers import ActivationQuantizer


@dataclass(frozen=True)
class Judgement:
    """Output errors by layer and candidate.

    Attributes:
        times: Time of every sample that was judged, ``(S,)``.
        errors: path -> squared output error per element that each of its C candidates causes
            alone, ``(S, C)``.
    """

    times: Tensor
    errors: dict[str, Tensor]

    def mean(self, name: str) -> Tensor:
        """Mean error of each candidate of a layer, ``(C,)``."""
        return self.errors[name].mean(0)


def judge(
    model: nn.Module,
    quantizers: dict[str, ActivationQuantizer],
    grids: dict[str, Grid],
    candidates: dict[str, list[Candidate]],
    calls: Iterator[Call],
    seed: int = 0,
) -> Judgement:
    """Squared output error that each candidate of each layer causes alone.

    Arguments:
        model: The quantized model; it runs in float.
        quantizers: Its activation quantizers by path.
        grids: Codes by path.
        candidates: Curves by path.
        calls: Calls of the model.
        seed: Seed of the projections.

    Raises:
        CalibrationError: There are no calls.
    """
    times: list[Tensor] = []
    errors: dict[str, list[Tensor]] = {name: [] for name in quantizers}
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def look(name: str, x: Tensor, timestep: Tensor) -> Tensor:
        if not x.requires_grad:
            x = x.detach().requires_grad_()
        seen.setdefault(name, []).append((x, timestep))
        return x

    with observing(model, quantizers, look), torch.enable_grad():
        for number, call in enumerate(calls):
            seen.clear()
            y = run(model, call)
            rng = torch.Generator().manual_seed(seed * 1_000_003 + number)
            r = torch.randn(y.shape, generator=rng).to(y.device)
            # A quantizer that one call reaches several times counts with the sum of its effects.
            flat = [(name, x, t) for name, pairs in seen.items() for x, t in pairs]
            gradients = torch.autograd.grad(
                (y.float() * r).sum(), [x for _, x, _ in flat], allow_unused=True
            )
            total = {name: torch.zeros(len(candidates[name]), len(y)) for name in quantizers}
            with torch.no_grad():
                for (name, x, t), g in zip(flat, gradients, strict=True):
                    if g is not None:
                        total[name] += _effects(
                            x.detach(), g, t, grids[name], candidates[name], len(y)
                        )
            for name, effect in total.items():
                errors[name].append(effect.square().T / max(y[0].numel(), 1))
            times.append(flat[0][2].detach().float().cpu().expand(len(y)))
    if not times:
        raise CalibrationError("no calls to judge by", where="batches")
    return Judgement(torch.cat(times), {name: torch.cat(rows) for name, rows in errors.items()})


def _effects(
    x: Tensor, g: Tensor, timestep: Tensor, grid: Grid, candidates: list[Candidate], batch: int
) -> Tensor:
    """``g . (x_hat - x)`` of every candidate and sample, ``(C, batch)``."""
    out = []
    for candidate in candidates:
        curve = candidate.curve.to(x.device)
        step = expand_scale(curve(timestep, x, grid), x)
        change = fake_quantize(x, step, grid.low, grid.high).sub_(x).mul_(g)
        out.append(change.reshape(batch, -1).sum(1).float().cpu())
    return torch.stack(out)
