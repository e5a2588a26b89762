"""Transformers for images."""

import torch

from tests.zoo.case import HEADS, B, case, grid, mask

UNIT = {"times": "0 to 1"}
LEVELS = {"times": "levels"}


def texts(n, width=12, length=6):
    return n(B, length, width)


def patches(n, channels=16):
    """Rows of a 4x4 grid of patches, with their positions and those of 6 tokens of text."""
    return {
        "hidden_states": n(B, 16, channels),
        "encoder_hidden_states": texts(n),
        "img_ids": grid(4, 4),
        "txt_ids": torch.zeros(6, 3),
    }


def image(n, channels=4, size=8):
    return {"hidden_states": n(B, channels, size, size), "encoder_hidden_states": texts(n)}


case(
    "DiTTransformer2DModel",
    {**HEADS, "num_layers": 2, "sample_size": 8, "out_channels": 8, "norm_num_groups": 4},
    lambda n: {"hidden_states": n(B, 4, 8, 8), "class_labels": torch.tensor([1, 7])},
)
_PIXART = {
    **HEADS, "num_layers": 2, "sample_size": 8, "cross_attention_dim": 16, "caption_channels": 12,
    "norm_num_groups": 4,
}  # fmt: skip
case(
    "PixArtTransformer2DModel",
    {**_PIXART, "use_additional_conditions": False},
    lambda n: {**image(n), "encoder_attention_mask": mask(6, 4), "added_cond_kwargs": {}},
)
case(
    "PixArtTransformer2DModel",
    {**_PIXART, "use_additional_conditions": True, "num_attention_heads": 6,
     "cross_attention_dim": 48},
    lambda n: {
        **image(n),
        "encoder_attention_mask": mask(6, 4),
        "added_cond_kwargs": {
            "resolution": torch.full((B, 2), 64.0),
            "aspect_ratio": torch.ones(B, 1),
        },
    },
    "sizes",
)  # fmt: skip
SD3 = {
    **HEADS, "sample_size": 8, "in_channels": 4, "out_channels": 4, "num_layers": 2,
    "joint_attention_dim": 12, "caption_projection_dim": 16, "pooled_projection_dim": 10,
    "pos_embed_max_size": 8,
}  # fmt: skip
case(
    "SD3Transformer2DModel",
    SD3,
    lambda n: {**image(n), "pooled_projections": n(B, 10)},
    **LEVELS,
)
case(
    "SD3Transformer2DModel",
    {**SD3, "dual_attention_layers": (0,), "qk_norm": "rms_norm"},
    lambda n: {**image(n), "pooled_projections": n(B, 10)},
    "dual attention",
    **LEVELS,
)
_FLUX = {
    **HEADS, "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "joint_attention_dim": 12,
    "axes_dims_rope": (2, 2, 4),
}  # fmt: skip
case(
    "FluxTransformer2DModel",
    {**_FLUX, "pooled_projection_dim": 10},
    lambda n: {**patches(n), "pooled_projections": n(B, 10)},
    **UNIT,
)
case(
    "FluxTransformer2DModel",
    {**_FLUX, "pooled_projection_dim": 10, "guidance_embeds": True},
    lambda n: {
        **patches(n), "pooled_projections": n(B, 10), "guidance": torch.full((B,), 3.5),
        "controlnet_block_samples": [n(B, 16, 16)],
        "controlnet_single_block_samples": [n(B, 16, 16)],
    },
    "guidance, ControlNet",
    **UNIT,
)  # fmt: skip
_FLUX2 = {
    **HEADS, "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "joint_attention_dim": 12,
    "axes_dims_rope": (2, 2, 2, 2), "timestep_guidance_channels": 16,
}  # fmt: skip


def flux2(n):
    return {**patches(n), "img_ids": grid(4, 4, 4), "txt_ids": torch.zeros(6, 4)}


case("Flux2Transformer2DModel", {**_FLUX2, "guidance_embeds": False}, flux2, **UNIT)
case(
    "Flux2Transformer2DModel",
    _FLUX2,
    lambda n: {**flux2(n), "guidance": torch.full((B,), 3.5)},
    "guidance",
    **UNIT,
)
_FLUX3 = {
    **HEADS, "in_channels": 16, "cond_in_channels": 16, "num_layers": 1, "num_single_layers": 1,
    "joint_attention_dim": 12, "axes_dims_rope": (2, 2, 2, 2), "timestep_channels": 16,
}  # fmt: skip
case("Flux3Transformer2DModel", _FLUX3, flux2, **UNIT)
case(
    "Flux3Transformer2DModel",
    {**_FLUX3, "flow_map": True},
    lambda n: {
        **flux2(n), "image_cond_hidden_states": n(B, 16, 16), "image_cond_ids": grid(4, 4, 4),
    },
    "image, flow map",
    also=(("target_timestep", 0.5),),
    **UNIT,
)  # fmt: skip
case(
    "BriaTransformer2DModel",
    {**_FLUX, "axes_dims_rope": [2, 2, 4]},
    patches,
    **LEVELS,
)
case(
    "BriaFiboTransformer2DModel",
    {**_FLUX, "axes_dims_rope": [2, 2, 4], "text_encoder_dim": 8},
    lambda n: {**patches(n), "text_encoder_layers": [n(B, 6, 8), n(B, 6, 8)]},
    **LEVELS,
)
case(
    "BriaFibo2Transformer2DModel",
    {
        "in_channels": 4, "dim": 24, "n_layers": 1, "n_refiner_layers": 1, "n_heads": 2,
        "cap_feat_dim": 12, "injection_layer_ids": (0,), "perceiver_num_layers": 1,
        "min_num_gist_tokens": 4, "max_num_gist_tokens": 8, "gist_step": 4, "gist_min_text_len": 4,
        "gist_max_text_len": 8, "axes_dims": (4, 4, 4), "axes_lens": (64, 32, 32),
    },
    lambda n: {"hidden_states": n(B, 4, 8, 8), "encoder_hidden_states": n(B, 2, 6, 12)},
    **UNIT,
)  # fmt: skip
case(
    "ChromaTransformer2DModel",
    {**_FLUX, "approximator_num_channels": 8, "approximator_hidden_dim": 16,
     "approximator_layers": 1},
    lambda n: {**patches(n), "attention_mask": torch.ones(B, 22)},
    **UNIT,
)  # fmt: skip
case(
    "LongCatImageTransformer2DModel",
    {**_FLUX, "axes_dims_rope": [2, 2, 4], "pooled_projection_dim": 10},
    patches,
    **UNIT,
)
case("OvisImageTransformer2DModel", {**_FLUX, "out_channels": 16}, patches, **UNIT)
case(
    "AuraFlowTransformer2DModel",
    {**HEADS, "sample_size": 8, "num_mmdit_layers": 1, "num_single_dit_layers": 1,
     "joint_attention_dim": 12, "caption_projection_dim": 16, "pos_embed_max_size": 16},
    image,
    **UNIT,
)  # fmt: skip
SANA = {
    **HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 2, "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 8, "cross_attention_dim": 16, "caption_channels": 12,
    "sample_size": 8,
}  # fmt: skip
case(
    "SanaTransformer2DModel",
    SANA,
    lambda n: {**image(n), "encoder_attention_mask": mask(6, 4, torch.long)},
    **LEVELS,
)
case(
    "SanaTransformer2DModel",
    {**SANA, "guidance_embeds": True, "qk_norm": "rms_norm_across_heads"},
    lambda n: {**image(n), "guidance": torch.full((B,), 0.45)},
    "guidance",
    **UNIT,
)
case(
    "HunyuanDiT2DModel",
    {**HEADS, "in_channels": 4, "patch_size": 2, "sample_size": 8, "hidden_size": 16,
     "num_layers": 2, "mlp_ratio": 2.0, "cross_attention_dim": 12, "cross_attention_dim_t5": 16,
     "pooled_projection_dim": 8, "text_len": 6, "text_len_t5": 5},
    lambda n: {
        **image(n), "encoder_hidden_states_t5": n(B, 5, 16),
        "text_embedding_mask": mask(6, 4, torch.long),
        "text_embedding_mask_t5": mask(5, 3, torch.long),
        "image_meta_size": torch.full((B, 6), 64.0),
        "style": torch.zeros(B, dtype=torch.long),
        "image_rotary_emb": (n(16, 8).cos(), n(16, 8).sin()),
    },
    times="indices as floats",
)  # fmt: skip
case(
    "LuminaNextDiT2DModel",
    {"sample_size": 8, "hidden_size": 16, "num_layers": 1, "num_attention_heads": 2,
     "num_kv_heads": 1, "multiple_of": 16, "cross_attention_dim": 12, "learn_sigma": False},
    lambda n: {
        **image(n), "encoder_mask": mask(6, 4),
        "image_rotary_emb": torch.polar(torch.ones(4, 4, 4), n(4, 4, 4)),
        "cross_attention_kwargs": {},
    },
    **UNIT,
)  # fmt: skip
case(
    "Lumina2Transformer2DModel",
    {"sample_size": 4, "in_channels": 4, "hidden_size": 16, "num_layers": 1,
     "num_refiner_layers": 1, "num_attention_heads": 2, "num_kv_heads": 1, "multiple_of": 16,
     "axes_dim_rope": (4, 2, 2), "axes_lens": (64, 16, 16), "cap_feat_dim": 12},
    lambda n: {**image(n), "encoder_attention_mask": mask(6, 4)},
    **UNIT,
)  # fmt: skip
case(
    "CogView3PlusTransformer2DModel",
    {**HEADS, "in_channels": 4, "num_layers": 1, "out_channels": 4, "text_embed_dim": 12,
     "time_embed_dim": 16, "condition_dim": 8, "pos_embed_max_size": 8, "sample_size": 8},
    lambda n: {
        **image(n), "original_size": torch.full((B, 2), 64.0),
        "target_size": torch.full((B, 2), 64.0), "crop_coords": torch.zeros(B, 2),
    },
)  # fmt: skip
case(
    "CogView4Transformer2DModel",
    {**HEADS, "in_channels": 4, "num_layers": 1, "out_channels": 4, "text_embed_dim": 12,
     "time_embed_dim": 16, "condition_dim": 8, "pos_embed_max_size": 8, "sample_size": 8,
     "rope_axes_dim": (16, 16)},
    lambda n: {
        **image(n), "original_size": torch.full((B, 2), 64.0),
        "target_size": torch.full((B, 2), 64.0), "crop_coords": torch.zeros(B, 2),
    },
)  # fmt: skip
case(
    "GlmImageTransformer2DModel",
    {**HEADS, "in_channels": 4, "num_layers": 1, "out_channels": 4, "text_embed_dim": 12,
     "time_embed_dim": 16, "condition_dim": 8, "prior_vq_quantizer_codebook_size": 32},
    lambda n: {
        **image(n), "prior_token_id": n.below(32, B, 16),
        "prior_token_drop": torch.zeros(B, 16, dtype=torch.bool),
        "target_size": torch.full((B, 2), 64.0), "crop_coords": torch.zeros(B, 2),
    },
)  # fmt: skip
case(
    "ErnieImageTransformer2DModel",
    {"hidden_size": 16, "num_attention_heads": 2, "num_layers": 1, "ffn_hidden_size": 32,
     "in_channels": 4, "out_channels": 4, "text_in_dim": 12, "rope_axes_dim": (4, 2, 2)},
    lambda n: {
        "hidden_states": n(B, 4, 8, 8), "text_bth": texts(n), "text_lens": torch.tensor([6, 4]),
    },
    **LEVELS,
)  # fmt: skip
case(
    "HiDreamImageTransformer2DModel",
    {**HEADS, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 1,
     "num_single_layers": 1, "caption_channels": [12, 12], "text_emb_dim": 10,
     "num_routed_experts": 2, "num_activated_experts": 1, "axes_dims_rope": (4, 2, 2),
     "max_resolution": (8, 8), "llama_layers": [0, 1], "force_inference_output": True},
    lambda n: {
        "hidden_states": n(B, 4, 8, 8), "encoder_hidden_states_t5": texts(n),
        "encoder_hidden_states_llama3": n(2, B, 6, 12), "pooled_embeds": n(B, 10),
    },
    argument="timesteps",
    **LEVELS,
)  # fmt: skip
_HUNYUAN_IMAGE = {
    **HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 1, "num_single_layers": 1,
    "num_refiner_layers": 1, "mlp_ratio": 2.0, "text_embed_dim": 12, "rope_axes_dim": (4, 4),
}  # fmt: skip
case(
    "HunyuanImageTransformer2DModel",
    _HUNYUAN_IMAGE,
    lambda n: {**image(n), "encoder_attention_mask": mask(6, 4)},
    **LEVELS,
)
case(
    "HunyuanImageTransformer2DModel",
    {**_HUNYUAN_IMAGE, "guidance_embeds": True, "text_embed_2_dim": 10, "use_meanflow": True},
    lambda n: {
        **image(n), "encoder_attention_mask": mask(6, 4), "guidance": torch.full((B,), 3500.0),
        "encoder_hidden_states_2": n(B, 5, 10), "encoder_attention_mask_2": mask(5, 3),
    },
    "guidance, second text, mean flow",
    also=(("timestep_r", 0.5),),
    **LEVELS,
)  # fmt: skip
case(
    "Ideogram4Transformer2DModel",
    {"in_channels": 16, "num_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2,
     "intermediate_size": 32, "adaln_dim": 8, "llm_features_dim": 12, "mrope_section": (2, 1, 1)},
    lambda n: {
        "hidden_states": n(B, 22, 16), "encoder_hidden_states": n(B, 22, 12),
        "position_ids": torch.arange(22)[None, :, None].expand(B, 22, 3).clone(),
        "segment_ids": torch.zeros(B, 22, dtype=torch.long),
        "indicator": torch.tensor([[3] * 6 + [2] * 16] * B),
    },
    **UNIT,
)  # fmt: skip
_JOY = {
    "patch_size": [1, 2, 2], "in_channels": 4, "hidden_size": 16, "num_attention_heads": 2,
    "text_dim": 12, "mlp_width_ratio": 2.0, "num_layers": 1, "rope_dim_list": [4, 2, 2],
}  # fmt: skip
case(
    "JoyImageEditTransformer3DModel",
    _JOY,
    lambda n: {"hidden_states": n(B, 2, 4, 1, 8, 8), "encoder_hidden_states": texts(n)},
    **LEVELS,
)
case(
    "JoyImageEditPlusTransformer3DModel",
    _JOY,
    lambda n: {
        "hidden_states": n(B, 16, 4, 1, 2, 2), "encoder_hidden_states": texts(n),
        "encoder_hidden_states_mask": mask(6, 4), "shape_list": [[(1, 4, 4)]] * B,
    },
    **LEVELS,
)  # fmt: skip
case(
    "Krea2Transformer2DModel",
    {"in_channels": 16, "num_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2,
     "num_key_value_heads": 1, "intermediate_size": 32, "timestep_embed_dim": 16,
     "text_hidden_dim": 16, "num_text_layers": 2, "text_num_attention_heads": 2,
     "text_num_key_value_heads": 2, "text_intermediate_size": 32, "num_layerwise_text_blocks": 1,
     "num_refiner_text_blocks": 1, "axes_dims_rope": (4, 2, 2)},
    lambda n: {
        "hidden_states": n(B, 16, 16), "encoder_hidden_states": n(B, 6, 2, 16),
        "position_ids": torch.cat([torch.zeros(6, 3), grid(4, 4)]),
        "encoder_attention_mask": mask(6, 4),
    },
    **UNIT,
)  # fmt: skip
case(
    "NucleusMoEImageTransformer2DModel",
    {**HEADS, "in_channels": 16, "out_channels": 4, "num_layers": 2, "joint_attention_dim": 12,
     "axes_dims_rope": (2, 2, 4), "num_experts": 2, "moe_intermediate_dim": 16,
     "capacity_factors": [2.0, 2.0], "mlp_ratio": 12.0,
     "dense_moe_strategy": "leave_first_block_dense"},
    lambda n: {
        "hidden_states": n(B, 16, 16), "encoder_hidden_states": texts(n),
        "encoder_hidden_states_mask": mask(6, 4), "img_shapes": [(1, 4, 4)] * B,
    },
    unset=".experts.",
    **UNIT,
)  # fmt: skip
case(
    "OmniGenTransformer2DModel",
    {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2,
     "intermediate_size": 32, "num_layers": 1, "pad_token_id": 0, "vocab_size": 32,
     "max_position_embeddings": 64, "original_max_position_embeddings": 64,
     "pos_embed_max_size": 16, "time_step_dim": 16,
     "rope_scaling": {"long_factor": [1.0] * 4, "short_factor": [1.0] * 4}},
    lambda n: {
        "hidden_states": n(B, 4, 8, 8), "input_ids": n.below(32, B, 10),
        "input_img_latents": [n(1, 4, 4, 4)], "input_image_sizes": {1: [[2, 6]]},
        "attention_mask": torch.ones(B, 27, 27, dtype=torch.long),
        "position_ids": torch.arange(27).expand(B, 27).clone(),
    },
    **UNIT,
)  # fmt: skip
case(
    "PRXTransformer2DModel",
    {"in_channels": 4, "context_in_dim": 12, "hidden_size": 16, "mlp_ratio": 2.0, "num_heads": 2,
     "depth": 1, "axes_dim": [4, 4]},
    lambda n: {**image(n), "attention_mask": mask(6, 4)},
    **UNIT,
)  # fmt: skip
_QWEN = {
    **HEADS, "in_channels": 16, "out_channels": 4, "num_layers": 1, "joint_attention_dim": 12,
    "axes_dims_rope": (2, 2, 4),
}  # fmt: skip


def qwen(n):
    return {
        "hidden_states": n(B, 16, 16), "encoder_hidden_states": texts(n),
        "encoder_hidden_states_mask": mask(6, 4), "img_shapes": [[(1, 4, 4)]] * B,
    }  # fmt: skip


case("QwenImageTransformer2DModel", _QWEN, qwen, **UNIT)
case(
    "QwenImageTransformer2DModel",
    {**_QWEN, "zero_cond_t": True},
    lambda n: {**qwen(n), "hidden_states": n(B, 32, 16),
               "img_shapes": [[(1, 4, 4), (1, 4, 4)]] * B},
    "image to edit at time zero",
    **UNIT,
)  # fmt: skip
case(
    "QwenImage21Transformer2DModel",
    {**HEADS, "in_channels": 16, "out_channels": 16, "num_layers": 1, "context_in_dim": 12,
     "mlp_ratio": 2, "axes_dims_rope": (2, 2, 4)},
    lambda n: {
        "hidden_states": n(B, 16, 16), "encoder_hidden_states": texts(n),
        "encoder_hidden_states_mask": mask(6, 4), "img_shapes": [[(1, 4, 4)]] * B,
        "img_mask": torch.tensor([[False] * 6 + [True] * 4] * B),
    },
    **UNIT,
)  # fmt: skip
_Z_IMAGE = {
    "in_channels": 4, "dim": 16, "n_layers": 1, "n_refiner_layers": 1, "n_heads": 2,
    "n_kv_heads": 2, "cap_feat_dim": 12, "axes_dims": [4, 2, 2], "axes_lens": [128, 32, 32],
}  # fmt: skip
case(
    "ZImageTransformer2DModel",
    _Z_IMAGE,
    lambda n: {"x": [n(4, 1, 8, 8) for _ in range(B)], "cap_feats": [n(6, 12), n(4, 12)]},
    argument="t",
    **UNIT,
)
