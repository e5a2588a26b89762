"""UNets: the timestep's embedding goes into every residual block."""

from __future__ import annotations

from tdquant.families.base import Family

UNETS = [
    Family(
        "diffusers-unet",
        (
            "UNet2DModel",
            "UNet2DConditionModel",
            "UNet3DConditionModel",
            "PixelUNet",
        ),
        first=("conv_in", "*.conv_in"),
        last=("conv_out", "*.conv_out"),
        time_path=(
            "*time_embedding.*",
            "*add_embedding.*",
            "class_embedding*",
            "*.time_emb_proj",
        ),
        read_by_parent=("encoder_hid_proj.image_embeds",),
    ),
    Family(
        "compvis-unet",
        ("UNetModel", "DiffusersUNet"),
        first=("input_blocks.0.0", "*.input_blocks.0.0"),
        last=("out.*", "id_predictor.*", "unet.out.*", "unet.id_predictor.*"),
        time_path=("*time_embed.*", "*label_emb.*", "*.emb_layers.*"),
    ),
    Family(
        "kandinsky-3",
        ("Kandinsky3UNet",),
        first=("conv_in",),
        last=("conv_out",),
        time_path=("time_embedding.*", "add_time_condition.*", "*.context_mlp.*"),
    ),
    Family(
        "stable-cascade",
        ("StableCascadeUNet",),
        first=("embedding.1",),
        last=("clf.1",),
        time_path=("*.mapper", "*.mapper_sca", "*.mapper_crp"),
    ),
]
