"""Tiny pipelines around transformers for images. Each function gives a pipeline and the arguments
of one call.
"""

import diffusers
import torch

from tests.pipelines.parts import autoencoder, embedding, model

_SIZE = {"height": 8, "width": 8, "num_inference_steps": 4}
_HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}


def _flow(**options):
    return diffusers.FlowMatchEulerDiscreteScheduler(**options)


def _texts(width, length=6, **names):
    """Embeddings of a prompt, and zeros for the negative one."""
    texts = {"prompt_embeds": embedding(1, length, width)} | names
    return texts | {f"negative_{name}": torch.zeros_like(value) for name, value in texts.items()}


def _masks(length=6, suffix=""):
    mask = torch.ones(1, length, dtype=torch.long)
    name = f"prompt_attention_mask{suffix}"
    return {name: mask, f"negative_{name}": mask}


def dit():
    """Class labels, adaLN-Zero."""
    transformer = model(
        diffusers.DiTTransformer2DModel, num_layers=2, sample_size=8, out_channels=8, **_HEADS,
        norm_num_groups=4,
    )  # fmt: skip
    pipe = diffusers.DiTPipeline(transformer, autoencoder(), diffusers.DDIMScheduler())
    return pipe, {"class_labels": [1, 7], "num_inference_steps": 4}


def pixart():
    """One adaLN for all blocks, cross attention."""
    transformer = model(
        diffusers.PixArtTransformer2DModel,
        num_layers=2,
        sample_size=8,
        cross_attention_dim=16,
        caption_channels=12,
        norm_num_groups=4,
        **_HEADS,
    )
    scheduler = diffusers.DPMSolverMultistepScheduler()
    pipe = diffusers.PixArtAlphaPipeline(None, None, autoencoder(), transformer, scheduler)
    call = {**_SIZE, **_texts(12), **_masks(), "use_resolution_binning": False}
    return pipe, call | {"negative_prompt": None}


def stable_diffusion_3():
    """Two streams in one attention, flow matching."""
    transformer = model(
        diffusers.SD3Transformer2DModel,
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=10,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
        **_HEADS,
    )
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer, _flow(shift=3.0), autoencoder(), None, None, None, None, None, None
    )
    return pipe, {**_SIZE, **_texts(12, pooled_prompt_embeds=embedding(1, 10))}


def flux():
    """Guidance as an embedding; time between 0 and 1."""
    transformer = model(
        diffusers.FluxTransformer2DModel,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        guidance_embeds=True,
        axes_dims_rope=(2, 2, 4),
        **_HEADS,
    )
    pipe = diffusers.FluxPipeline(_flow(), autoencoder(), None, None, None, None, transformer)
    texts = {"prompt_embeds": embedding(1, 6, 12), "pooled_prompt_embeds": embedding(1, 10)}
    return pipe, {**_SIZE, **texts}


def auraflow():
    """Joint and single blocks, register tokens."""
    transformer = model(
        diffusers.AuraFlowTransformer2DModel,
        sample_size=8,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        joint_attention_dim=12,
        caption_projection_dim=16,
        pos_embed_max_size=16,
        **_HEADS,
    )
    pipe = diffusers.AuraFlowPipeline(None, None, autoencoder(), transformer, _flow())
    return pipe, {**_SIZE, **_texts(12), **_masks()}


def sana():
    """Linear attention and convolutions between."""
    transformer = model(
        diffusers.SanaTransformer2DModel,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=12,
        sample_size=4,
        **_HEADS,
    )
    widths = {f"{side}_block_out_channels": (8, 8) for side in ("encoder", "decoder")}
    kinds = {f"{side}_block_types": ("ResBlock", "ResBlock") for side in ("encoder", "decoder")}
    depths = {f"{side}_layers_per_block": (1, 1) for side in ("encoder", "decoder")}
    scales = {f"{side}_qkv_multiscales": ((), ()) for side in ("encoder", "decoder")}
    vae = model(
        diffusers.AutoencoderDC, latent_channels=4, attention_head_dim=4,
        downsample_block_type="conv", **widths, **kinds, **depths, **scales,
    )  # fmt: skip
    pipe = diffusers.SanaPipeline(None, None, vae, transformer, _flow(shift=3.0))
    call = {**_SIZE, **_texts(12), **_masks(), "use_resolution_binning": False}
    return pipe, call | {"height": 32, "width": 32, "negative_prompt": None}


def hunyuan_dit():
    """Two texts, one of them pooled into the time path; long skips."""
    transformer = model(
        diffusers.HunyuanDiT2DModel,
        in_channels=4,
        patch_size=2,
        sample_size=8,
        hidden_size=16,
        num_layers=2,
        mlp_ratio=2.0,
        cross_attention_dim=12,
        cross_attention_dim_t5=16,
        pooled_projection_dim=8,
        text_len=6,
        text_len_t5=5,
        **_HEADS,
    )
    pipe = diffusers.HunyuanDiTPipeline(
        autoencoder(), None, None, transformer, diffusers.DDPMScheduler(), None, None,
        requires_safety_checker=False,
    )  # fmt: skip
    texts = _texts(12, prompt_embeds_2=embedding(1, 5, 16)) | _masks() | _masks(5, "_2")
    call = {**_SIZE, **texts, "use_resolution_binning": False, "height": 16, "width": 16}
    return pipe, call


def lumina_2():
    """Time runs upwards, from noise at 0 to the image at 1."""
    transformer = model(
        diffusers.Lumina2Transformer2DModel,
        sample_size=4,
        in_channels=4,
        hidden_size=16,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(64, 16, 16),
        cap_feat_dim=12,
    )
    pipe = diffusers.Lumina2Pipeline(transformer, _flow(), autoencoder(), None, None)
    masks = {name: mask.bool() for name, mask in _masks().items()}
    return pipe, {**_SIZE, **_texts(12), **masks, "height": 16, "width": 16}
