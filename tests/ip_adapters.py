"""Tiny IP-Adapters with random weights, in the form of their files."""

import torch

SIZE = 8
"""Numbers in the embedding of an image."""


def image_weights(unet, plus=False):
    """A plain IP-Adapter of four tokens for a UNet, or one whose projection is a resampler."""
    rng = torch.Generator().manual_seed(0)
    width = unet.config.cross_attention_dim
    weights = {}
    crossing = [n for n in unet.attn_processors if n.endswith("attn2.processor")]
    for key, name in enumerate(crossing):
        into = unet.get_submodule(name.removesuffix(".processor")).to_q.in_features
        for part in ("to_k_ip", "to_v_ip"):
            weight = 0.3 * torch.randn(into, width, generator=rng)
            weights[f"{2 * key + 1}.{part}.weight"] = weight
    projection = _resampler(width, rng) if plus else _projection(width, rng)
    return {"image_proj": projection, "ip_adapter": weights}


def _projection(width, rng):
    return {
        "proj.weight": 0.3 * torch.randn(4 * width, SIZE, generator=rng),
        "proj.bias": torch.zeros(4 * width),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }


def _resampler(width, rng, heads=64, layers=4):
    def linear(out, into):
        return torch.randn(out, into, generator=rng) / into**0.5

    def norm(name, width):
        return {f"{name}.weight": torch.ones(width), f"{name}.bias": torch.zeros(width)}

    out = {
        "latents": linear(4, heads)[None],
        "proj_in.weight": linear(heads, SIZE),
        "proj_in.bias": torch.zeros(heads),
        "proj_out.weight": linear(width, heads),
        "proj_out.bias": torch.zeros(width),
        **norm("norm_out", width),
    }
    for layer in (f"layers.{i}" for i in range(layers)):
        for name in ("0.norm1", "0.norm2", "1.0"):
            out |= norm(f"{layer}.{name}", heads)
        out[f"{layer}.0.to_q.weight"] = linear(heads, heads)
        out[f"{layer}.0.to_kv.weight"] = linear(2 * heads, heads)
        out[f"{layer}.0.to_out.weight"] = linear(heads, heads)
        out[f"{layer}.1.1.weight"] = linear(4 * heads, heads)
        out[f"{layer}.1.3.weight"] = linear(heads, 4 * heads)
    return out


def image(calls, seed, plus=False):
    """The argument that hands a model the embedding of an image."""
    rng = torch.Generator().manual_seed(seed)
    shape = (len(calls[0]["sample"]), 1, 5, SIZE) if plus else (len(calls[0]["sample"]), 1, SIZE)
    return {"added_cond_kwargs": {"image_embeds": [torch.randn(shape, generator=rng)]}}
