"""UNets, ControlNets, and transformers for sound and embeddings."""

import torch

from tests.zoo.case import HEADS, B, case, mask
from tests.zoo.images import SANA, SD3, image, patches, qwen, texts

_UNET = {
    "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 8,
}  # fmt: skip
_CROSS = {
    **_UNET, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "cross_attention_dim": 12, "attention_head_dim": 4,
}  # fmt: skip
_CROSS_UNET = {**_CROSS, "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}


def latents(n, channels=4):
    return {"sample": n(B, channels, 8, 8), "encoder_hidden_states": texts(n)}


_XL = {
    "addition_embed_type": "text_time", "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 34,
}  # fmt: skip


def sizes(n):
    return {"text_embeds": n(B, 10), "time_ids": torch.tensor([[64, 64, 0, 0, 64, 64]] * B)}


case(
    "UNet2DModel",
    {**_UNET, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
     "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 4},
    lambda n: {"sample": n(B, 3, 8, 8)},
)  # fmt: skip
case(
    "UNet2DModel",
    {**_UNET, "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
     "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"), "attention_head_dim": 4,
     "num_class_embeds": 10, "resnet_time_scale_shift": "scale_shift"},
    lambda n: {"sample": n(B, 3, 8, 8), "class_labels": torch.tensor([1, 7])},
    "classes",
    times="levels",
)  # fmt: skip
case("UNet2DConditionModel", _CROSS_UNET, latents)
case(
    "UNet2DConditionModel",
    {**_CROSS_UNET, **_XL, "use_linear_projection": True},
    lambda n: {**latents(n), "added_cond_kwargs": sizes(n)},
    "sizes",
)
case(
    "UNet2DConditionModel",
    {**_CROSS_UNET, "time_cond_proj_dim": 8},
    lambda n: {
        **latents(n), "timestep_cond": n(B, 8), "mid_block_additional_residual": n(B, 16, 4, 4),
        "down_block_additional_residuals": (
            n(B, 8, 8, 8), n(B, 8, 8, 8), n(B, 8, 4, 4), n(B, 16, 4, 4)
        ),
    },
    "guidance, ControlNet",
)  # fmt: skip
case(
    "UNet2DConditionModel",
    {**_CROSS_UNET, "encoder_hid_dim": 10, "encoder_hid_dim_type": "text_image_proj",
     "addition_embed_type": "text_image", "cross_attention_dim": 16},
    lambda n: {
        "sample": n(B, 4, 8, 8), "encoder_hidden_states": n(B, 6, 10),
        "added_cond_kwargs": {"text_embeds": n(B, 16), "image_embeds": n(B, 16)},
    },
    "text and image",
)  # fmt: skip
_VIDEO = {
    **_UNET, "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"), "cross_attention_dim": 12,
    "attention_head_dim": 4,
}  # fmt: skip
case(
    "UNet3DConditionModel",
    _VIDEO,
    lambda n: {"sample": n(B, 4, 2, 8, 8), "encoder_hidden_states": texts(n)},
)
case(
    "I2VGenXLUNet",
    {**_VIDEO, "num_attention_heads": 2},
    lambda n: {
        "sample": n(B, 4, 2, 8, 8), "encoder_hidden_states": texts(n),
        "image_latents": n(B, 4, 2, 8, 8), "image_embeddings": n(B, 12),
        "fps": torch.tensor([8, 8]),
    },
)  # fmt: skip
_MOTION = {
    **_UNET, "cross_attention_dim": 12, "num_attention_heads": 2,
    "motion_num_attention_heads": 2,
    "motion_max_seq_length": 4,
    "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
    "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"),
}  # fmt: skip
case(
    "UNetMotionModel",
    _MOTION,
    lambda n: {"sample": n(B, 4, 2, 8, 8), "encoder_hidden_states": n(B * 2, 6, 12)},
)
case(
    "UNetSpatioTemporalConditionModel",
    {"sample_size": 8, "in_channels": 8, "block_out_channels": (32, 64), "layers_per_block": 1,
     "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
     "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
     "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 12,
     "cross_attention_dim": 12, "num_attention_heads": (2, 4), "num_frames": 2},
    lambda n: {
        "sample": n(B, 2, 8, 8, 8), "encoder_hidden_states": n(B, 1, 12),
        "added_time_ids": torch.tensor([[6.0, 127.0, 0.02]] * B),
    },
    times="levels",
)  # fmt: skip
case(
    "Kandinsky3UNet",
    {"time_embedding_dim": 8, "groups": 4, "attention_head_dim": 4, "layers_per_block": 2,
     "block_out_channels": (8, 16), "cross_attention_dim": 12, "encoder_hid_dim": 12},
    lambda n: {**latents(n), "encoder_attention_mask": mask(6, 4)},
)  # fmt: skip
case(
    "StableCascadeUNet",
    {"in_channels": 4, "out_channels": 4, "timestep_ratio_embedding_dim": 8, "patch_size": 1,
     "conditioning_dim": 16, "block_out_channels": (8, 16), "num_attention_heads": (0, 2),
     "down_num_layers_per_block": (1, 1), "up_num_layers_per_block": (1, 1),
     "block_types_per_layer": (("SDCascadeResBlock", "SDCascadeTimestepBlock"),
                               ("SDCascadeResBlock", "SDCascadeTimestepBlock",
                                "SDCascadeAttnBlock")),
     "clip_text_in_channels": 12, "clip_text_pooled_in_channels": 12, "clip_image_in_channels": 10,
     "dropout": (0.0, 0.0)},
    lambda n: {
        "sample": n(B, 4, 8, 8), "clip_text_pooled": n(B, 1, 12), "clip_text": texts(n),
        "clip_img": n(B, 1, 10),
    },
    argument="timestep_ratio",
    times="0 to 1",
)  # fmt: skip
case(
    "UNet1DModel",
    {"sample_size": 16, "in_channels": 4, "out_channels": 4, "time_embedding_type": "positional",
     "use_timestep_embedding": True, "down_block_types": ("DownResnetBlock1D",) * 2,
     "up_block_types": ("UpResnetBlock1D",), "mid_block_type": "MidResTemporalBlock1D",
     "out_block_type": "OutConv1DBlock", "block_out_channels": (8, 16), "act_fn": "swish",
     "norm_num_groups": 4, "freq_shift": 1.0, "flip_sin_to_cos": False},
    lambda n: {"sample": n(B, 4, 16)},
)  # fmt: skip
case(
    "UNet1DModel",
    {"sample_size": 64, "extra_in_channels": 64, "block_out_channels": (32, 32, 64),
     "down_block_types": ("DownBlock1DNoSkip", "DownBlock1D", "AttnDownBlock1D")},
    lambda n: {"sample": n(B, 2, 64)},
    "sound",
    times="0 to 1",
)  # fmt: skip
case(
    "PriorTransformer",
    {**HEADS, "num_layers": 1, "embedding_dim": 12, "num_embeddings": 6},
    lambda n: {
        "hidden_states": n(B, 12), "proj_embedding": n(B, 12),
        "encoder_hidden_states": n(B, 6, 12),
        "attention_mask": mask(6, 4),
    },
)  # fmt: skip
case(
    "Transformer2DModel",
    {**HEADS, "num_layers": 1, "in_channels": 4, "out_channels": 4, "sample_size": 8,
     "patch_size": 2, "num_embeds_ada_norm": 1000, "norm_type": "ada_norm_zero",
     "norm_num_groups": 4, "norm_elementwise_affine": False},
    lambda n: {"hidden_states": n(B, 4, 8, 8), "class_labels": torch.tensor([1, 7])},
)  # fmt: skip
case(
    "StableAudioDiTModel",
    {"sample_size": 16, "in_channels": 4, "out_channels": 4, "num_layers": 1,
     "attention_head_dim": 8, "num_attention_heads": 2, "num_key_value_attention_heads": 1,
     "cross_attention_dim": 8, "time_proj_dim": 8, "global_states_input_dim": 10,
     "cross_attention_input_dim": 12},
    lambda n: {
        "hidden_states": n(B, 4, 16), "encoder_hidden_states": texts(n),
        "global_hidden_states": n(B, 1, 10), "rotary_embedding": (n(17, 4), n(17, 4)),
    },
    times="0 to 1",
)  # fmt: skip
case(
    "StableAudio3DiTModel",
    {"io_channels": 4, "embed_dim": 16, "depth": 1, "num_heads": 2, "cond_token_dim": 12,
     "global_cond_dim": 10, "local_add_cond_dim": 5, "timestep_features_dim": 8, "ff_mult": 2.0,
     "num_memory_tokens": 2},
    lambda n: {
        "hidden_states": n(B, 4, 16), "encoder_hidden_states": texts(n),
        "global_hidden_states": n(B, 10), "encoder_attention_mask": mask(6, 4),
        "local_add_cond": n(B, 5, 16),
    },
    times="0 to 1",
)  # fmt: skip
case(
    "AceStepTransformer1DModel",
    {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
     "num_key_value_heads": 1, "head_dim": 8, "in_channels": 12, "audio_acoustic_hidden_dim": 4,
     "sliding_window": 4, "encoder_hidden_size": 12},
    lambda n: {
        "hidden_states": n(B, 16, 4), "encoder_hidden_states": texts(n),
        "context_latents": n(B, 16, 8),
    },
    also=(("timestep_r", 1.0),),
    times="0 to 1",
)  # fmt: skip
case(
    "MiniMaxMusic3Transformer1DModel",
    {"in_channels": 4, "condition_dim": 12, "num_layers": 1, "num_attention_heads": 2,
     "attention_head_dim": 8, "ff_inner_dim": 32, "rotary_dim": 4, "fourier_embedding_dim": 8},
    lambda n: {"hidden_states": n(B, 4, 16), "encoder_hidden_states": n(B, 16, 12)},
    times="0 to 1",
)  # fmt: skip
case(
    "LongCatAudioDiTTransformer",
    {"dit_dim": 16, "dit_depth": 1, "dit_heads": 2, "dit_text_dim": 12, "latent_dim": 4,
     "ff_mult": 2.0},
    lambda n: {
        "hidden_states": n(B, 16, 4), "encoder_hidden_states": texts(n),
        "encoder_attention_mask": mask(6, 4), "attention_mask": mask(16, 12),
        "latent_cond": n(B, 16, 4),
    },
    times="0 to 1",
)  # fmt: skip
_CONTROL = {
    **{k: v for k, v in _CROSS.items() if k != "sample_size"},
    "conditioning_embedding_out_channels": (4, 8),
}


def controlled(n):
    return {**latents(n), "controlnet_cond": n(B, 3, 16, 16)}


case("ControlNetModel", _CONTROL, controlled)
case(
    "ControlNetModel",
    {**_CONTROL, **_XL},
    lambda n: {**controlled(n), "added_cond_kwargs": sizes(n)},
    "sizes",
)
case(
    "ControlNetUnionModel",
    {**_CONTROL, **_XL, "num_trans_channel": 8, "num_trans_head": 2, "num_proj_channel": 8},
    lambda n: {
        **latents(n), "controlnet_cond": [n(B, 3, 16, 16)], "control_type_idx": [1],
        "control_type": torch.tensor([[0, 1, 0, 0, 0, 0]] * B), "added_cond_kwargs": {
            **sizes(n)},
    },
)  # fmt: skip
case(
    "SparseControlNetModel",
    {**{k: v for k, v in _MOTION.items() if k not in ("up_block_types", "sample_size")},
     "conditioning_embedding_out_channels": (4, 8)},
    lambda n: {
        "sample": n(B, 4, 2, 8, 8), "encoder_hidden_states": n(B * 2, 6, 12),
        "controlnet_cond": n(B, 4, 2, 8, 8), "conditioning_mask": torch.ones(B, 1, 2, 8, 8),
    },
)  # fmt: skip
case(
    "UNetControlNetXSModel",
    {**{k: v for k, v in _CROSS_UNET.items() if k[:9] not in ("attention", "layers_pe")},
     "num_attention_heads": 2, "ctrl_block_out_channels": (4, 8), "ctrl_num_attention_heads": 2,
     "ctrl_max_norm_num_groups": 4, "ctrl_conditioning_embedding_out_channels": (4, 8)},
    controlled,
)  # fmt: skip
_CONTROL_FLUX = {
    **HEADS, "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "joint_attention_dim": 12,
    "pooled_projection_dim": 10, "axes_dims_rope": [2, 2, 4],
}  # fmt: skip
case(
    "FluxControlNetModel",
    _CONTROL_FLUX,
    lambda n: {**patches(n), "pooled_projections": n(B, 10), "controlnet_cond": n(B, 16, 16)},
    times="0 to 1",
)
case(
    "FluxControlNetModel",
    {**_CONTROL_FLUX, "num_mode": 3, "guidance_embeds": True},
    lambda n: {
        **patches(n), "pooled_projections": n(B, 10), "controlnet_cond": n(B, 16, 16),
        "controlnet_mode": torch.tensor([[1]] * B), "guidance": torch.full((B,), 3.5),
    },
    "modes, guidance",
    times="0 to 1",
)  # fmt: skip
case(
    "QwenImageControlNetModel",
    {**HEADS, "in_channels": 16, "out_channels": 4, "num_layers": 1, "joint_attention_dim": 12,
     "axes_dims_rope": (2, 2, 4)},
    lambda n: {**qwen(n), "controlnet_cond": n(B, 16, 16)},
    times="0 to 1",
)  # fmt: skip
case(
    "SanaControlNetModel",
    {**SANA, "num_layers": 1},
    lambda n: {**image(n), "controlnet_cond": n(B, 4, 8, 8)},
    times="levels",
)  # fmt: skip
case(
    "SD3ControlNetModel",
    {**SD3, "num_layers": 1},
    lambda n: {**image(n), "pooled_projections": n(B, 10), "controlnet_cond": n(B, 4, 8, 8)},
    times="levels",
)  # fmt: skip
case(
    "HunyuanDiT2DControlNetModel",
    {**HEADS, "in_channels": 4, "patch_size": 2, "sample_size": 8, "hidden_size": 16,
     "transformer_num_layers": 4, "mlp_ratio": 2.0, "cross_attention_dim": 12,
     "cross_attention_dim_t5": 16, "pooled_projection_dim": 8, "text_len": 6, "text_len_t5": 5},
    lambda n: {
        **image(n), "encoder_hidden_states_t5": n(B, 5, 16),
        "text_embedding_mask": mask(6, 4, torch.long),
        "text_embedding_mask_t5": mask(5, 3, torch.long),
        "image_meta_size": torch.full((B, 6), 64.0),
        "style": torch.zeros(B, dtype=torch.long), "controlnet_cond": n(B, 4, 8, 8),
        "image_rotary_emb": (n(16, 8).cos(), n(16, 8).sin()),
    },
    times="indices as floats",
)  # fmt: skip
