r"""The diffusion loss, and distillation from the float model.

A training sample x_0 is noised to a random training timestep t,

    x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) e,    e ~ N(0, 1),    snr_t = a_t / (1 - a_t)

with a_t the scheduler's cumulative product, and the model f(x_t, t) is compared with

    e                                   prediction_type "epsilon"
    sqrt(a_t) e - sqrt(1 - a_t) x_0     "v_prediction"
    x_0                                 "sample"

by squares (l2) or absolute values (l1), each sample weighted by w_t: 1, or with min-SNR weighting
``min(snr, g) / snr``, ``min(snr, g) / (snr + 1)`` and ``min(snr, g)`` respectively. A teacher's
output y takes the place of a share d of the target, ``(1 - d) target + d y``, and features inside
can be matched as well.

Every draw of a sample comes from a stream of its own, which depends on the seed, the step and the
position of the sample in the step's batch: however a batch is split over processes, the numbers
are the same.

References:
    Ho et al., Denoising Diffusion Probabilistic Models, 2020 (https://arxiv.org/abs/2006.11239).
    Salimans and Ho, Progressive Distillation, 2022 (https://arxiv.org/abs/2202.00512).
    Hang et al., Efficient Diffusion Training via Min-SNR Weighting Strategy, 2023
    (https://arxiv.org/abs/2303.09556).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.diffusion.sampling import stream_of
from tdquant.errors import TrainingError, raise_collected
from tdquant.support.devices import dtype_of
from tdquant.support.restoring import evaluating
from tdquant.training.features import FeatureMatch

LOSSES = ("l2", "l1")
PREDICTIONS = ("epsilon", "v_prediction", "sample")

Encode = Callable[[Tensor, list[torch.Generator]], Tensor]


@dataclass(frozen=True)
class Batch:
    """Noised samples of one step.

    Attributes:
        x_t: Model input ``(B, *)``.
        t: Training timesteps ``(B,)``, int64.
        target: What the model should predict, ``(B, *)``.
        weight: Weight of each sample ``(B,)``.
        conditions: Further keyword arguments of the model.
    """

    x_t: Tensor
    t: Tensor
    target: Tensor
    weight: Tensor
    conditions: dict[str, Any]


class DiffusionObjective(nn.Module):
    """Draws noised batches and measures a model on them.

    Arguments:
        scheduler: diffusers scheduler with ``alphas_cumprod`` and a prediction type.
        loss: ``"l2"`` or ``"l1"``.
        min_snr: Bound g of the min-SNR weighting (5 is usual), or None for even weights.
        teacher: Float model with the same call, or None.
        distill: Share of the teacher's output in the target, 0 to 1.
        features: Patterns of module paths whose outputs are matched with the teacher's.
        feature_weight: Weight of that term.
        encode: ``(images, generators) -> latents`` of a first stage, or None.
        flip: Probability of mirroring an image left to right, before it is encoded.

    Raises:
        TrainingError: A name is unknown, or the scheduler has no discrete noise schedule.
    """

    alpha_bar: Tensor

    def __init__(
        self,
        scheduler: Any,
        *,
        loss: str = "l2",
        min_snr: float | None = None,
        teacher: nn.Module | None = None,
        distill: float = 1.0,
        features: Sequence[str] = (),
        feature_weight: float = 1.0,
        encode: Encode | None = None,
        flip: float = 0.0,
    ) -> None:
        super().__init__()
        if not hasattr(scheduler, "config"):
            raise TrainingError(
                f"no scheduler but {type(scheduler).__name__}",
                why="noise schedule and kind of prediction come from it",
                fix="train(model, data, scheduler), one of diffusers, or objective=",
            )
        self.prediction = str(getattr(scheduler.config, "prediction_type", "epsilon"))
        mistakes = [
            f"loss={loss!r}: one of {', '.join(LOSSES)}" if loss not in LOSSES else "",
            f"prediction type {self.prediction!r}: one of {', '.join(PREDICTIONS)}"
            if self.prediction not in PREDICTIONS
            else "",
            f"{type(scheduler).__name__} has no alphas_cumprod"
            if not hasattr(scheduler, "alphas_cumprod")
            else "",
            f"distill={distill}: 0 to 1" if not 0 <= distill <= 1 else "",
            f"flip={flip}: a probability" if not 0 <= flip <= 1 else "",
            "features without a teacher" if features and teacher is None else "",
        ]
        raise_collected(TrainingError, filter(None, mistakes), "the objective")
        self.register_buffer("alpha_bar", scheduler.alphas_cumprod.float().clone())
        self.loss, self.min_snr, self.distill = loss, min_snr, distill
        self.teacher = teacher
        self.match = FeatureMatch(teacher, features) if teacher is not None and features else None
        self.feature_weight, self.encode, self.flip = feature_weight, encode, flip

    def train(self, mode: bool = True) -> DiffusionObjective:
        """Leaves the teacher in evaluation mode."""
        self.training = mode
        return self

    def draw(
        self, data: Any, seed: int, step: int, positions: range, device: torch.device | str
    ) -> Batch:
        """Noises what the loader gave for ``positions`` of the batch of one step.

        Arguments:
            data: Images ``(B, C, H, W)``, or a pair of them and a dictionary of conditions.
            seed: Seed of the run.
            step: Step of the optimizer.
            positions: Places of these B samples in the whole batch of the step.
            device: Where the model is.
        """
        x, conditions = data if isinstance(data, (tuple, list)) else (data, {})
        streams = [stream_of(seed, (step << 24) + i, stream=2) for i in positions]
        t = torch.cat([torch.randint(len(self.alpha_bar), (1,), generator=g) for g in streams])
        mirrored = (
            torch.stack([torch.rand((), generator=g, dtype=torch.float32) for g in streams])
            < self.flip
        )
        x = x.to(device)
        if self.flip:
            x = torch.where(mirrored.to(device)[:, None, None, None], x.flip(-1), x)
        if self.encode is not None:
            with torch.no_grad():
                x = self.encode(x, streams)
        noise = torch.stack(
            [torch.randn(x.shape[1:], generator=g, dtype=torch.float32) for g in streams]
        ).to(x)
        a = self.alpha_bar.to(x.device)[t.to(x.device)]
        shape = (-1, *[1] * (x.ndim - 1))
        signal, sigma = a.sqrt().view(shape), (1 - a).sqrt().view(shape)
        target = {
            "epsilon": noise,
            "v_prediction": signal * noise - sigma * x,
            "sample": x,
        }[self.prediction]
        conditions = {k: v.to(device) if hasattr(v, "to") else v for k, v in conditions.items()}
        x_t = signal * x + sigma * noise
        return Batch(x_t, t.to(x.device), target, self._weight(a), conditions)

    def _weight(self, a: Tensor) -> Tensor:
        if self.min_snr is None:
            return torch.ones_like(a)
        snr = a / (1 - a)
        bounded = snr.clamp(max=self.min_snr)
        return {
            "epsilon": bounded / snr,
            "v_prediction": bounded / (snr + 1),
            "sample": bounded,
        }[self.prediction]

    def forward(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss ``()`` of a model on a batch, and its parts by name if it has several."""
        target = batch.target
        taught: list[Tensor] = []
        if self.teacher is not None:
            with torch.no_grad(), evaluating(self.teacher):
                output, taught = self._call(self.teacher, batch)
            target = torch.lerp(target.float(), output.float(), self.distill)
        output, learned = self._call(model, batch)
        error = output.float() - target.float()
        error = error.square() if self.loss == "l2" else error.abs()
        loss = (error.flatten(1).mean(1) * batch.weight).mean()
        if self.match is None:
            return loss, {}
        apart = self.match.distance(learned, taught)
        parts = {"output": loss.detach(), "features": apart.detach()}
        return loss + self.feature_weight * apart, parts

    def _call(self, model: nn.Module, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        if self.match is None:
            return self._predict(model, batch), []
        with self.match.listen(model) as heard:
            output = self._predict(model, batch)
        return output, heard

    def _predict(self, model: nn.Module, batch: Batch) -> Tensor:
        dtype = dtype_of(model) or batch.x_t.dtype

        def cast(value: Any) -> Any:
            floating = isinstance(value, Tensor) and value.is_floating_point()
            return value.to(dtype) if floating else value

        conditions = {name: cast(value) for name, value in batch.conditions.items()}
        output = model(cast(batch.x_t), batch.t, **conditions)
        output = output[0] if isinstance(output, tuple) else getattr(output, "sample", output)
        found, wanted = tuple(output.shape), tuple(batch.target.shape)
        if found[2:] == wanted[2:] and found[1] == 2 * wanted[1]:
            return output[:, : wanted[1]]  # the others are variances, which have no target
        if found != wanted:
            raise TrainingError(
                f"a prediction of {found} for a target of {wanted}", where=type(model).__name__
            )
        return output
