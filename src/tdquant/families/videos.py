"""Transformers for videos."""

from __future__ import annotations

from tdquant.families.base import Family

VIDEOS = [
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
