"""Model families: what the layers and the timestep are called. Names only; nothing is imported.

A family says by glob patterns over module paths which layers come first and last and which embed
the time: those are the ones that low bit widths break, whatever the model. A model that no family
lists gets ``GENERIC``, the union of the usual names.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Family:
    """Names of one family of denoisers.

    Arguments:
        name: What it is called.
        classes: Class names of its root modules.
        first: Patterns of the layers that take the model's input.
        last: Patterns of the layers that give the model's output.
        time_path: Patterns of the layers that embed the timestep or project the embedding.
        timestep: Name of the timestep argument, or None to find it by its usual names.
    """

    name: str
    classes: tuple[str, ...]
    first: tuple[str, ...]
    last: tuple[str, ...]
    time_path: tuple[str, ...]
    timestep: str | None = None


FAMILIES: list[Family] = [
    Family(
        "diffusers-unet",
        (
            "UNet2DModel",
            "UNet2DConditionModel",
            "UNet1DModel",
            "UNet3DConditionModel",
            "PixelUNet",
        ),
        first=("conv_in", "*.conv_in"),
        last=("conv_out", "*.conv_out"),
        time_path=("*time_embedding.*", "*add_embedding.*", "*.time_emb_proj"),
    ),
    Family(
        "diffusers-transformer",
        ("DiTTransformer2DModel", "PixArtTransformer2DModel", "SD3Transformer2DModel"),
        first=("pos_embed.proj",),
        last=("proj_out*",),
        time_path=(
            "*time_text_embed.*",
            "*adaln_single.*",
            "*timestep_embedder.*",
            "*norm1.linear",
            "*.norm1.emb.*",
        ),
    ),
    Family(
        "compvis-unet",
        ("UNetModel", "DiffusersUNet"),
        first=("input_blocks.0.0", "*.input_blocks.0.0"),
        last=("out.*", "id_predictor.*", "unet.out.*", "unet.id_predictor.*"),
        time_path=("*time_embed.*", "*label_emb.*", "*.emb_layers.*"),
    ),
]

GENERIC = Family(
    "generic",
    (),
    first=(
        "conv_in",
        "*.conv_in",
        "proj_in",
        "input_blocks.0.0",
        "x_embedder*",
        "patch_embed*",
        "pos_embed.proj",
    ),
    last=("conv_out", "*.conv_out", "proj_out", "out.*", "final_layer.linear"),
    time_path=(
        "*time_emb*",
        "*time_mlp*",
        "*t_embedder.*",
        "*timestep*",
        "*emb_layers.*",
        "*sigma_emb*",
    ),
)


def family_of(model: nn.Module) -> Family:
    """The family that lists the model's class or one of its bases, or GENERIC."""
    names = {cls.__name__ for cls in type(model).__mro__}
    return next((family for family in FAMILIES if names & set(family.classes)), GENERIC)
