r"""What roundings inside a model do to random projections of its output.

Rounding an activation x changes the output y by about J dx, with J the Jacobian of y at x. For a
random normal projection r of the output,

    E_r[(r^T J dx)^2] = |J dx|^2

and one backward pass gives ``g = J^T r`` at all layers. So one forward and one backward pass of
the float model per call, and then elementwise work, measure every rounding of every layer.

Where a model has no backward pass on its device, as with FlexAttention on the CPU, g is a random
vector of norm ``1 / |x|``, and the relative squared error of x itself is measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tdquant.calibration.candidates import Candidate
from tdquant.calibration.concatenations import Concatenation
from tdquant.calls.call import Call, run
from tdquant.calls.observing import observing, watching
from tdquant.clock import clock_of
from tdquant.errors import CalibrationError
from tdquant.layers import QuantLayer
from tdquant.numerics.batch_axis import BatchAxis, axis_of
from tdquant.quantizers import ActivationQuantizer
from tdquant.state import state_of

InputAt = tuple[str, Tensor, Tensor, Tensor, BatchAxis | None]
"""Path of a quantizer, its input x, the timestep as given, ``J^T r`` there, and where samples lie
in it.
"""

LayerAt = tuple[str, QuantLayer, Tensor, Tensor, Tensor, BatchAxis | None]
"""A layer by path and module, its input, its output, ``J^T r`` there, and where samples lie."""

Changes = tuple[str, Iterable[Tensor], Tensor, BatchAxis | None]
"""A place, what each of its roundings adds there, ``J^T r`` there, and where samples lie."""


@dataclass(frozen=True)
class Projection:
    """One call of the float model, and the gradient of a random projection of its output.

    Attributes:
        times: Timestep of every sample, ``(B,)``.
        size: Elements of one sample of the output.
        inputs: Inputs of the quantizers, in order.
        outputs: Outputs of the requested layers, in order.
        local: Why roundings are measured where they are made, not at the output; or empty.
    """

    times: Tensor
    size: int
    inputs: list[InputAt]
    outputs: list[LayerAt]
    local: str = ""

    def input_changes(
        self,
        candidates: Mapping[str, list[Candidate]],
        parts: Mapping[str, Concatenation],
    ) -> Iterator[Changes]:
        """What rounding by each candidate changes at every input, and at each of its parts."""

        def changes(
            place: str, x: Tensor, t: Tensor, g: Tensor, batch: BatchAxis | None
        ) -> Changes:
            found = (c.quantize(x, t, batch).sub_(x) for c in candidates[place])
            return place, found, g, batch

        for name, x, t, g, batch in self.inputs:
            yield changes(name, x, t, g, batch)
            if name in parts:
                places, split = parts[name].names(name), parts[name].pieces
                for place, piece, slope in zip(places, split(x), split(g), strict=True):
                    yield changes(place, piece, t, slope, batch)


class Effects:
    """Effects of several roundings at each place, ``r^T J dx / sqrt(elements of the output)``,
    collected call by call.

    Arguments:
        counts: Place -> number of roundings there.
    """

    def __init__(self, counts: Mapping[str, int]) -> None:
        self._counts = counts
        self._rows: dict[str, list[Tensor]] = {place: [] for place in counts}

    @torch.no_grad()
    def add(self, projection: Projection, changes: Iterable[Changes]) -> None:
        """Adds the changes that one call makes."""
        batch = len(projection.times)
        # A place that one call reaches several times counts with the sum of its effects.
        total = {
            place: torch.zeros(count, batch, dtype=torch.float32)
            for place, count in self._counts.items()
        }
        for place, found, g, axis in changes:
            each = [_by_sample(change.mul_(g), batch, axis).float().cpu() for change in found]
            total[place] += torch.stack(each)
        for place, effect in total.items():
            self._rows[place].append(effect.T / projection.size**0.5)

    def table(self) -> dict[str, Tensor]:
        """Place -> effects by sample, ``(S, count)``."""
        return {place: torch.cat(rows) for place, rows in self._rows.items()}


def _by_sample(effect: Tensor, batch: int, axis: BatchAxis | None) -> Tensor:
    """Sums over each sample, ``(B,)``. Where samples cannot be told apart each gets an equal share
    of the squared effect of all: projections of different samples are independent.
    """
    known = axis_of(effect, batch, axis)
    if known is None:
        return (effect.sum() / batch**0.5).expand(batch)
    return known.by_sample(effect, batch).reshape(batch, -1).sum(1)


def project(
    model: nn.Module,
    quantizers: Mapping[str, ActivationQuantizer],
    calls: Iterable[Call],
    seed: int = 0,
    layers: Mapping[str, QuantLayer] | None = None,
) -> Iterator[Projection]:
    """Runs the float model forwards and backwards, with one projection of the output per sample.

    Draws belong to samples, not to calls: the division of samples into calls plays no part.

    Arguments:
        model: The quantized model; it runs in float while the generator is open.
        quantizers: Its activation quantizers by path.
        calls: Calls of the model.
        seed: Seed of the projections.
        layers: Layers whose outputs are requested, by path.

    Raises:
        CalibrationError: There are no calls.
    """
    inputs: list[tuple[str, Tensor, Tensor]] = []
    outputs: list[tuple[str, QuantLayer, Tensor, Tensor]] = []

    local = ""

    def look(name: str, x: Tensor, timestep: Tensor) -> Tensor:
        x = x if local else _leaf(x)
        inputs.append((name, x, timestep))
        return x

    def see(name: str, layer: QuantLayer, x: Tensor, y: Tensor) -> Tensor:
        y = y if local else _leaf(y)
        outputs.append((name, layer, x, y))
        return y.clone()  # the model may change it in place

    samples, roles = 0, state_of(model).roles
    axes = roles.batch if roles is not None else {}
    with watching(layers or {}, see), observing(model, quantizers, look):
        for call in calls:
            found: Sequence[Tensor | None] | None = None
            while found is None:
                inputs.clear()
                outputs.clear()
                try:
                    with torch.set_grad_enabled(not local):
                        y = run(model, call)
                        wanted = [x for _, x, _ in inputs] + [out for *_, out in outputs]
                        size = max(y[0].numel(), 1)
                        if local:
                            found = [_unit(x, seed, samples, size) for x in wanted]
                            break
                        r = torch.stack([_draw(y[0], seed, samples + i) for i in range(len(y))])
                        total = (y.float() * r).sum()
                        found = torch.autograd.grad(total, wanted, allow_unused=True)
                except NotImplementedError as error:
                    if local:
                        raise
                    local = str(error).splitlines()[0] or "it has no backward pass"
            samples += len(y)
            at_inputs = zip(inputs, found[: len(inputs)], strict=True)
            at_outputs = zip(outputs, found[len(inputs) :], strict=True)
            yield Projection(
                clock_of(model).last.detach().float().cpu().expand(len(y)),
                size,
                [
                    (n, x.detach(), t, g, quantizers[n].batch)
                    for (n, x, t), g in at_inputs
                    if g is not None
                ],
                [
                    (n, layer, x.detach(), out.detach(), g, axes.get(n))
                    for (n, layer, x, out), g in at_outputs
                    if g is not None
                ],
                local,
            )
    if not samples:
        raise CalibrationError("no calls to measure by", where="batches")


def _unit(x: Tensor, seed: int, sample: int, size: int) -> Tensor:
    """A random vector that gives the relative error of x, per element of an output of ``size``."""
    norm = x.float().square().sum().sqrt().clamp(min=1e-20)
    return _draw(x, seed, sample) * (size**0.5 / norm)


def _leaf(x: Tensor) -> Tensor:
    return x if x.requires_grad else x.detach().requires_grad_()


def _draw(like: Tensor, seed: int, sample: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed * 1_000_003 + sample)
    return torch.randn(like.shape, generator=rng, dtype=torch.float32).to(like.device)
