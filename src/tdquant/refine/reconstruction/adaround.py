r"""Learns the rounding of a block so that its quantized output meets the float one.

    L = mean_t w(t) |B_hat(x_hat, t) - B(x, t)|^2

with B the float block on its float input, B_hat the quantized one on the output of the quantized
layers before it, and w(t) by ``tdquant.calibration.timing``. So a block also makes up for earlier
errors. Besides the rounding, the steps of weights, biases and the parameters of activation scales
are learned, the networks of temporal scales from samples that are each at its own timestep. The
learning rates fall to zero by half a cosine.

References:
    Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization, 2020
    (https://arxiv.org/abs/2004.10568), section 3.
    Li et al., BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction, 2021
    (https://arxiv.org/abs/2102.05426), section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.calibration.timing import TimeBins
from tdquant.quantizers import LearnedRounding, WeightQuantizer
from tdquant.quantizers.rounding import decided
from tdquant.refine.reconstruction.capture import TIME, Block
from tdquant.refine.reconstruction.processes import Processes
from tdquant.refine.reconstruction.samples import Batches, Record
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


class AdaRound:
    """Learned rounding of a block, from the codes that it has.

    Arguments:
        block: The block.
        batches: Its samples.
        times: Bins of all times that occur.
        iterations: Updates in all.
        rates: Learning rates.
        world: The processes.

    Attributes:
        done: Updates so far.
        start_error: Mean squared error of the output with the codes that it starts from.
    """

    def __init__(
        self,
        block: Block,
        batches: Batches,
        times: TimeBins,
        iterations: int,
        rates: Rates,
        world: Processes,
    ) -> None:
        self.block, self.batches, self.times = block, batches, times
        self.iterations, self.rates, self.world = iterations, rates, world
        self.done = 0
        self._start = {}
        for path, layer in block.layers.items():
            assert isinstance(layer.weight_quantizer, WeightQuantizer)
            self._start[path] = decided(layer.weight_quantizer, layer.weight)
        self._install(self._start)
        sums = self._errors()
        self.start_error = float(sums[0].sum() / sums[1].sum())
        times.balance(sums)
        self._rounding = {
            path: LearnedRounding(
                q.grid, q.step.detach(), block.layers[path].weight, q.groups, q.codes
            )
            for path, q in self._start.items()
        }
        self._install(self._rounding)
        self._before = {n: p.detach().clone() for n, p in block.parameters().items()}
        self._optimizer = torch.optim.Adam(self._groups(), eps=1e-12)

    def _install(self, quantizers: Mapping[str, WeightQuantizer]) -> None:
        for path, quantizer in quantizers.items():
            self.block.layers[path].weight_quantizer = quantizer

    @torch.no_grad()
    def _errors(self) -> Tensor:
        """Sums of the squared error of all samples' outputs, and their number, by bins of time."""
        total = self.times.sums(
            torch.zeros(0, dtype=torch.float32), torch.zeros(0, dtype=torch.float32)
        )
        for inputs, targets in self.batches.all():
            total += self.times.sums(inputs[TIME], self._row_errors(inputs, targets))
        return self.world.sum(total)

    def _row_errors(self, inputs: Record, targets: Record) -> Tensor:
        """Mean squared error of the block's output for each row ``(B,)``."""
        found = self.block(inputs)
        elements = sum(y[0].numel() for y in found.values())
        squares = [
            (y.float() - targets[name].float()).square().flatten(1).sum(1)
            for name, y in found.items()
        ]
        return torch.stack(squares).sum(0) / elements

    def _parameters(self) -> dict[str, nn.Parameter]:
        """Everything that is learned, by name."""
        found = {f"{path}|choice": q.choice for path, q in self._rounding.items()}
        found |= {f"{path}|growth": q.growth for path, q in self._rounding.items()}
        return found | self.block.parameters()

    def _groups(self) -> list[dict[str, Any]]:
        rates = self.rates
        groups: dict[float, list[nn.Parameter]] = {}
        networks = {
            id(parameter)
            for quantizer in self.block.activations().values()
            if isinstance(quantizer.scale, TemporalScale)
            for parameter in quantizer.scale.parameters()
        }
        for name, parameter in self._parameters().items():
            kind = name.rpartition("|")[2]
            size = float(parameter.detach().float().square().mean().sqrt())
            if id(parameter) in networks:
                rate = rates.network
            elif kind == "bias":
                rate = rates.bias * max(size, 1e-3)
            elif kind.startswith("scale."):
                rate = rates.step * size
            else:
                rate = rates.choice if kind == "choice" else rates.growth
            groups.setdefault(rate, []).append(parameter)
        return [{"params": found, "lr": rate, "base": rate} for rate, found in groups.items()]

    def run(self, on_update: Callable[[int, float], None]) -> None:
        """Learns to the end; calls ``on_update(done, loss)`` after every update."""
        parameters = list(self._parameters().values())
        for parameter in parameters:
            parameter.requires_grad_(True)
        try:
            with torch.enable_grad():
                while self.done < self.iterations:
                    loss = self._update(parameters)
                    self.done += 1
                    on_update(self.done, loss)
        finally:
            for parameter in parameters:
                parameter.requires_grad_(False)

    def _update(self, parameters: list[nn.Parameter]) -> float:
        share = self.done / self.iterations
        for group in self._optimizer.param_groups:
            group["lr"] = group["base"] * 0.5 * (1 + math.cos(math.pi * share))
        self._optimizer.zero_grad()
        drawn = self.batches.draw(self.done)
        loss = torch.zeros((), device=parameters[0].device, dtype=torch.float32)
        if drawn is not None:
            inputs, targets, part = drawn
            weights = self.times.weight(inputs[TIME])
            loss = part * (self._row_errors(inputs, targets) * weights).mean()
        if loss.requires_grad:
            loss.backward()
        if self.world.count > 1:
            for parameter in parameters:
                own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                parameter.grad = self.world.sum(own)
        self._optimizer.step()
        return float(loss.detach())

    def finish(self) -> float:
        """Installs what was learned, or the codes at the start where these are better.

        Returns:
            The error of what was installed, weighted over time, as a share of that of the
            codes at the start: at most 1.
        """
        self._install({path: quantizer.rounded() for path, quantizer in self._rounding.items()})
        error = self.times.error(self._errors())
        if error <= 1:
            return error
        with torch.no_grad():
            for name, parameter in self.block.parameters().items():
                parameter.copy_(self._before[name])
        self._install(self._start)
        return 1.0

    def tensors(self) -> dict[str, Tensor]:
        """All that ``resume`` needs, except ``done``."""
        found = {f"value|{n}": p.detach() for n, p in self._parameters().items()}
        for name, parameter in self._parameters().items():
            for entry, value in self._optimizer.state.get(parameter, {}).items():
                found[f"adam|{name}|{entry}"] = torch.as_tensor(value)
        return found

    @torch.no_grad()
    def resume(self, tensors: Mapping[str, Tensor], done: int) -> None:
        """Restores what ``tensors`` gave after ``done`` updates."""
        parameters = self._parameters()
        for key, value in tensors.items():
            kind, _, name = key.partition("|")
            if kind == "value":
                parameters[name].copy_(value)
            else:
                name, _, entry = name.rpartition("|")
                parameter = parameters[name]
                kept = value if entry == "step" else value.to(parameter.device)
                self._optimizer.state[parameter][entry] = kept
        self.done = done
