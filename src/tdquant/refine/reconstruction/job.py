"""The work on one block: collect what it gets and should give, choose its codes, keep a record."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from tdquant.calibration.timing import TimeBins
from tdquant.calls.call import Call, batch_size
from tdquant.layers import QuantLayer
from tdquant.quantizers import RoundedWeight, WeightQuantizer, activation_quantizers
from tdquant.refine.reconstruction.adaround import Learning, Rates
from tdquant.refine.reconstruction.batches import Batches
from tdquant.refine.reconstruction.blocks import learned_layers
from tdquant.refine.reconstruction.capture import Part, as_it_was, time_of
from tdquant.refine.reconstruction.gptq import ROWS, Hessian, gptq
from tdquant.refine.reconstruction.processes import Processes
from tdquant.refine.reconstruction.record import Folder
from tdquant.refine.reconstruction.samples import Samples
from tdquant.support.hooks import hooked
from tdquant.support.progress import Bar


@dataclass(frozen=True)
class BlockReport:
    """What became of one block.

    Attributes:
        path: Its path; empty for the whole model.
        layers: Paths of its layers.
        before: Mean squared error of its output with rounding to nearest.
        after: The same with what was learned; of adaround its share by weights of time.
    """

    path: str
    layers: list[str]
    before: float
    after: float


@dataclass(frozen=True)
class _Block:
    """One block: its number, its path, and its layers by path."""

    number: int
    path: str
    layers: dict[str, QuantLayer]


class Job:
    """Does the blocks of one model.

    Arguments:
        model: The quantized model.
        calls: Its calls, of all processes.
        learns: Whether roundings learn by gradients, or come from GPTQ.
        iterations: Updates for each block that learns.
        batch: Samples of an update, over all processes.
        rates: Learning rates.
        memory: Bytes of samples that may stay in memory.
        seed: Seed of all draws.
        world: The processes.
        folder: Where finished blocks are recorded, or None.
        save_every: Updates after which a block in work is recorded.
        bar: Is told of every update.
    """

    def __init__(
        self,
        model: nn.Module,
        calls: list[Call],
        *,
        learns: bool,
        iterations: int,
        batch: int,
        rates: Rates,
        memory: int,
        seed: int,
        world: Processes,
        folder: Folder | None,
        save_every: int,
        bar: Bar,
    ) -> None:
        self.model, self.calls, self.learns = model, calls, learns
        self.iterations, self.batch, self.rates = iterations, batch, rates
        self.memory, self.seed, self.world = memory, seed, world
        self.folder, self.save_every, self.bar = folder, save_every, bar
        self.layers = dict(learned_layers(model))
        self.biases: dict[nn.Module, Tensor] = {
            layer: layer.bias.detach().clone()
            for layer in self.layers.values()
            if layer.bias is not None
        }

    def block(self, number: int, path: str) -> BlockReport:
        """Does one block, or takes it from the checkpoint."""
        prefix = f"{path}." if path else ""
        layers = {n: m for n, m in self.layers.items() if n == path or n.startswith(prefix)}
        block, folder = _Block(number, path, layers), self.folder
        found = folder.read(folder.block(number)) if folder else None
        if found is not None:
            self._apply(block, found.tensors)
            self._advance(path, self.iterations if self.learns else 1)
            return BlockReport(**found.facts)
        before, after = self._learn(block) if self.learns else self._gptq(block)
        report = BlockReport(path, list(layers), before, after)
        if folder:
            folder.write(folder.block(number), self._tensors(block), asdict(report))
            folder.forget_learning()
            self.world.wait()
        return report

    def _mine(self) -> Iterator[tuple[int, Call]]:
        for number, call in enumerate(self.calls):
            if number % self.world.count == self.world.rank:
                yield number, call

    def _times(self) -> Tensor:
        """The times of all calls, of the other processes too."""
        return torch.cat([time_of(self.model, call).reshape(-1) for call in self.calls])

    def _advance(self, words: str, updates: int = 1) -> None:
        for _ in range(updates):
            self.bar.advance(words)

    def _learn(self, block: _Block) -> tuple[float, float]:
        part, world, folder = Part(self.model, block.path), self.world, self.folder
        with Samples(self.memory // 2) as inputs, Samples(self.memory // 2) as targets:
            part.collect_inputs(self._mine(), inputs)
            with as_it_was(self.model, self.biases):
                part.collect_targets(self._mine(), targets)
            batches = Batches(
                inputs,
                targets,
                [batch_size(call) for call in self.calls],
                self.batch,
                seed=self.seed,
                block=block.number,
                rank=world.rank,
                world=world.count,
                device=next(self.model.parameters()).device,
            )
            learning = Learning(
                part,
                block.layers,
                batches,
                TimeBins(self._times()),
                self.iterations,
                self.rates,
                world.sum,
                world.count,
            )
            found = folder.read(folder.learning) if folder else None
            if found is not None and found.facts["block"] == block.number:
                learning.resume(found.tensors, found.facts["done"])
                self._advance(block.path, learning.done)

            def told(done: int, loss: float) -> None:
                self._advance(f"{block.path} {loss:.2f}")
                if folder and done % self.save_every == 0 and done < self.iterations:
                    facts = {"block": block.number, "done": done}
                    folder.write(folder.learning, learning.tensors(), facts)

            learning.run(told)
            return learning.plain, learning.plain * learning.finish()

    @torch.no_grad()
    def _gptq(self, block: _Block) -> tuple[float, float]:
        layers, world = block.layers, self.world
        hessians = {
            name: Hessian(layer, -(-ROWS * layer.weight[0].numel() // len(self.calls)))
            for name, layer in layers.items()
        }
        current = 0

        def mine() -> Iterator[tuple[int, Call]]:
            nonlocal current
            for number, call in self._mine():
                current = number
                yield number, call

        def note(name: str, layer: QuantLayer, x: Tensor) -> None:
            hessians[name].add(layer.input_quantizer(x), current)

        hooks = [
            layer.register_forward_pre_hook(
                lambda m, args, name=name: note(name, m, args[0])  # type: ignore[misc]
            )
            for name, layer in layers.items()
        ]
        with hooked(hooks):
            Part(self.model, block.path).run(mine())
        before = after = 0.0
        for name, layer in layers.items():
            hessian = hessians[name]
            rows = world.sum(torch.tensor(float(hessian.rows)))
            layer.weight_quantizer, plain, better = gptq(layer, world.sum(hessian.total))
            count = max(float(rows), 1.0) * layer.weight.shape[0] / len(hessian.total)
            before, after = before + plain / count, after + better / count
        self._advance(block.path)
        return before, after

    def _parameters(self, block: _Block) -> dict[str, Tensor]:
        """What else than codes a block may have learned."""
        path = block.path
        found = {f"{n}|bias": m.bias for n, m in block.layers.items() if m.bias is not None}
        for name, quantizer in activation_quantizers(self.model):
            if not path or name == path or name.startswith(f"{path}."):
                for key, parameter in quantizer.scale.named_parameters():
                    found[f"{name}|scale.{key}"] = parameter
        return found

    def _tensors(self, block: _Block) -> dict[str, Tensor]:
        tensors = dict(self._parameters(block))
        for name, layer in block.layers.items():
            rounded = layer.weight_quantizer
            assert isinstance(rounded, RoundedWeight)
            tensors |= {f"{name}|codes": rounded.codes, f"{name}|step": rounded.step}
        return tensors

    @torch.no_grad()
    def _apply(self, block: _Block, tensors: dict[str, Tensor]) -> None:
        for name, parameter in self._parameters(block).items():
            parameter.copy_(tensors[name])
        for name, layer in block.layers.items():
            quantizer, device = layer.weight_quantizer, layer.weight.device
            assert isinstance(quantizer, WeightQuantizer)
            layer.weight_quantizer = RoundedWeight(
                quantizer.grid, tensors[f"{name}|step"], tensors[f"{name}|codes"]
            ).to(device)
