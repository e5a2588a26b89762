r"""Judging scales by what they do at the model's output, for every candidate of every layer at
once.

Quantizing one activation x changes the output y by about J dx, with J the Jacobian of y. For a
random normal projection r of the output,

    E_r[(r^T J dx)^2] = |J dx|^2

and ``g = J^T r`` comes for all layers from one backward pass. So one forward and one backward of
the float model per call, and then elementwise work, measure all candidates; local squared error
does not tell clipping, whose errors agree in sign and add up, from rounding, whose errors cancel.
This does. Errors of different times are added by the weights of ``tdquant.calibration.timing``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tdquant.calibration.candidates import Candidate
from tdquant.calibration.concatenations import Concatenation
from tdquant.calibration.timing import TimeBins
from tdquant.calls.call import Call, run
from tdquant.calls.observing import observing
from tdquant.clock import clock_of
from tdquant.errors import CalibrationError
from tdquant.layers import QuantLayer
from tdquant.numerics.fake_quantize import expand_scale, fake_quantize
from tdquant.numerics.grid import Grid
from tdquant.quantizers import ActivationQuantizer
from tdquant.support.hooks import hooked


@dataclass(frozen=True)
class Judgement:
    """What candidates do to the output, by layer.

    Attributes:
        times: Time of every sample that was judged, ``(S,)``.
        effects: path -> ``r^T J dx / sqrt(elements of the output)`` of each of its C candidates
            alone, ``(S, C)``: their squares are squared output errors per element, and those of
            roundings that come together add up before they are squared.
        weights: How much each sample counts, ``(S,)``; alike if None.
    """

    times: Tensor
    effects: dict[str, Tensor]
    weights: Tensor | None = None

    def balanced(self, candidates: dict[str, list[Candidate]]) -> Judgement:
        """The same with every time weighed by the error that the best static scales make there
        together. That error as a whole stays what it is.

        Arguments:
            candidates: What was judged, of the layers that count.
        """
        total = torch.zeros(len(self.times))
        for name, found in candidates.items():
            static = [i for i, c in enumerate(found) if c.kind == "static"]
            errors = self.effects[name][:, static].square()
            total += errors[:, errors.mean(0).argmin()]
        bins = TimeBins(self.times)
        sums = bins.sums(self.times, total)
        bins.balance(sums)
        mean = float(total.mean())
        return replace(self, weights=bins.of(self.times) * mean if mean else None)

    def errors(self, name: str) -> Tensor:
        """Squared output error of each candidate of a layer by sample, weighted, ``(S, C)``."""
        return self._weighted(self.effects[name].square())

    def _weighted(self, squares: Tensor) -> Tensor:
        if self.weights is None:
            return squares
        return squares * self.weights.reshape(-1, *[1] * (squares.ndim - 1))

    def mean(self, name: str) -> Tensor:
        """Mean error of each candidate of a layer, ``(C,)``."""
        return self.errors(name).mean(0)

    def together(self, choice: dict[str, int]) -> float:
        """Mean error of one candidate of each of several quantizers at once."""
        added: Tensor = sum(self.effects[n][:, i] for n, i in choice.items())  # type: ignore[assignment]
        return float(self._weighted(added.square()).mean())


InputAt = tuple[str, Tensor, Tensor, Tensor]
"""Path of a quantizer, its input x, the timestep as given, and ``J^T r`` there."""

LayerAt = tuple[str, QuantLayer, Tensor, Tensor, Tensor]
"""A layer by path and module, its input, its output, and ``J^T r`` there."""


@dataclass(frozen=True)
class Projection:
    """One call of the float model, and the gradient of a random projection of its output.

    Attributes:
        timestep: Time of every sample, ``(B,)``.
        size: Elements of one sample of the output.
        inputs: What reached quantizers, in order.
        outputs: What the wanted layers computed, in order.
    """

    timestep: Tensor
    size: int
    inputs: list[InputAt]
    outputs: list[LayerAt]


def project(
    model: nn.Module,
    quantizers: dict[str, ActivationQuantizer],
    calls: Iterable[Call],
    seed: int = 0,
    layers: dict[str, QuantLayer] | None = None,
) -> Iterator[Projection]:
    """Runs the float model forwards and backwards, a projection of the output for each sample.

    The draws belong to samples and not to calls: how samples are divided into calls plays no part.

    Arguments:
        model: The quantized model; it runs in float while the generator is open.
        quantizers: Its activation quantizers by path.
        calls: Calls of the model.
        seed: Seed of the projections.
        layers: Layers whose outputs are wanted, by path.
    """
    inputs: list[tuple[str, Tensor, Tensor]] = []
    outputs: list[tuple[str, QuantLayer, Tensor, Tensor]] = []

    def look(name: str, x: Tensor, timestep: Tensor) -> Tensor:
        x = _leaf(x)
        inputs.append((name, x, timestep))
        return x

    def listen(name: str, layer: QuantLayer, x: Tensor, y: Tensor) -> Tensor:
        y = _leaf(y)
        outputs.append((name, layer, x, y))
        return y.clone()  # what the model does to it in place leaves the one that is kept alone

    hooks = [
        layer.register_forward_hook(lambda m, args, y, n=name: listen(n, m, args[0], y))
        for name, layer in (layers or {}).items()
    ]
    samples = 0
    with hooked(hooks), observing(model, quantizers, look):
        for call in calls:
            inputs.clear()
            outputs.clear()
            with torch.enable_grad():
                y = run(model, call)
                r = torch.stack([_draw(y[0], seed, samples + i) for i in range(len(y))])
                samples += len(y)
                wanted = [x for _, x, _ in inputs] + [out for *_, out in outputs]
                found = torch.autograd.grad((y.float() * r).sum(), wanted, allow_unused=True)
            at_inputs, at_outputs = found[: len(inputs)], found[len(inputs) :]
            yield Projection(
                clock_of(model).last.detach().float().cpu().expand(len(y)),  # type: ignore[union-attr, operator]
                max(y[0].numel(), 1),
                [
                    (n, x.detach(), t, g)
                    for (n, x, t), g in zip(inputs, at_inputs, strict=True)
                    if g is not None
                ],
                [
                    (n, layer, x.detach(), out.detach(), g)
                    for (n, layer, x, out), g in zip(outputs, at_outputs, strict=True)
                    if g is not None
                ],
            )


def _leaf(x: Tensor) -> Tensor:
    return x if x.requires_grad else x.detach().requires_grad_()


def _draw(like: Tensor, seed: int, sample: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed * 1_000_003 + sample)
    return torch.randn(like.shape, generator=rng).to(like.device)


def judge(
    model: nn.Module,
    quantizers: dict[str, ActivationQuantizer],
    grids: dict[str, Grid],
    candidates: dict[str, list[Candidate]],
    calls: Iterable[Call],
    seed: int = 0,
    parts: dict[str, Concatenation] | None = None,
) -> Judgement:
    """What each candidate of each layer does to the output alone.

    Arguments:
        model: The quantized model; it runs in float.
        quantizers: Its activation quantizers by path.
        grids: Codes by path.
        candidates: Curves by path.
        calls: Calls of the model.
        seed: Seed of the projections.
        parts: Quantizers whose input is a concatenation; its parts are judged too, under their
            names.

    Raises:
        CalibrationError: There are no calls.
    """
    parts = parts or {}
    times: list[Tensor] = []
    effects: dict[str, list[Tensor]] = {name: [] for name in candidates}
    for projection in project(model, quantizers, calls, seed):
        batch = len(projection.timestep)
        # A quantizer that one call reaches several times counts with the sum of its effects.
        total = {name: torch.zeros(len(cs), batch) for name, cs in candidates.items()}
        for name, x, t, g in projection.inputs:
            for place, piece, slope in pieces(name, x, g, parts):
                total[place] += input_effects(
                    piece, slope, t, grids[place], candidates[place], batch
                )
        for name, effect in total.items():
            effects[name].append(effect.T / projection.size**0.5)
        times.append(projection.timestep)
    if not times:
        raise CalibrationError("no calls to judge by", where="batches")
    return Judgement(torch.cat(times), {name: torch.cat(rows) for name, rows in effects.items()})


def pieces(
    name: str, x: Tensor, g: Tensor, parts: dict[str, Concatenation]
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """An input with its gradient, and the same of each of its parts, under their names."""
    yield name, x, g
    if name in parts:
        found = parts[name]
        yield from zip(found.names(name), found.pieces(x), found.pieces(g), strict=True)


@torch.no_grad()
def input_effects(
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
