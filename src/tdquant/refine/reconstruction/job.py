"""The work on one block: collects inputs and targets, chooses codes, and keeps a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from tdquant.calibration.timing import TimeBins
from tdquant.calls.call import Call, batch_size
from tdquant.calls.observing import watching
from tdquant.files.documents import checked
from tdquant.files.job_folder import JobFolder
from tdquant.layers import QuantLayer
from tdquant.quantizers import RoundedWeight, WeightQuantizer
from tdquant.refine.reconstruction.adaround import AdaRound, Rates
from tdquant.refine.reconstruction.blocks import learned_layers
from tdquant.refine.reconstruction.capture import Block, before_quantization, with_times
from tdquant.refine.reconstruction.gptq import ROWS, Hessian, gptq
from tdquant.refine.reconstruction.processes import Processes
from tdquant.refine.reconstruction.record import LEARNING, part_of
from tdquant.refine.reconstruction.samples import Batches, Samples
from tdquant.support.progress import Bar


@dataclass(frozen=True)
class BlockReport:
    """The result of one block.

    Attributes:
        path: Its path; empty for the whole model.
        layers: Paths of its layers.
        before: Mean squared error of its output with the codes that it had.
        after: The same with what was learned; of adaround its share, weighted over time.
    """

    path: str
    layers: list[str]
    before: float
    after: float


@dataclass
class Job:
    """Reconstructs the blocks of one model.

    Arguments:
        model: The quantized model.
        calls: Its calls, of all processes.
        learns: Whether roundings are learned by gradients, or come from GPTQ.
        iterations: Updates for each block that learns.
        batch: Samples of an update, over all processes.
        rates: Learning rates.
        memory: Bytes of samples that may stay in memory.
        seed: Seed of all draws.
        world: The processes.
        folder: Where finished blocks are recorded, or None.
        save_every: Updates after which a block in work is recorded.
        bar: Advanced by every update.
    """

    model: nn.Module
    calls: list[Call]
    learns: bool
    iterations: int
    batch: int
    rates: Rates
    memory: int
    seed: int
    world: Processes
    folder: JobFolder | None
    save_every: int
    bar: Bar

    def __post_init__(self) -> None:
        timed = [with_times(self.model, call) for call in self.calls]
        self.calls = [call for call, _ in timed]
        self._times = torch.cat([times.reshape(-1) for _, times in timed])
        self._biases: dict[QuantLayer, Tensor] = {
            layer: layer.bias.detach().clone()
            for _, layer in learned_layers(self.model)
            if layer.bias is not None
        }

    def reconstruct(self, number: int, path: str) -> BlockReport:
        """Reconstructs one block, or takes it from the checkpoint."""
        block, folder = Block(self.model, path, number), self.folder
        found = folder.read(part_of(number)) if folder else None
        if folder and found is not None:
            where = f"{folder.path}: {part_of(number)}"
            report = checked(BlockReport, found.facts, "the checkpoint", where)
            _restore(block, found.tensors)
            self._advance(path, self.iterations if self.learns else 1)
            return report
        before, after = self._learn(block) if self.learns else self._gptq(block)
        report = BlockReport(path, list(block.layers), before, after)
        if folder:
            folder.write(part_of(number), _tensors(block), asdict(report))
            folder.forget(LEARNING)
            self.world.wait()
        return report

    def _mine(self) -> Iterator[tuple[int, Call]]:
        for number, call in enumerate(self.calls):
            if number % self.world.count == self.world.rank:
                yield number, call

    def _advance(self, words: str, updates: int = 1) -> None:
        for _ in range(updates):
            self.bar.advance(words)

    def _learn(self, block: Block) -> tuple[float, float]:
        world, folder = self.world, self.folder
        with Samples(self.memory // 2) as inputs, Samples(self.memory // 2) as targets:
            block.collect_inputs(self._mine(), inputs)
            with before_quantization(self.model, self._biases):
                block.collect_targets(self._mine(), targets)
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
            times = TimeBins(self._times)
            learning = AdaRound(block, batches, times, self.iterations, self.rates, world)
            found = folder.read(LEARNING) if folder else None
            if found is not None and found.facts["block"] == block.number:
                learning.resume(found.tensors, found.facts["done"])
                self._advance(block.path, learning.done)

            def on_update(done: int, loss: float) -> None:
                self._advance(f"{block.path} {loss:.2f}")
                if folder and done % self.save_every == 0 and done < self.iterations:
                    facts = {"block": block.number, "done": done}
                    folder.write(LEARNING, learning.tensors(), facts)

            learning.run(on_update)
            return learning.start_error, learning.start_error * learning.finish()

    @torch.no_grad()
    def _gptq(self, block: Block) -> tuple[float, float]:
        world = self.world
        hessians = {
            name: Hessian(layer, -(-ROWS * layer.weight[0].numel() // len(self.calls)))
            for name, layer in block.layers.items()
        }

        def add(name: str, layer: QuantLayer, x: Tensor, y: Tensor) -> None:
            hessians[name].add(layer.input_quantizer(x), block.call)

        with watching(block.layers, add):
            block.run(self._mine())
        before = after = 0.0
        for name, layer in block.layers.items():
            hessian = hessians[name]
            rows = world.sum(torch.tensor(float(hessian.rows), dtype=torch.float32))
            layer.weight_quantizer, plain, better = gptq(
                layer, [world.sum(block) for block in hessian.total]
            )
            count = max(float(rows), 1.0) * layer.weight.shape[0] / len(hessian.total[0])
            before, after = before + plain / count, after + better / count
        self._advance(block.path)
        return before, after


def _tensors(block: Block) -> dict[str, Tensor]:
    """All that ``_restore`` needs."""
    tensors: dict[str, Tensor] = dict(block.parameters())
    for name, layer in block.layers.items():
        rounded = layer.weight_quantizer
        assert isinstance(rounded, RoundedWeight)
        tensors |= {f"{name}|codes": rounded.codes, f"{name}|step": rounded.step}
    return tensors


@torch.no_grad()
def _restore(block: Block, tensors: dict[str, Tensor]) -> None:
    for name, parameter in block.parameters().items():
        parameter.copy_(tensors[name])
    for name, layer in block.layers.items():
        quantizer, device = layer.weight_quantizer, layer.weight.device
        assert isinstance(quantizer, WeightQuantizer)
        step, codes = tensors[f"{name}|step"], tensors[f"{name}|codes"]
        rounded = RoundedWeight(quantizer.grid, step, codes, quantizer.groups)
        layer.weight_quantizer = rounded.to(device)
