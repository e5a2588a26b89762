"""A model that learns: its optimizer, its moving average, and one step of both.

On several processes each holds one; they meet in the gradients, which are averaged, and in the
loss, whose mean all of them see.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.diffusion.sampling import stream_of
from tdquant.errors import StorageError, TrainingError
from tdquant.train.average import Average
from tdquant.train.checkpoints import Checkpoint
from tdquant.train.diagnose import first_not_finite
from tdquant.train.objective import Batch, DiffusionObjective
from tdquant.train.optimizing import load_optimizer, optimizer_tensors
from tdquant.train.sharding import fill, whole
from tdquant.train.structure import describe

PRECISIONS = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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
            ``loss`` and its parts, means over the whole batch, and ``norm`` of the gradient.

        Raises:
            TrainingError: The loss is NaN or infinite; nothing was changed.
        """
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        rank = self.accelerator.process_index
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        for i, (part, positions, last) in enumerate(self._parts(data, rank)):
            # What dropout and noise draw belongs to the part, whichever process has it.
            stream = 3 + rank * self.accumulate + i
            torch.manual_seed(stream_of(self.seed, step, stream=stream).initial_seed())
            batch = self.objective.draw(part, self.seed, step, positions, self.accelerator.device)
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                with self._autocast():
                    loss, parts = self.objective(self.model, batch)
                self.scaler.scale(loss / self.accumulate).backward()
            for name, value in {"loss": loss.detach(), **parts}.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value / self.accumulate
        means = self.accelerator.reduce(torch.stack(list(sums.values())), "mean").tolist()
        record = dict(zip(sums, means, strict=True))
        if not record["loss"] < float("inf"):
            raise self._not_finite(batch, step, record["loss"])
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.root.parameters(), self.clip or float("inf"))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.average.update(self.root)
        return record | {"norm": float(whole(norm))}

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
        flag = torch.tensor(float(asked), device=self.accelerator.device)
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

    def _not_finite(self, batch: Batch, step: int, loss: float) -> TrainingError:
        return TrainingError(
            f"the loss is {loss} in step {step + 1}",
            where=type(self.root).__name__,
            why=first_not_finite(self.root, lambda: self.objective(self.root, batch)),
            fix="a lower rate, a longer warm-up or clip=; the last checkpoint is as it was",
        )
