r"""How samples are noised for training, and what the network should predict, where tdquant's
``DiffusionObjective`` (discrete schedules) does not know it; and the sampler of noise levels.

    levels    x_s = x + s e,             target x,        ln s ~ N(-1, 1.4^2)
    flow      x_t = (1 - u) x + u e,     target e - x,    u = sigmoid(N(0, 1)),    t = 1000 u

References:
    Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, 2022
    (https://arxiv.org/abs/2206.00364).
    Esser et al., Scaling Rectified Flow Transformers for High-Resolution Image Synthesis, 2024
    (https://arxiv.org/abs/2403.03206).
"""

from __future__ import annotations

from typing import Any

import diffusers
import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor, nn

from tdquant.diffusion.sampling import stream_of
from tdquant.errors import ModelError
from tdquant.training import DiffusionObjective
from tdquant.training.objective import Batch


class LevelEuler(SchedulerMixin, ConfigMixin):
    """Euler's method over noise levels, for a network ``D(x, s)`` that estimates the clean sample
    and whose timestep is the level itself:

        x_next = x + (s_next - s) (x - D(x, s)) / s
        s_i = (s_max^(1/r) + i / (n - 1) (s_min^(1/r) - s_max^(1/r)))^r,  i = 0 .. n - 1,  s_n = 0
    """

    order = 1
    config: Any

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        rho: float = 7.0,
        prediction_type: str = "sample",
    ) -> None:
        self.init_noise_sigma = sigma_max
        self.set_timesteps(2)

    def set_timesteps(
        self, num_inference_steps: int, device: torch.device | str | None = None
    ) -> None:
        """Chooses the levels for sampling in that many steps."""
        high, low = (
            s ** (1 / self.config.rho) for s in (self.config.sigma_max, self.config.sigma_min)
        )
        ramp = torch.linspace(high, low, num_inference_steps, dtype=torch.float64)
        self.timesteps = (ramp**self.config.rho).float().to(device)
        self.sigmas = torch.cat([self.timesteps, self.timesteps.new_zeros(1)])

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor) -> SchedulerOutput:
        """Takes one step down from the level ``timestep``, one of ``timesteps``."""
        place = int((self.timesteps - timestep).abs().argmin())
        slope = (sample - model_output) / timestep
        return SchedulerOutput(prev_sample=sample + (self.sigmas[place + 1] - timestep) * slope)


class Continuous(nn.Module):
    """Draws noised batches at continuous times and measures a model on them, by the interface of
    ``DiffusionObjective``. Subclasses say how a batch is noised.
    """

    def noised(self, x: Tensor, noise: Tensor, normal: Tensor) -> Batch:
        """Noises samples ``(B, *)``, each at a time by its standard normal draw ``(B,)``."""
        raise NotImplementedError

    def draw(
        self, data: Any, seed: int, step: int, positions: range, device: torch.device | str
    ) -> Batch:
        """Noises what the loader gave for ``positions`` of the batch of one step, as
        ``DiffusionObjective.draw`` does.
        """
        x, conditions = data if isinstance(data, (tuple, list)) else (data, {})
        if conditions:
            raise ModelError("conditions for a model without", where=type(self).__name__)
        streams = [stream_of(seed, (step << 24) + i, stream=2) for i in positions]
        normal = torch.stack([torch.randn((), generator=g) for g in streams]).to(device)
        noise = torch.stack([torch.randn(x.shape[1:], generator=g) for g in streams])
        return self.noised(x.to(device), noise.to(device), normal)

    def forward(self, model: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted squared error ``()`` of a model on a batch, and no parts."""
        output = model(batch.x_t, batch.t)
        error = getattr(output, "sample", output).float() - batch.target
        return (error.square().flatten(1).mean(1) * batch.weight).mean(), {}


class Levels(Continuous):
    """Noise levels; ``spread`` is the standard deviation d of the data, and an error of the clean
    sample weighs ``(s^2 + d^2) / (s d)^2``.
    """

    def __init__(self, spread: float) -> None:
        super().__init__()
        self.spread = spread

    def noised(self, x: Tensor, noise: Tensor, normal: Tensor) -> Batch:
        sigma = (1.4 * normal - 1).exp()
        weight = (sigma.square() + self.spread**2) / (sigma * self.spread).square()
        return Batch(x + sigma.view(-1, *[1] * (x.ndim - 1)) * noise, sigma, x, weight, {})


class Flow(Continuous):
    """Straight lines from samples to noise."""

    def noised(self, x: Tensor, noise: Tensor, normal: Tensor) -> Batch:
        u = normal.sigmoid()
        there = u.view(-1, *[1] * (x.ndim - 1))
        x_t = (1 - there) * x + there * noise
        return Batch(x_t, 1000 * u, noise - x, torch.ones_like(u), {})


def make_scheduler(description: dict[str, Any]) -> Any:
    """The scheduler of a card: ``class`` and ``config``."""
    name = description["class"]
    cls = LevelEuler if name == LevelEuler.__name__ else getattr(diffusers, name)
    return cls(**description["config"])


def objective(scheduler: Any, spread: float) -> nn.Module:
    """What a model with this scheduler is trained on."""
    if isinstance(scheduler, LevelEuler):
        return Levels(spread)
    if isinstance(scheduler, diffusers.FlowMatchEulerDiscreteScheduler):
        return Flow()
    return DiffusionObjective(scheduler)
