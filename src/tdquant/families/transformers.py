"""Transformers for images and videos: norms whose shift, scale and gate follow the timestep
(adaLN).
"""

from __future__ import annotations

from tdquant.families.base import Family

TRANSFORMERS = [
    Family(
        "dit",
        ("DiTTransformer2DModel",),
        first=("pos_embed.proj",),
        last=("proj_out_2",),
        time_path=("*.norm1.emb.*", "*.norm1.linear", "proj_out_1"),
    ),
    Family(
        "pixart",
        ("PixArtTransformer2DModel",),
        first=("pos_embed.proj",),
        last=("proj_out",),
        time_path=("adaln_single.*",),
    ),
    Family(
        "sd3",
        ("SD3Transformer2DModel",),
        first=("pos_embed.proj",),
        last=("proj_out",),
        time_path=("time_text_embed.*", "*.norm1*.linear", "norm_out.linear"),
    ),
    Family(
        "flux",
        ("FluxTransformer2DModel",),
        first=("x_embedder",),
        last=("proj_out",),
        time_path=("time_text_embed.*", "*.norm1*.linear", "*.norm.linear", "norm_out.linear"),
    ),
    Family(
        "auraflow",
        ("AuraFlowTransformer2DModel",),
        first=("pos_embed.proj",),
        last=("proj_out",),
        time_path=("time_step_proj.*", "*.norm1*.linear", "norm_out.linear"),
    ),
    Family(
        "sana",
        ("SanaTransformer2DModel",),
        first=("patch_embed.proj",),
        last=("proj_out",),
        time_path=("time_embed.*",),
    ),
    Family(
        "hunyuan-dit",
        ("HunyuanDiT2DModel",),
        first=("pos_embed.proj",),
        last=("proj_out",),
        time_path=("time_extra_emb.*", "*.norm1.linear", "norm_out.linear"),
        read_by_parent=("time_extra_emb.pooler.*",),
    ),
    Family(
        "lumina-2",
        ("Lumina2Transformer2DModel",),
        first=("x_embedder",),
        last=("norm_out.linear_2",),
        time_path=(
            "time_caption_embed.timestep_embedder.*",
            "*.norm1.linear",
            "norm_out.linear_1",
        ),
    ),
    Family(
        "wan",
        ("WanTransformer3DModel",),
        first=("patch_embedding",),
        last=("proj_out",),
        time_path=("condition_embedder.time_*",),
    ),
    Family(
        "cogvideox",
        ("CogVideoXTransformer3DModel",),
        first=("patch_embed.proj",),
        last=("proj_out",),
        time_path=("time_embedding.*", "ofs_embedding.*", "*.norm?.linear", "norm_out.linear"),
    ),
    Family(
        "ltx",
        ("LTXVideoTransformer3DModel",),
        first=("proj_in",),
        last=("proj_out",),
        time_path=("time_embed.*",),
    ),
]
