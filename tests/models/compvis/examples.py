"""Small configurations, state dicts and checkpoints in the published format."""

from collections import OrderedDict

import torch
from safetensors.torch import save_file

from tdquant.files.checkpoints import open_checkpoint
from tdquant.models import UNetModel
from tdquant.models.compvis.autoencoder import build_first_stage, to_published

BASE = {
    "image_size": 8,
    "in_channels": 3,
    "model_channels": 32,
    "out_channels": 3,
    "num_res_blocks": 1,
    "attention_resolutions": [2],
    "channel_mult": [1, 2],
    "num_heads": 2,
}
CASES = {
    "plain": {},
    "scale-shift": {"use_scale_shift_norm": True, "num_res_blocks": 2},
    "residual resampling": {"resblock_updown": True, "use_scale_shift_norm": True},
    "unlearned resampling": {"conv_resample": False, "channel_mult": [1, 2, 2]},
    "heads of a width": {
        "num_heads": -1,
        "num_head_channels": 16,
        "attention_resolutions": [1, 2],
    },
    "other heads on the way up": {"num_heads_upsample": 4},
    "newer attention": {"use_new_attention_order": True},
    "newer rule": {"legacy": False, "num_heads_upsample": 4},
    "newer rule, heads of a width": {"legacy": False, "num_head_channels": 16, "num_heads": 8},
    "classes": {"num_classes": 5},
    "one dimension": {"dims": 1},
    "context": {"use_spatial_transformer": True, "context_dim": 24, "transformer_depth": 2},
    "context, heads of a width": {
        "use_spatial_transformer": True,
        "context_dim": 24,
        "num_heads": -1,
        "num_head_channels": 16,
        "legacy": False,
    },
    "codebook entries": {"n_embed": 7},
    "everywhere": {"attention_resolutions": [1, 2, 4], "channel_mult": [1, 2, 2]},
}
UNET = {
    **BASE,
    "use_scale_shift_norm": True,
    "resblock_updown": True,
    "num_heads": -1,
    "num_head_channels": 32,
    "attention_resolutions": [1, 2],
}


def case(name):
    return {**BASE, **CASES[name]}


def inputs(config, batch=3, seed=0):
    """x, t (mixed), context and y for a UNet's configuration."""
    rng = torch.Generator().manual_seed(seed)
    side = [config["image_size"]] * config.get("dims", 2)
    x = torch.randn(batch, config["in_channels"], *side, generator=rng)
    t = torch.randint(0, 1000, (batch,), generator=rng)
    wide, classes = config.get("context_dim"), config.get("num_classes")
    context = torch.randn(batch, 5, wide, generator=rng) if wide else None
    y = torch.randint(0, classes, (batch,), generator=rng) if classes else None
    return x, t, context, y


def randomize(state, seed=0):
    """Weights as of a trained network: no layer zero, norms near one."""
    rng = torch.Generator().manual_seed(seed)
    out = {}
    for name, tensor in state.items():
        if name.endswith("bias"):
            out[name] = 0.1 * torch.randn(tensor.shape, generator=rng)
        elif tensor.ndim == 1:
            out[name] = 1 + 0.1 * torch.randn(tensor.shape, generator=rng)
        else:
            spread = tensor[0].numel() ** -0.5
            out[name] = spread * torch.randn(tensor.shape, generator=rng)
    return out


KL = {
    "double_z": True,
    "z_channels": 4,
    "resolution": 32,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 32,
    "ch_mult": [1, 2, 1],
    "num_res_blocks": 2,
    "attn_resolutions": [16],
    "dropout": 0.0,
}
VQ = {**KL, "double_z": False, "z_channels": 3, "attn_resolutions": []}


def node(kind, **params):
    return {"target": f"ldm.models.{kind}", "params": params}


LATENT = {**UNET, "in_channels": 4, "out_channels": 4}
KL_NODE = node("autoencoder.AutoencoderKL", ddconfig=KL, embed_dim=4)
VQ_NODE = node("autoencoder.VQModelInterface", ddconfig=VQ, embed_dim=3, n_embed=16)


def weights(unet=UNET, seed=0):
    """State dict of a trained UNet."""
    return randomize(UNetModel(**unet).state_dict(), seed)


def stage(of, seed=3):
    """State dict of a trained first stage with published names, for a node."""
    kind = of["target"].rpartition(".")[2]
    return randomize(to_published(build_first_stage(kind, of["params"], 1.0)), seed)


def write(path, state, **more):
    """Writes a checkpoint as its suffix says; torch's with ``more`` beside the state dict."""
    if path.suffix == ".safetensors":
        save_file({k: v.clone() for k, v in state.items()}, path)
    else:
        torch.save({"state_dict": OrderedDict(state), "global_step": 3, **more}, path)
    return path


def read(path):
    """The tensors of a checkpoint file."""
    with open_checkpoint(path) as found:
        return {name: tensor.read() for name, tensor in found.items()}


def config(unet=UNET, first_stage=None, **params):
    """A whole configuration as a dictionary; of a pixel model without a first stage."""
    kind = "DDPM" if first_stage is None else "LatentDiffusion"
    out = {
        "linear_start": 0.0015,
        "linear_end": 0.0205,
        "timesteps": 1000,
        "image_size": unet["image_size"],
        "channels": unet["in_channels"],
        "unet_config": {
            "target": "ldm.modules.diffusionmodules.openaimodel.UNetModel",
            "params": dict(unet),
        },
        **params,
    }
    if first_stage is not None:
        out["first_stage_config"] = first_stage
    return {"model": {"target": f"ldm.models.diffusion.ddpm.{kind}", "params": out}}


def checkpoint(unet, first_stage=None, ema=None, **more):
    """State dict of a checkpoint from parts with published names."""
    out = {f"model.diffusion_model.{k}": v for k, v in unet.items()}
    for name, tensor in (ema or {}).items():
        out["model_ema.diffusion_model" + name.replace(".", "")] = tensor
    if ema:
        out["model_ema.decay"] = torch.tensor(0.9999)
        out["model_ema.num_updates"] = torch.tensor(7)
    out |= {f"first_stage_model.{k}": v for k, v in (first_stage or {}).items()}
    return out | more


def quantized_layers(unet):
    """Paths that TDQ's authors quantize: all but the edges, the time MLP and its projections."""
    edges = ("input_blocks.0.0", "out.2", "time_embed", "label_emb")
    paths = [n.removesuffix(".weight") for n, w in unet.items() if n.endswith("weight")]
    return [
        p
        for p in paths
        if unet[p + ".weight"].ndim > 1 and not p.startswith(edges) and "emb_layers" not in p
    ]


def published(unet, config, bits_w=4, bits_a=4, dynamic=True, seed=0):
    """A UNet's float tensors with those of TDQ's quantized layers beside them; 32 bits: float."""
    rng = torch.Generator().manual_seed(seed)
    n_w, n_a = (0 if bits == 32 else 2**bits - 1 for bits in (bits_w, bits_a))
    out = dict(unet)
    for path in quantized_layers(unet):
        w = unet[path + ".weight"]
        after_silu = path.endswith(("in_layers.2", "out_layers.3"))
        codes = n_a - 1 if after_silu else n_a // 2 - 1
        step = 3.0 / max(codes, 1) * (0.8 + 0.4 * float(torch.rand((), generator=rng)))
        out[path + ".s"] = (w.abs().max() / max(n_w // 2 - 1, 1)).reshape(1)
        out[path + ".n_lv"] = torch.tensor(n_w)
        act = path + ".act_func."
        out[act + "s"] = torch.tensor([step])
        out[act + "b"] = torch.zeros(1)
        out[act + "n_lv"] = torch.tensor(n_a)
        out[act + "dynamic"] = torch.tensor([dynamic])
        widths = [config["model_channels"], 64, 64, 64, 1]
        for i, (a, b) in zip((0, 2, 4, 7), zip(widths, widths[1:]), strict=True):  # noqa: B905, RUF007
            name = f"{act}tdq_module.s_gen.{i}"
            out[name + ".weight"] = torch.randn(b, a, generator=rng) * a**-0.5
            out[name + ".bias"] = torch.randn(b, generator=rng) * 0.1
        out[name + ".weight"] *= 0.3
        out[name + ".bias"].fill_(torch.tensor(step).expm1().log())
    return out
