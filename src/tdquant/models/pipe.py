"""A denoiser with its first stage and noise schedule, and the maps between images and samples.

    z = f E(x),    x = D(z / f)

with E and D the first stage and f the factor that gives latents unit variance. In a pixel model z
is x.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.errors import ModelError

Generators = torch.Generator | list[torch.Generator]


@dataclass(frozen=True)
class Pipe:
    """A model that generates.

    Attributes:
        unet: The denoiser, ``unet(x, t)``.
        vae: The first stage, a diffusers ``AutoencoderKL`` or ``VQModel``, or None for a pixel
            model.
        scheduler: diffusers scheduler with the noise schedule of the checkpoint.
        shape: Shape of one sample of the denoiser.
        name: Its name.
        scale_factor: Factor f from latents of the first stage to those of the denoiser; None if it
            is still to be measured by ``with_measured_factor``.
        text_encoder: ``text_encoder(prompts) -> (N, length, width)``, or None.
    """

    unet: nn.Module
    vae: nn.Module | None
    scheduler: Any
    shape: tuple[int, ...]
    name: str
    scale_factor: float | None = 1.0
    text_encoder: Any = None

    def encode(self, images: Tensor, generator: Generators | None = None) -> Tensor:
        """Encodes images ``(B, 3, H, W)`` in [-1, 1] into samples for the denoiser.

        Arguments:
            images: The images.
            generator: One, or one a sample, to sample the first stage's posterior; None takes the
                mean.

        Returns:
            ``(B, *shape)``.

        Raises:
            ModelError: The factor of the latents is not known.
        """
        if self.vae is None:
            return images
        return self._factor() * self._latents(images, generator)

    def decode(self, samples: Tensor) -> Tensor:
        """Decodes samples ``(B, *shape)`` into images ``(B, 3, H, W)``, around [-1, 1].

        Raises:
            ModelError: The factor of the latents is not known.
        """
        if self.vae is None:
            return samples
        decoded: Any = self.vae.decode(1 / self._factor() * samples)  # type: ignore[operator]
        return decoded.sample

    @torch.no_grad()
    def with_measured_factor(self, images: Tensor, generator: Generators | None = None) -> Pipe:
        """Returns the model with the factor that gives the latents of ``images`` unit variance.

        Latent diffusion measures it on the first batch of training with ``scale_by_std: true``.

        Arguments:
            images: Images ``(B, 3, H, W)`` in [-1, 1].
            generator: Samples the first stage's posterior, as in ``encode``.

        Raises:
            ModelError: It is a pixel model, or the latents do not vary.
        """
        if self.vae is None:
            raise ModelError("a pixel model has no latents", where=self.name)
        factor = 1 / float(self._latents(images, generator).std())
        if not 0 < factor < float("inf"):
            raise ModelError(
                f"a factor of {factor}", where=self.name, why="the latents do not vary"
            )
        self.vae.register_to_config(scaling_factor=factor)  # type: ignore[operator]
        return replace(self, scale_factor=factor)

    def _latents(self, images: Tensor, generator: Generators | None) -> Tensor:
        encoded: Any = self.vae.encode(images)  # type: ignore[operator, union-attr]
        if hasattr(encoded, "latents"):
            return encoded.latents
        if generator is None:
            return encoded.latent_dist.mode()
        return encoded.latent_dist.sample(generator)

    def _factor(self) -> float:
        if self.scale_factor is None:
            raise ModelError(
                "the factor of the latents is not known",
                where=self.name,
                why="the configuration has scale_by_std: true, and the model is not trained",
                fix="pipe.with_measured_factor(images), or model.params.scale_factor=VALUE",
            )
        return self.scale_factor
