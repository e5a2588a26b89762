"""Tiny pipelines for videos. Each function gives a pipeline and the arguments of one call."""

import diffusers
import torch

from tests.pipelines.parts import embedding, model

_VIDEO = {"height": 16, "width": 16, "num_inference_steps": 3}


def _texts(width, length=6):
    text = embedding(1, length, width)
    return {"prompt_embeds": text, "negative_prompt_embeds": torch.zeros_like(text)}


def _wan_transformer(seed=0):
    return model(
        diffusers.WanTransformer3DModel,
        seed=seed,
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=12,
        freq_dim=16,
        ffn_dim=24,
        num_layers=1,
        rope_max_seq_len=32,
    )


def _wan(**parts):
    vae = model(
        diffusers.AutoencoderKLWan,
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipe = diffusers.WanPipeline(
        None, None, vae, scheduler, transformer=_wan_transformer(), **parts
    )
    return pipe, {**_VIDEO, **_texts(12), "num_frames": 5, "output_type": "latent"}


def wan():
    """Text to video by flow matching."""
    return _wan()


def wan_of_two():
    """Two denoisers, one for high and one for low noise."""
    pipe, call = _wan(transformer_2=_wan_transformer(seed=1), boundary_ratio=0.8)
    return pipe, call | {"num_inference_steps": 4}


def wan_by_token():
    """A timestep for each token, as ``(B, N)``."""
    return _wan(expand_timesteps=True)


def cogvideox():
    """Text and video in one sequence."""
    transformer = model(
        diffusers.CogVideoXTransformer3DModel,
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=12,
        num_layers=1,
        sample_width=2,
        sample_height=2,
        sample_frames=9,
        max_text_seq_length=6,
    )
    vae = model(
        diffusers.AutoencoderKLCogVideoX,
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    )
    pipe = diffusers.CogVideoXPipeline(
        None, None, vae, transformer, diffusers.CogVideoXDDIMScheduler()
    )
    return pipe, {**_VIDEO, **_texts(12), "num_frames": 9, "output_type": "latent"}


def ltx():
    """Latents as a sequence, one adaLN for all blocks."""
    transformer = model(
        diffusers.LTXVideoTransformer3DModel,
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=1,
        caption_channels=12,
    )
    vae = model(
        diffusers.AutoencoderKLLTXVideo,
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        patch_size=1,
        encoder_causal=True,
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    pipe = diffusers.LTXPipeline(scheduler, vae, None, None, transformer)
    mask = torch.ones(1, 6, dtype=torch.long)
    masks = {"prompt_attention_mask": mask, "negative_prompt_attention_mask": mask}
    return pipe, {
        **_VIDEO,
        **_texts(12),
        **masks,
        "num_frames": 9,
        "height": 32,
        "width": 32,
        "output_type": "latent",
    }
