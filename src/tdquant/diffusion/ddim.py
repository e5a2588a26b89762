r"""DDIM with the noise schedules and timesteps of latent diffusion, to the last bit.

    x_0   = (x_t - sqrt(1 - a_t) eps) / sqrt(a_t)
    sigma = eta sqrt((1 - a_s) / (1 - a_t)) sqrt(1 - a_t / a_s)
    x_s   = sqrt(a_s) x_0 + sqrt(1 - a_s - sigma^2) eps + sigma z

with a the cumulative product of 1 - beta and s the timestep after t on the way down. S steps out
of T training timesteps are

    t_i = 1 + floor(i T / S),  i = S-1 .. 0,    t_i = i where S = T

which are the published ones where S divides T. The last step goes from t_0 = 1 to a_0, as
published, and from t_0 = 0 to a = 1.

The step itself is diffusers' own. Two things are not, since published models were trained and
sampled with others: diffusers computes the schedules in float32, and spaces timesteps by floor(T /
S), so that another number of steps than a divisor of T does not reach the noisiest ones.

The module imports diffusers, so nothing imports it before a schedule is needed.

References:
    Song et al., Denoising Diffusion Implicit Models, 2021 (https://arxiv.org/abs/2010.02502),
    equations 12 and 16.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from tdquant.errors import ModelError

PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
"""diffusers' names of what a model predicts, by those of latent-diffusion configurations."""

_DIFFUSERS = {"linear": "scaled_linear", "sqrt_linear": "linear", "cosine": "squaredcos_cap_v2"}
"""diffusers' names of noise schedules, likewise."""


def betas(
    schedule: str,
    count: int,
    start: float = 1e-4,
    end: float = 2e-2,
    offset: float = 8e-3,
) -> np.ndarray:
    """The ``count`` betas of one of latent diffusion's schedules, float64: even from ``start`` to
    ``end`` in sqrt(beta) ("linear"), in beta ("sqrt_linear") or its square ("sqrt"); or those of
    a squared cosine shifted by ``offset`` ("cosine").

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
    """diffusers' ``DDIMScheduler``, with schedules in float64 and the published timesteps.

    ``a`` is multiplied up in float64, then rounded to float32. Any number of steps from 1 to T
    makes exactly that many valid steps. Arguments, defaults and configuration are those of
    diffusers' class.

    Raises:
        ModelError: ``timestep_spacing`` or ``rescale_betas_zero_snr`` is not the default, or
            there is not one beta in [0, 1) for each training timestep.
    """

    config: Any

    @functools.wraps(DDIMScheduler.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        config = self.config
        spacing, rescaled = config.timestep_spacing, config.rescale_betas_zero_snr
        if rescaled or spacing != "leading":
            raise ModelError(
                f"rescale_betas_zero_snr={rescaled}, timestep_spacing={spacing!r}",
                where="DDIM",
                why="it has the published timesteps and schedules only",
                fix="diffusers.DDIMScheduler",
            )
        count = config.num_train_timesteps
        if config.trained_betas is not None:
            exact = np.asarray(config.trained_betas, dtype=np.float64)
        else:
            name = {theirs: ours for ours, theirs in _DIFFUSERS.items()}[config.beta_schedule]
            exact = betas(name, count, config.beta_start, config.beta_end)
        if len(exact) != count or not ((exact >= 0) & (exact < 1)).all():
            raise ModelError(
                f"{len(exact)} betas for {count} training timesteps",
                where="DDIM",
                fix="one for each, at least 0 and below 1",
            )
        self.betas = torch.from_numpy(exact).float()
        self.alphas = torch.from_numpy(1 - exact).float()
        self.alphas_cumprod = torch.from_numpy(np.cumprod(1 - exact)).float()
        if not config.set_alpha_to_one:
            self.final_alpha_cumprod = self.alphas_cumprod[0]
        self._places: dict[int, int] = {}

    def set_timesteps(
        self, num_inference_steps: int, device: torch.device | str | None = None
    ) -> None:
        """Chooses the timesteps for sampling in that many steps.

        Raises:
            ModelError: Fewer than 1 step, or more than there are training timesteps.
        """
        limit, steps = int(self.config.num_train_timesteps), num_inference_steps
        if not 1 <= steps <= limit:
            raise ModelError(f"{steps} sampler steps", where="DDIM", fix=f"1 to {limit}")
        chosen = [i * limit // steps for i in range(steps)]
        offset = min(int(self.config.steps_offset), limit - 1 - chosen[-1])
        chosen = [t + offset for t in chosen]
        self.num_inference_steps = steps
        self.timesteps = torch.tensor(chosen[::-1], device=device)
        self._places = {t: i for i, t in enumerate(chosen)}
        # diffusers' step goes from t to t - T // S. With S = T, and only the chosen timesteps in
        # its table, that is from the i-th of them to the one before.
        self._chosen = DDIMScheduler.from_config(self.config)
        self._chosen.num_inference_steps = limit
        self._chosen.alphas_cumprod = self.alphas_cumprod[chosen].cpu()
        one = torch.tensor(1.0, dtype=torch.float32)
        last = self.final_alpha_cumprod if chosen[0] > 0 else one
        self._chosen.final_alpha_cumprod = last.cpu()

    def step(  # type: ignore[override]
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[Tensor, Tensor]:
        """Takes one step down, as ``DDIMScheduler.step`` does.

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
            ModelError: ``timestep`` is not one of the chosen ones, or both kinds of noise are
                given.
        """
        place = self._places.get(int(timestep))
        if place is None:
            raise ModelError(
                f"timestep {int(timestep)} is none of the {len(self._places)} chosen ones",
                where="DDIM.step",
                fix="set_timesteps(steps), then one of .timesteps",
            )
        if generator is not None and variance_noise is not None and eta > 0:
            raise ModelError("both generator and variance_noise", where="DDIM.step")
        if eta > 0 and variance_noise is None:  # in the dtype of the sample, not of the prediction
            variance_noise = randn_tensor(
                sample.shape, generator=generator, device=sample.device, dtype=sample.dtype
            )
        return self._chosen.step(
            model_output, place, sample, eta, use_clipped_model_output,
            variance_noise=variance_noise, return_dict=return_dict,
        )  # fmt: skip


def make_ddim(params: dict[str, Any]) -> DDIM:
    """Builds the scheduler of a latent-diffusion configuration.

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
    options: dict[str, Any] = {"trained_betas": [float(b) for b in exact]}
    if given is None and schedule in _DIFFUSERS and (schedule != "cosine" or offset == 8e-3):
        name = _DIFFUSERS[schedule]
        options = {"beta_schedule": name, "beta_start": start, "beta_end": end}
    return DDIM(
        num_train_timesteps=len(exact),
        prediction_type=PREDICTIONS[kind],
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        **options,
    )
