"""The UNet as diffusers' pipelines call it: ``unet(sample, timestep).sample``, with their
``config``, ``dtype`` and ``device``.

The module imports diffusers, so nothing imports it before it is asked for.
"""

from __future__ import annotations

from typing import Any

from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn


class DiffusersUNet(ModelMixin, ConfigMixin):
    """Wraps a latent-diffusion UNet for diffusers' pipelines.

    Arguments:
        unet: The UNet, float, quantized, frozen or compiled, with its ``config``. It is not
            copied.
    """

    config_name = "config.json"  # type: ignore[assignment]

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet
        options: Any = unet.config
        self.register_to_config(
            sample_size=options["image_size"],
            in_channels=options["in_channels"],
            out_channels=options["out_channels"],
        )

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor | None = None,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor]:
        """The UNet's prediction, as ``.sample`` or alone in a tuple."""
        out = self.unet(sample, timestep, context=encoder_hidden_states, y=class_labels)
        return UNet2DOutput(sample=out) if return_dict else (out,)
