"""A Flux-like transformer with random bfloat16 weights in shards, never whole in memory; and what
quantizing it takes.

    python -m tests.integrations.flux_shards DIR OUT    prints JSON: peak in bytes, parameters
"""

import json
import re
import sys
from functools import partial
from pathlib import Path

import torch

from tdquant.files.checkpoints import LazyTensor
from tdquant.files.checkpoints.safetensors_format import write_safetensors

NAME = "diffusion_pytorch_model"
TINY = {
    "num_layers": 2, "num_single_layers": 4, "num_attention_heads": 4, "attention_head_dim": 32,
    "joint_attention_dim": 64, "pooled_projection_dim": 32, "axes_dims_rope": (8, 12, 12),
}  # fmt: skip
TWO_BILLION = {"num_layers": 2, "num_single_layers": 9}  # of 19 and 38, as wide as Flux


def write(folder, config, shard_bytes):
    """Writes the checkpoint; returns the number of its parameters."""
    from accelerate import init_empty_weights
    from diffusers import FluxTransformer2DModel

    with init_empty_weights():
        model = FluxTransformer2DModel(**config)
    model.save_config(folder)
    shards, size = [{}], 0
    for seed, (name, value) in enumerate(model.state_dict().items()):
        shape, dtype = value.shape, torch.bfloat16
        if size + 2 * value.numel() > shard_bytes and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = LazyTensor(shape, dtype, partial(_draw, shape, seed))
        size += shards[-1][name].nbytes
    files = {}
    for i, tensors in enumerate(shards):
        file = f"{NAME}-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(tensors, folder / file, {"format": "pt"})
        files |= dict.fromkeys(tensors, file)
    count = sum(value.numel() for value in model.state_dict().values())
    index = {"metadata": {"total_size": 2 * count}, "weight_map": files}
    (folder / f"{NAME}.safetensors.index.json").write_text(json.dumps(index))
    return count


def _draw(shape, seed):
    rng = torch.Generator().manual_seed(seed)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=rng)


def calls(model, count=2):
    """Calls of a Flux-like transformer on 4x4 tokens."""
    rng = torch.Generator().manual_seed(0)
    config = model.config

    def noise(*shape):
        return torch.randn(shape, generator=rng).to(model.dtype)

    return [
        {
            "hidden_states": noise(1, 16, config.in_channels),
            "encoder_hidden_states": noise(1, 8, config.joint_attention_dim),
            "pooled_projections": noise(1, config.pooled_projection_dim),
            "timestep": torch.tensor([(i + 0.5) / count]),
            "img_ids": torch.zeros(16, 3),
            "txt_ids": torch.zeros(8, 3),
            "return_dict": False,
        }
        for i in range(count)
    ]


def load(folder, **options):
    from diffusers import FluxTransformer2DModel

    from tdquant.integrations.diffusers import TDQConfig

    config = TDQConfig(frozen_weights=True, **options)
    return FluxTransformer2DModel.from_pretrained(
        folder, dtype=torch.bfloat16, quantization_config=config
    )


def main():
    import tdquant as tdq

    model = load(Path(sys.argv[1]), weights=4, activations=32)
    tdq.save(model, sys.argv[2])
    status = Path("/proc/self/status").read_text()
    peak = int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024
    print(json.dumps({"peak": peak, "parameters": sum(p.numel() for p in model.parameters())}))


if __name__ == "__main__":
    main()
