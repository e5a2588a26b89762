r"""DDIM on the noise schedules of latent-diffusion configurations, with published timesteps.

    x_0   = (x_t - sqrt(1 - a_t) eps) / sqrt(a_t)
    sigma = eta sqrt((1 - a_s) / (1 - a_t)) sqrt(1 - a_t / a_s)
    x_s   = sqrt(a_s) x_0 + sqrt(1 - a_s - sigma^2) eps + sigma z

with a the cumulative product of 1 - beta and s the timestep after t on the way down. S steps out
of T training timesteps are

    t_i = 1 + floor(i T / S),  i = S-1 .. 0,    t_i = i where S = T

which are the published ones where S divides T. The last step goes from t_0 = 1 to a_0, as
published, and from t_0 = 0 to a = 1.

The module imports diffusers, so nothing imports it before a schedule is asked for.

References:
    Song et al., Denoising Diffusion Implicit Models, 2021 (https://arxiv.org/abs/2010.02502),
    equations 12 and 16.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from tdquant.errors import ModelError

PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
"""diffusers' names of what a model predicts, by those of latent-diffusion configurations."""

_DIFFUSERS = {"linear": "scaled_linear", "sqrt_linear": "linear", "cosine": "squaredcos_cap_v2"}


def betas(
    schedule: str,
    count: int,
    start: float = 1e-4,
    end: float = 2e-2,
    offset: float = 8e-3,
) -> np.ndarray:
    """The noise schedule of a latent-diffusion configuration, float64 ``(count,)``.

    Arguments:
        schedule: ``"linear"`` (in sqrt(beta)), ``"sqrt_linear"`` (in beta), ``"sqrt"`` (the root
            of that) or ``"cosine"``.
        count: Number T of training timesteps.
        start: First beta.
        end: Last beta.
        offset: Shift s of the cosine.

    Raises:
        ModelError: No such schedule.
    """

    def even(first: float, last: float) -> np.ndarray:
        # torch's, as published: numpy's differ in the last bit.
        return torch.linspace(first, last, count, dtype=torch.float64).numpy()

    if schedule == "linear":
        return even(start**0.5, end**0.5) ** 2
    if schedule == "sqrt_linear":
        return even(start, end)
    if schedule == "sqrt":
        return even(start, end) ** 0.5
    if schedule == "cosine":
        angle = (np.arange(count + 1) / count + offset) / (1 + offset) * np.pi / 2
        level = np.cos(angle) ** 2
        return np.clip(1 - level[1:] / level[:-1], 0, 0.999)
    raise ModelError(
        f"no noise schedule {schedule!r}",
        where="beta_schedule",
        fix="one of linear, sqrt_linear, sqrt, cosine",
    )


class DDIM(DDIMScheduler):
    """diffusers' DDIM scheduler with exact schedules and published timesteps.

    ``a`` is multiplied up in float64, then rounded to float32. Timesteps and their successors are
    a list, so any number of steps from 1 to T makes exactly that many valid steps. Arguments and
    defaults are those of diffusers' class, which drops what equals a default where one scheduler
    is made from the configuration of another.
    """

    config: Any
    _threshold_sample: Any

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 2e-2,
        beta_schedule: str = "linear",
        trained_betas: list[float] | None = None,
        clip_sample: bool = True,
        set_alpha_to_one: bool = True,
        steps_offset: int = 0,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        rescale_betas_zero_snr: bool = False,
    ) -> None:
        names = {theirs: ours for ours, theirs in _DIFFUSERS.items()}
        if rescale_betas_zero_snr or timestep_spacing != "leading":
            raise ModelError(
                f"{rescale_betas_zero_snr=}, {timestep_spacing=}",
                where="DDIM",
                why="it has the published timesteps and schedules only",
                fix="diffusers.DDIMScheduler",
            )
        if trained_betas is not None:
            exact = np.asarray(trained_betas, dtype=np.float64)
        else:
            name = names.get(beta_schedule, beta_schedule)
            exact = betas(name, num_train_timesteps, beta_start, beta_end)
        if len(exact) != num_train_timesteps or not ((exact >= 0) & (exact < 1)).all():
            raise ModelError(
                f"{len(exact)} betas for {num_train_timesteps} training timesteps",
                where="DDIM",
                fix="one for each, at least 0 and below 1",
            )
        self.betas = torch.from_numpy(exact).float()
        self.alphas = torch.from_numpy(1 - exact).float()
        self.alphas_cumprod = torch.from_numpy(np.cumprod(1 - exact)).float()
        self.final_alpha_cumprod = (
            torch.tensor(1.0) if set_alpha_to_one else self.alphas_cumprod[0]
        )
        self.init_noise_sigma = 1.0
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(num_train_timesteps).flip(0)
        self._next: dict[int, int | None] = {}

    def set_timesteps(
        self, num_inference_steps: int, device: torch.device | str | None = None
    ) -> None:
        """Chooses the timesteps of a sampling of that many steps.

        Raises:
            ModelError: Fewer than 1 step, or more than there are training timesteps.
        """
        limit, steps = int(self.config.num_train_timesteps), num_inference_steps
        if not 1 <= steps <= limit:
            raise ModelError(f"{steps} sampler steps", where="DDIM", fix=f"1 to {limit}")
        chosen = [i * limit // steps for i in range(steps)]
        offset = min(int(self.config.steps_offset), limit - 1 - chosen[-1])
        chosen = [t + offset for t in reversed(chosen)]
        self.num_inference_steps = steps
        self._next = dict(zip(chosen, [*chosen[1:], None], strict=True))
        self.timesteps = torch.tensor(chosen, device=device)

    def step(  # type: ignore[override]
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool | None = False,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[Tensor, Tensor]:
        """One step down.

        Arguments:
            model_output: The prediction at ``timestep``, ``(B, *)``.
            timestep: One of ``timesteps``.
            sample: x_t, ``(B, *)``.
            eta: 0 is deterministic, 1 is as noisy as ancestral sampling.
            use_clipped_model_output: Derive the noise again from a clipped x_0.
            generator: For z, one or one a sample.
            variance_noise: z itself.
            return_dict: False returns a tuple.

        Returns:
            x_s and x_0.

        Raises:
            ModelError: ``timestep`` is none of the chosen ones, or both kinds of noise are given.
        """
        a_t, a_s = self._levels(int(timestep))
        sigma = eta * ((1 - a_s) / (1 - a_t) * (1 - a_t / a_s)).sqrt()
        x_0, noise = self._split(model_output, sample, a_t)
        if self.config.thresholding:
            x_0 = self._threshold_sample(x_0)
        elif self.config.clip_sample:
            x_0 = x_0.clamp(-self.config.clip_sample_range, self.config.clip_sample_range)
        if use_clipped_model_output:
            noise = (sample - a_t.sqrt() * x_0) / (1 - a_t).sqrt()
        x_s = a_s.sqrt() * x_0 + (1 - a_s - sigma**2).sqrt() * noise
        if eta > 0:
            if variance_noise is not None and generator is not None:
                raise ModelError("both generator and variance_noise", where="DDIM.step")
            if variance_noise is None:
                variance_noise = randn_tensor(
                    sample.shape, generator=generator, device=sample.device, dtype=sample.dtype
                )
            x_s = x_s + sigma * variance_noise
        if not return_dict:
            return x_s, x_0
        return DDIMSchedulerOutput(prev_sample=x_s, pred_original_sample=x_0)

    def _levels(self, timestep: int) -> tuple[Tensor, Tensor]:
        """``a_t`` and ``a_s``, on the CPU: 0-dim tensors there combine with any device."""
        if timestep not in self._next:
            raise ModelError(
                f"timestep {timestep} is none of the {len(self._next)} chosen ones",
                where="DDIM.step",
                fix="set_timesteps(steps), then one of .timesteps",
            )
        after = self._next[timestep]
        bars = self.alphas_cumprod
        if after is not None:
            return bars[timestep].cpu(), bars[after].cpu()
        last = self.final_alpha_cumprod if timestep > 0 else torch.tensor(1.0)
        return bars[timestep].cpu(), last.cpu()

    def _split(self, output: Tensor, sample: Tensor, a_t: Tensor) -> tuple[Tensor, Tensor]:
        """The predicted ``x_0`` and noise, whichever of the two or v the model predicts."""
        signal, level = a_t.sqrt(), (1 - a_t).sqrt()
        if self.config.prediction_type == "epsilon":
            return (sample - level * output) / signal, output
        if self.config.prediction_type == "sample":
            return output, (sample - signal * output) / level
        if self.config.prediction_type == "v_prediction":
            return signal * sample - level * output, signal * output + level * sample
        raise ModelError(
            f"prediction_type={self.config.prediction_type!r}",
            where="DDIM",
            fix=f"one of {', '.join(PREDICTIONS.values())}",
        )


def make_ddim(params: dict[str, Any]) -> DDIM:
    """The scheduler of a latent-diffusion configuration.

    Arguments:
        params: Its ``model.params``: ``timesteps``, ``beta_schedule``, ``linear_start``,
            ``linear_end``, ``cosine_s``, ``given_betas`` and ``parameterization`` are read.

    Raises:
        ModelError: A schedule or parameterization that does not exist.
    """
    count, schedule = int(params.get("timesteps", 1000)), params.get("beta_schedule", "linear")
    start, end = float(params.get("linear_start", 1e-4)), float(params.get("linear_end", 2e-2))
    offset, given = float(params.get("cosine_s", 8e-3)), params.get("given_betas")
    kind = params.get("parameterization", "eps")
    if kind not in PREDICTIONS:
        raise ModelError(
            f"no parameterization {kind!r}", where="model.params", fix=", ".join(PREDICTIONS)
        )
    exact = betas(schedule, count, start, end, offset) if given is None else given
    named = given is None and schedule in _DIFFUSERS and (schedule != "cosine" or offset == 8e-3)
    law = (
        {"beta_schedule": _DIFFUSERS[schedule], "beta_start": start, "beta_end": end}
        if named
        else {"trained_betas": [float(b) for b in exact]}
    )
    return DDIM(
        num_train_timesteps=len(exact),
        prediction_type=PREDICTIONS[kind],
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        **law,
    )
