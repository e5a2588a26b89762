"""The description of a family, and the usual names for models that no family lists."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """Names of one family of denoisers.

    Arguments:
        name: Its name.
        classes: Class names of its root modules.
        first: Patterns of the layers that take the model's input.
        last: Patterns of the layers that give the model's output.
        time_path: Patterns of the layers that embed the timestep and what is added to it, or
            project the embedding.
        timestep: Name of the timestep argument, or None to find it by its usual names.
        read_by_parent: Patterns of layers whose weights their parent reads or multiplies itself,
            without calling them. They stay in float.
    """

    name: str
    classes: tuple[str, ...]
    first: tuple[str, ...]
    last: tuple[str, ...]
    time_path: tuple[str, ...]
    timestep: str | None = None
    read_by_parent: tuple[str, ...] = ()


GENERIC = Family(
    "generic",
    (),
    first=(
        "conv_in",
        "*.conv_in",
        "proj_in",
        "input_blocks.0.0",
        "x_embedder*",
        "patch_embed*.proj",
        "patch_embedding",
        "pos_embed.proj",
    ),
    last=("conv_out", "*.conv_out", "proj_out", "out.*", "final_layer.linear"),
    time_path=(
        "*time_emb*",
        "*time_mlp*",
        "*time_proj*",
        "*time_text_embed.*",
        "*t_embedder.*",
        "*timestep*",
        "*emb_layers.*",
        "*sigma_emb*",
        "*guidance_embed*",
        "*adaln*",
        "*adaLN_modulation.*",
        "*norm1.linear",
        "*norm1_context.linear",
        "norm_out.linear",
    ),
)
