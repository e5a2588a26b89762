"""What generating takes: a denoiser, its first stage and its noise schedule, and the way between
images and what the denoiser sees.

    z = f E(x),    x = D(z / f)

with E and D the first stage and f the factor that gives latents unit variance. A pixel model has
neither, and z is x.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

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
        name: What it is called.
        scale_factor: Factor f from latents of the first stage to those of the denoiser.
    """

    unet: nn.Module
    vae: nn.Module | None
    scheduler: Any
    shape: tuple[int, ...]
    name: str
    scale_factor: float = 1.0

    def encode(self, images: Tensor, generator: Generators | None = None) -> Tensor:
        """What the denoiser is trained on, for images ``(B, 3, H, W)`` in [-1, 1].

        Arguments:
            images: The images.
            generator: Samples the first stage's posterior with it, or with one a sample; None
                takes the mean.

        Returns:
            ``(B, *shape)``.
        """
        if self.vae is None:
            return images
        encoded: Any = self.vae.encode(images)  # type: ignore[operator]
        if hasattr(encoded, "latents"):
            latents = encoded.latents
        elif generator is None:
            latents = encoded.latent_dist.mode()
        else:
            latents = encoded.latent_dist.sample(generator)
        return self.scale_factor * latents

    def decode(self, samples: Tensor) -> Tensor:
        """Images ``(B, 3, H, W)``, around [-1, 1], for samples ``(B, *shape)`` of the denoiser."""
        if self.vae is None:
            return samples
        decoded: Any = self.vae.decode(1 / self.scale_factor * samples)  # type: ignore[operator]
        return decoded.sample
