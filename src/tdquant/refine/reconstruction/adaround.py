r"""Learns the rounding of a block so that its quantized output meets the float one.

    L = mean_t w(t) |B_hat(x_hat, t) - B(x, t)|^2

with B the float block on its float input, B_hat the quantized one on what the quantized layers
before it give, and w(t) by ``tdquant.calibration.timing``. So a block also makes up for errors
that were made before it. Beside the rounding learn the steps of weights, biases, and the laws of
activation scales: a temporal scale's network by samples that are each at its own timestep. The
learning rates fall to zero by half a cosine.

References:
    Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization, 2020
    (https://arxiv.org/abs/2004.10568), section 3.
    Li et al., BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction, 2021
    (https://arxiv.org/abs/2102.05426), section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.calibration.timing import TimeBins
from tdquant.layers import QuantLayer
from tdquant.quantizers import (
    ActivationQuantizer,
    LearnedRounding,
    WeightQuantizer,
    activation_quantizers,
)
from tdquant.quantizers.rounding import nearest
from tdquant.refine.reconstruction.batches import Batches
from tdquant.refine.reconstruction.capture import TIME, Part
from tdquant.refine.reconstruction.samples import Record
from tdquant.scales import TemporalScale


@dataclass(frozen=True)
class Rates:
    """Learning rates of Adam.

    Arguments:
        choice: Of the rounding, in units of the distance between codes.
        growth: Of the logarithm of weight steps.
        bias: Of biases, in units of their root mean square.
        network: Of temporal scales.
        step: Of learned activation steps, in units of the step.
    """

    choice: float = 5e-3
    growth: float = 1e-3
    bias: float = 1e-2
    network: float = 5e-4
    step: float = 2e-3


class Learning:
    """A block that learns, from rounding to nearest.

    Arguments:
        part: The block.
        layers: Its quantized layers by path.
        batches: Its samples.
        times: The bins of all times that occur.
        iterations: Updates in all.
        rates: Learning rates.
        reduce: Adds a tensor up over all processes.
        world: Number of processes.
    """

    def __init__(
        self,
        part: Part,
        layers: dict[str, QuantLayer],
        batches: Batches,
        times: TimeBins,
        iterations: int,
        rates: Rates,
        reduce: Callable[[Tensor], Tensor],
        world: int = 1,
    ) -> None:
        self.part, self.layers, self.batches, self.times = part, layers, batches, times
        self.iterations, self.rates = iterations, rates
        self.reduce, self.world = reduce, world
        self.done = 0
        self.start = {
            path: nearest(_weight_quantizer(layer), layer.weight) for path, layer in layers.items()
        }
        self.install(self.start)
        sums = self.errors()
        self.plain = float(sums[0].sum() / sums[1].sum())
        times.balance(sums)
        self.rounding = {
            path: LearnedRounding(q.grid, q.step.detach(), layers[path].weight)
            for path, q in self.start.items()
        }
        self.install(self.rounding)
        self._before = {
            name: parameter.detach().clone()
            for name, parameter in self.parameters().items()
            if not name.endswith(("|choice", "|growth"))
        }
        self.optimizer = torch.optim.Adam(self._groups(), eps=1e-12)

    def install(self, quantizers: dict[str, Any]) -> None:
        """Puts quantizers of weights into their layers."""
        for path, quantizer in quantizers.items():
            self.layers[path].weight_quantizer = quantizer

    @torch.no_grad()
    def errors(self) -> Tensor:
        """Sums of the squared error of all samples' outputs, and their number, by bins of time."""
        nothing = torch.zeros(0)
        total = self.times.sums(nothing, nothing)
        for inputs, targets in self.batches.all():
            total += self.times.sums(inputs[TIME], self._by_row(inputs, targets))
        return self.reduce(total)

    def _by_row(self, inputs: Record, targets: Record) -> Tensor:
        """Mean squared error of the block's output for each row ``(B,)``."""
        found = self.part(inputs)
        elements = sum(y[0].numel() for y in found.values())
        squares = [
            (y.float() - targets[name].float()).square().flatten(1).sum(1)
            for name, y in found.items()
        ]
        return torch.stack(squares).sum(0) / elements

    def parameters(self) -> dict[str, nn.Parameter]:
        """Everything that learns, by name."""
        found = {}
        for path, layer in self.layers.items():
            quantizer = self.rounding[path]
            found[f"{path}|choice"] = quantizer.choice
            found[f"{path}|growth"] = quantizer.growth
            if layer.bias is not None:
                found[f"{path}|bias"] = layer.bias
        for path, activation in self.activations().items():
            for name, parameter in activation.scale.named_parameters():
                found[f"{path}|scale.{name}"] = parameter
        return found

    def activations(self) -> dict[str, ActivationQuantizer]:
        """The block's activation quantizers by path in the model."""
        prefix = f"{self.part.path}." if self.part.path else ""
        return {prefix + n if n else n: q for n, q in activation_quantizers(self.part.module)}

    def _groups(self) -> list[dict[str, Any]]:
        rates = self.rates
        networks = {
            f"{path}|scale.{name}"
            for path, quantizer in self.activations().items()
            if isinstance(quantizer.scale, TemporalScale)
            for name, _ in quantizer.scale.named_parameters()
        }
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self.parameters().items():
            kind = name.rpartition("|")[2]
            size = float(parameter.detach().float().square().mean().sqrt())
            if name in networks:
                rate = rates.network
            elif kind == "bias":
                rate = rates.bias * max(size, 1e-3)
            elif kind.startswith("scale."):
                rate = rates.step * size
            else:
                rate = rates.choice if kind == "choice" else rates.growth
            groups.setdefault(rate, []).append(parameter)
        return [{"params": found, "lr": rate, "base": rate} for rate, found in groups.items()]

    def run(self, told: Callable[[int, float], None]) -> None:
        """Learns to the end; ``told`` hears of every iteration and the loss of its batch."""
        parameters = list(self.parameters().values())
        for parameter in parameters:
            parameter.requires_grad_(True)
        try:
            with torch.enable_grad():
                while self.done < self.iterations:
                    loss = self._update(parameters)
                    self.done += 1
                    told(self.done, loss)
        finally:
            for parameter in parameters:
                parameter.requires_grad_(False)

    def _update(self, parameters: list[nn.Parameter]) -> float:
        share = self.done / self.iterations
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * 0.5 * (1 + math.cos(math.pi * share))
        self.optimizer.zero_grad()
        drawn = self.batches.draw(self.done)
        loss = torch.zeros((), device=parameters[0].device)
        if drawn is not None:
            inputs, targets, part = drawn
            weights = self.times.of(inputs[TIME])
            loss = part * (self._by_row(inputs, targets) * weights).mean()
        if loss.requires_grad:
            loss.backward()
        self._reduce_gradients(parameters)
        self.optimizer.step()
        return float(loss.detach())

    def _reduce_gradients(self, parameters: list[nn.Parameter]) -> None:
        if self.world > 1:
            for parameter in parameters:
                gradient = (
                    torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                )
                parameter.grad = self.reduce(gradient)

    def finish(self) -> float:
        """Installs what was learned, or rounding to nearest where that is better.

        Returns:
            The error of what was installed, by the weights of time, as a share of that of rounding
            to nearest: not over 1.
        """
        self.install({path: quantizer.rounded() for path, quantizer in self.rounding.items()})
        error = self.times.error(self.errors())
        if error <= 1:
            return error
        with torch.no_grad():
            parameters = self.parameters()
            for name, value in self._before.items():
                parameters[name].copy_(value)
        self.install(self.start)
        return 1.0

    def tensors(self) -> dict[str, Tensor]:
        """What a learning that goes on later has to know, beside ``done``."""
        found = {f"value|{n}": p.detach() for n, p in self.parameters().items()}
        for name, parameter in self.parameters().items():
            for entry, value in self.optimizer.state.get(parameter, {}).items():
                found[f"adam|{name}|{entry}"] = torch.as_tensor(value)
        return found

    @torch.no_grad()
    def resume(self, tensors: dict[str, Tensor], done: int) -> None:
        """Goes on from what ``tensors`` gave after ``done`` iterations."""
        parameters = self.parameters()
        for key, value in tensors.items():
            kind, _, name = key.partition("|")
            if kind == "value":
                parameters[name].copy_(value)
            else:
                name, _, entry = name.rpartition("|")
                parameter = parameters[name]
                kept = value if entry == "step" else value.to(parameter.device)
                self.optimizer.state[parameter][entry] = kept
        self.done = done


def _weight_quantizer(layer: QuantLayer) -> WeightQuantizer:
    assert isinstance(layer.weight_quantizer, WeightQuantizer)
    return layer.weight_quantizer
