"""A model that learns: its optimizer, its moving average, and one step of both.

On several processes each holds one; they meet in the gradients, which are averaged, and in the
loss, whose mean all of them see.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.diffusion.sampling import stream_of
from tdquant.errors import StorageError, TrainingError
from tdquant.support.memory import trim_heap
from tdquant.training.average import Average
from tdquant.training.checkpoints import Checkpoint
from tdquant.training.diagnose import (
    first_gradients_not_finite,
    first_not_finite,
    gradients_not_finite,
)
from tdquant.training.objective import Batch, DiffusionObjective
from tdquant.training.optimizing import load_optimizer, optimizer_tensors
from tdquant.training.sharding import fill, whole
from tdquant.training.structure import describe
from tdquant.training.weights import forgetting_weights

PRECISIONS = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SMALLEST_SCALE = 1.0
"""Scale of the fp16 loss below which gradients that are not finite are no longer due to it."""

LARGE = 50_000_000
"""Parameters from which a step takes so long that trimming the heap in it is not noticed."""


class Learner:
    """Takes steps.

    Arguments:
        root: The model itself.
        groups: Its parameter groups.
        objective: What it learns.
        accelerator: 🤗 Accelerate's, which distributes it.
        ema: Decay of the moving average.
        clip: Largest norm of the gradient; 0 does not clip.
        accumulate: Parts of a process's share of the batch.
        precision: A key of PRECISIONS.
        seed: Seed of the run.
    """

    def __init__(
        self,
        root: nn.Module,
        groups: list[dict[str, Any]],
        objective: DiffusionObjective,
        accelerator: Any,
        *,
        ema: float,
        clip: float,
        accumulate: int,
        precision: str,
        seed: int,
    ) -> None:
        self.root, self.accelerator = root, accelerator
        self.clip, self.accumulate, self.seed = clip, accumulate, seed
        self.precision = precision
        self._rates = [float(g["lr"]) for g in groups]
        self._large = sum(p.numel() for p in root.parameters()) > LARGE
        # Sharding takes a model apart in place: a copy stays whole, to be filled when asked for.
        sharded = str(accelerator.distributed_type).endswith("FSDP")
        self._whole = copy.deepcopy(root) if sharded else None
        optimizer = torch.optim.AdamW(groups, fused=True)
        self.model, prepared = accelerator.prepare(root, optimizer)
        self.optimizer: torch.optim.Optimizer = prepared.optimizer
        self.objective = objective.to(accelerator.device)
        self.average = Average(root, ema)
        self.scaler = torch.amp.GradScaler(accelerator.device.type, enabled=precision == "fp16")

    def learn(self, data: Any, step: int, factor: float) -> dict[str, float]:
        """One step on this process's share of the batch.

        Arguments:
            data: Samples, or a pair of them and a dictionary of conditions.
            step: Number of the step, which seeds everything in it.
            factor: Factor on the learning rates.

        Returns:
            ``loss`` and its parts, means over the whole batch, and ``norm`` of the gradient. With
            fp16 also ``skipped``: 1 if the gradient overflowed at the present scale of the loss,
            which is lower in the next step; parameters and averages are as before.

        Raises:
            TrainingError: The loss or the gradient is NaN or infinite. Parameters, buffers,
                optimizer and averages are as before the step.
        """
        buffers = {n: b.detach().clone() for n, b in self.root.named_buffers()}
        try:
            return self._learn(data, step, factor)
        except TrainingError:
            self._undo(buffers)
            raise

    def _learn(self, data: Any, step: int, factor: float) -> dict[str, float]:
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        record, batch = self._differentiate(data, step)
        if not math.isfinite(record["loss"]):
            raise self._bad_loss(batch, step, record["loss"])
        self.scaler.unscale_(self.optimizer)
        parameters = [p for p in self.root.parameters() if p.grad is not None]
        total = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        norm = float(whole(total))
        skipped = not math.isfinite(norm)
        if skipped:
            self._lower_scale(step, norm)
        else:
            if self.clip:
                nn.utils.clip_grads_with_norm_(parameters, self.clip, total)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.average.update(self.root)
        told = {"skipped": float(skipped)} if self.scaler.is_enabled() else {}
        return record | {"norm": norm} | told

    def _differentiate(self, data: Any, step: int) -> tuple[dict[str, float], Batch]:
        """Gradients of the whole batch; its losses, and this process's last part of it."""
        rank = self.accelerator.process_index
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        for i, (part, positions, last) in enumerate(self._parts(data, rank)):
            # What dropout and noise draw belongs to the part, whichever process has it.
            stream = 3 + rank * self.accumulate + i
            torch.manual_seed(stream_of(self.seed, step, stream=stream).initial_seed())
            batch = self.objective.draw(part, self.seed, step, positions, self.accelerator.device)
            if self._large and self.objective.encode is not None:
                trim_heap()  # of what encoding left behind, before memory is at its peak
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                with self._autocast(), forgetting_weights(self.root):
                    loss, parts = self.objective(self.model, batch)
                self.scaler.scale(loss / self.accumulate).backward()
            for name, value in {"loss": loss.detach(), **parts}.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value / self.accumulate
        means = self.accelerator.reduce(torch.stack(list(sums.values())), "mean").tolist()
        return dict(zip(sums, means, strict=True)), batch

    def _lower_scale(self, step: int, norm: float) -> None:
        """Takes a step of fp16 as skipped, if a lower scale of the loss can help.

        Gradients are averages over all processes, so all of them decide alike.

        Raises:
            TrainingError: It cannot.
        """
        if self.scaler.is_enabled() and gradients_not_finite(self.root):
            self.scaler.update()
            if self.scaler.get_scale() >= SMALLEST_SCALE:
                return
        raise self._bad_gradient(step, norm)

    @torch.no_grad()
    def _undo(self, buffers: dict[str, Tensor]) -> None:
        """Puts back what a forward pass changes, and drops the gradients."""
        for name, buffer in self.root.named_buffers():
            buffer.copy_(buffers[name])
        self.optimizer.zero_grad(set_to_none=True)

    def release(self) -> None:
        """Frees gradients and the optimizer's state, twice the size of the model, after the last
        step. The accelerator would keep them for as long as it lives.
        """
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer.state.clear()

    def plain(self) -> nn.Module:
        """The model, whole on this process. Where it is sharded, every process has to ask."""
        if self._whole is not None:
            self._whole.load_state_dict({k: whole(v) for k, v in self.root.state_dict().items()})
        return self._whole or self.root

    def averaged(self) -> nn.Module:
        """A whole copy with the moving averages. Where it is sharded, every process has to ask."""
        return self.average.copy(self._whole or self.root)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """All tensors to go on from. Every process has to ask: shards are gathered."""
        return {
            "model": {k: whole(v).cpu() for k, v in self.root.state_dict().items()},
            "average": {k: whole(v).cpu() for k, v in self.average.parameters.items()},
            "optimizer": optimizer_tensors(self.optimizer, self.root),
        }

    def state(self) -> dict[str, Any]:
        """All else to go on from, JSON-safe."""
        return {
            "updates": self.average.updates,
            "scaler": self.scaler.state_dict(),
            "structure": describe(self.root),
        }

    def resume(self, found: Checkpoint) -> None:
        """Takes over optimizer and average; the model's own tensors were loaded before.

        Raises:
            StorageError: They belong to another model.
        """
        saved = found.tensors("average")
        if set(saved) != set(self.average.parameters):
            raise StorageError("the checkpoint averages other parameters", where=str(found.path))
        for name, value in saved.items():
            fill(self.average.parameters[name], value)
        load_optimizer(self.optimizer, self.root, found.tensors("optimizer"))
        self.average.updates = int(found.state["updates"])
        self.scaler.load_state_dict(found.state["scaler"])

    def agree(self, asked: bool) -> bool:
        """Whether any process was asked."""
        flag = torch.tensor(float(asked), device=self.accelerator.device, dtype=torch.float32)
        return bool(self.accelerator.reduce(flag, "sum") > 0)

    def _parts(self, data: Any, rank: int) -> Iterator[tuple[Any, range, bool]]:
        """Equal parts of the samples, their positions in the whole batch, and which is last."""
        x, conditions = data if isinstance(data, (tuple, list)) else (data, {})
        size = len(x) // self.accumulate
        for i in range(self.accumulate):
            cut = slice(i * size, (i + 1) * size)
            first = rank * len(x) + i * size
            part = x[cut], {k: v[cut] for k, v in conditions.items()}
            yield part, range(first, first + size), i + 1 == self.accumulate

    def _autocast(self) -> Any:
        if self.precision == "no":
            return contextlib.nullcontext()
        return torch.autocast(self.accelerator.device.type, PRECISIONS[self.precision])

    def _bad_loss(self, batch: Batch, step: int, loss: float) -> TrainingError:
        def call() -> None:
            with self._autocast():
                self.objective(self.root, batch)

        return TrainingError(
            f"the loss is {loss} in step {step + 1}",
            where=type(self.root).__name__,
            why=first_not_finite(self.root, call),
            fix="a lower rate, a longer warm-up or clip=; the last checkpoint is as it was",
        )

    def _bad_gradient(self, step: int, norm: float) -> TrainingError:
        fp16 = self.scaler.is_enabled()
        scaled = f", at a scale of the loss of {self.scaler.get_scale():.3g} too" if fp16 else ""
        return TrainingError(
            f"the norm of the gradient is {norm} in step {step + 1}",
            where=type(self.root).__name__,
            why=first_gradients_not_finite(self.root) + scaled,
            fix="a lower rate, a longer warm-up, clip="
            + (" or precision='bf16'" if fp16 else "")
            + "; the last checkpoint is as it was",
        )
