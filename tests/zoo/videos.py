"""Transformers for videos."""

import torch

from tests.zoo.case import HEADS, B, case, mask
from tests.zoo.images import SANA, texts

LEVELS = {"times": "levels"}


def video(n, channels=4, frames=2, size=8):
    return {
        "hidden_states": n(B, channels, frames, size, size),
        "encoder_hidden_states": texts(n),
    }


_WAN = {
    **HEADS, "in_channels": 4, "out_channels": 4, "text_dim": 12, "freq_dim": 16, "ffn_dim": 32,
    "num_layers": 1, "rope_max_seq_len": 32,
}  # fmt: skip
_SEEN = {"image_dim": 10, "added_kv_proj_dim": 16}


def with_image(n):
    # The attention takes the last 512 tokens for the text.
    text = texts(n, length=512)
    return {
        **video(n), "encoder_hidden_states": text, "encoder_hidden_states_image": n(B, 5, 10),
    }  # fmt: skip


case("WanTransformer3DModel", _WAN, video)
case("WanTransformer3DModel", {**_WAN, **_SEEN}, with_image, "image")
case("ChronoEditTransformer3DModel", _WAN, video)
case("ChronoEditTransformer3DModel", {**_WAN, **_SEEN}, with_image, "image")
case("SkyReelsV2Transformer3DModel", {**_WAN, "inject_sample_info": True},
     lambda n: {**video(n), "fps": torch.tensor([1, 0])}, "frame rate")  # fmt: skip
case("SkyReelsV2Transformer3DModel", _WAN, video)
case(
    "WanVACETransformer3DModel",
    {**_WAN, "vace_layers": [0], "vace_in_channels": 6},
    lambda n: {**video(n), "control_hidden_states": n(B, 6, 2, 8, 8)},
)


def frames(n):
    return {"hidden_states": n(B, 2, 4, 8, 8), "encoder_hidden_states": texts(n)}


case(
    "AnyFlowTransformer3DModel",
    _WAN,
    frames,
    shape=(B, 2),
    also=(("r_timestep", 0.5),),
    **LEVELS,
)
case(
    "HeliosTransformer3DModel",
    {
        **{k: v for k, v in _WAN.items() if k != "rope_max_seq_len"},
        "rope_dim": (4, 2, 2),
    },
    lambda n: {
        **video(n), "indices_hidden_states": torch.arange(2).expand(B, 2).clone(),
        "indices_latents_history_short": torch.arange(1).expand(B, 1).clone(),
        "indices_latents_history_mid": torch.arange(2).expand(B, 2).clone(),
        "indices_latents_history_long": torch.arange(4).expand(B, 4).clone(),
        "latents_history_short": n(B, 4, 1, 8, 8), "latents_history_mid": n(B, 4, 2, 8, 8),
        "latents_history_long": n(B, 4, 4, 8, 8),
    },
)  # fmt: skip
case(
    "WanAnimateTransformer3DModel",
    {**_WAN, "in_channels": 12, "latent_channels": 4, "image_dim": 10, "added_kv_proj_dim": 16,
     "motion_encoder_channel_sizes": {str(2**i): 8 for i in range(2, 6)},
     "motion_encoder_size": 32, "motion_style_dim": 8, "motion_dim": 4, "motion_encoder_dim": 8,
     "face_encoder_hidden_dim": 8, "face_encoder_num_heads": 2, "inject_face_latents_blocks": 1},
    lambda n: {
        **with_image(n), "hidden_states": n(B, 12, 3, 8, 8),
        "pose_hidden_states": n(B, 4, 2, 8, 8),
        "face_pixel_values": n(B, 3, 5, 32, 32),
    },
)  # fmt: skip
_COGVIDEO = {
    **HEADS, "in_channels": 4, "out_channels": 4, "time_embed_dim": 16, "text_embed_dim": 12,
    "num_layers": 1, "sample_width": 8, "sample_height": 8, "sample_frames": 5,
    "max_text_seq_length": 6,
}  # fmt: skip


case("CogVideoXTransformer3DModel", _COGVIDEO, frames)
case(
    "CogVideoXTransformer3DModel",
    {**_COGVIDEO, "ofs_embed_dim": 16, "patch_size_t": 2, "patch_bias": False,
     "use_rotary_positional_embeddings": True},
    lambda n: {**frames(n), "ofs": torch.full((1,), 2.0),
               "image_rotary_emb": (n(16, 8).cos(), n(16, 8).sin())},
    "1.5, offset, rotary",
)  # fmt: skip
case("ConsisIDTransformer3DModel", _COGVIDEO, frames)
case(
    "ConsisIDTransformer3DModel",
    {**_COGVIDEO, "is_train_face": True, "cross_attn_interval": 1, "cross_attn_dim_head": 4,
     "cross_attn_num_heads": 2, "LFE_id_dim": 4, "LFE_vit_dim": 8, "LFE_depth": 5,
     "LFE_dim_head": 4, "LFE_num_heads": 2, "LFE_num_id_token": 2, "LFE_num_querie": 2,
     "LFE_output_dim": 10, "LFE_ff_mult": 1, "LFE_num_scale": 5},
    lambda n: {**frames(n), "id_cond": n(B, 4), "id_vit_hidden": [n(B, 3, 8) for _ in range(5)]},
    "face",
)  # fmt: skip
case(
    "LatteTransformer3DModel",
    {**HEADS, "in_channels": 4, "out_channels": 8, "num_layers": 1, "cross_attention_dim": 16,
     "attention_bias": True, "sample_size": 8, "patch_size": 2, "num_embeds_ada_norm": 1000,
     "norm_type": "ada_norm_single", "norm_elementwise_affine": False, "caption_channels": 12,
     "video_length": 2},
    video,
)  # fmt: skip
case(
    "AllegroTransformer3DModel",
    {**HEADS, "num_layers": 1, "sample_height": 8, "sample_width": 8,
     "sample_frames": 2, "caption_channels": 12, "attention_head_dim": 12,
     "cross_attention_dim": 24},
    lambda n: {
        **video(n), "attention_mask": torch.ones(B, 2, 8, 8), "encoder_attention_mask": mask(6, 4),
        "image_rotary_emb": (
            tuple((n(4, 4).cos(), n(4, 4).sin()) for _ in range(3)),
            tuple(n.below(4, 1, 32) for _ in range(3)),
        ),
    },
)  # fmt: skip
case(
    "EasyAnimateTransformer3DModel",
    {**HEADS, "in_channels": 4, "out_channels": 4, "patch_size": 2, "num_layers": 1,
     "mmdit_layers": 1, "time_embed_dim": 16, "text_embed_dim": 12, "add_norm_text_encoder": True,
     "attention_head_dim": 16},
    video,
)  # fmt: skip
_HUNYUAN = {
    **HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 1, "num_single_layers": 1,
    "num_refiner_layers": 1, "mlp_ratio": 2.0, "text_embed_dim": 12, "pooled_projection_dim": 10,
    "rope_axes_dim": (4, 2, 2),
}  # fmt: skip


def hunyuan(n):
    return {
        **video(n), "encoder_attention_mask": mask(6, 4), "pooled_projections": n(B, 10),
        "guidance": torch.full((B,), 6000.0),
    }  # fmt: skip


case("HunyuanVideoTransformer3DModel", _HUNYUAN, hunyuan, **LEVELS)
case(
    "HunyuanVideoTransformer3DModel",
    {**_HUNYUAN, "guidance_embeds": False, "image_condition_type": "token_replace"},
    lambda n: {k: v for k, v in hunyuan(n).items() if k != "guidance"},
    "image in the first frame",
    **LEVELS,
)
_HUNYUAN15 = {
    **HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 1, "num_refiner_layers": 1,
    "mlp_ratio": 2.0, "text_embed_dim": 12, "text_embed_2_dim": 10, "image_embed_dim": 10,
    "rope_axes_dim": (4, 2, 2), "target_size": 16,
}  # fmt: skip


def hunyuan15(n, image=1.0):
    return {
        **video(n), "encoder_attention_mask": mask(6, 4), "encoder_hidden_states_2": n(B, 5, 10),
        "encoder_attention_mask_2": mask(5, 3), "image_embeds": image * n(B, 3, 10),
    }  # fmt: skip


case("HunyuanVideo15Transformer3DModel", _HUNYUAN15, hunyuan15, **LEVELS)
case(
    "HunyuanVideo15Transformer3DModel",
    {**_HUNYUAN15, "task_type": "t2v"},
    lambda n: hunyuan15(n, 0.0),
    "text to video",
    **LEVELS,
)
case(
    "HunyuanVideoFramepackTransformer3DModel",
    {**_HUNYUAN, "has_image_proj": True, "image_proj_dim": 10, "has_clean_x_embedder": True},
    lambda n: {
        **hunyuan(n), "image_embeds": n(B, 3, 10),
        "indices_latents": torch.arange(2),
        "latents_clean": n(B, 4, 2, 8, 8),
        "indices_latents_clean": torch.arange(2),
        "latents_history_2x": n(B, 4, 2, 8, 8),
        "indices_latents_history_2x": torch.arange(2),
        "latents_history_4x": n(B, 4, 4, 8, 8),
        "indices_latents_history_4x": torch.arange(4),
    },
    **LEVELS,
)  # fmt: skip
case(
    "MotifVideoTransformer3DModel",
    {**HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 1, "num_single_layers": 2,
     "num_decoder_layers": 1, "mlp_ratio": 2.0, "text_embed_dim": 12, "image_embed_dim": 10,
     "rope_axes_dim": (4, 2, 2)},
    lambda n: {**video(n), "encoder_attention_mask": mask(6, 4), "image_embeds": n(B, 3, 10)},
    **LEVELS,
)  # fmt: skip
_KANDINSKY = {
    "in_visual_dim": 4, "in_text_dim": 12, "in_text_dim2": 10, "time_dim": 16, "out_visual_dim": 4,
    "model_dim": 16, "ff_dim": 32, "num_text_blocks": 1, "num_visual_blocks": 1,
    "axes_dims": (4, 2, 2),
}  # fmt: skip
case(
    "Kandinsky5Transformer3DModel",
    _KANDINSKY,
    lambda n: {
        "hidden_states": n(B, 2, 8, 8, 4), "encoder_hidden_states": texts(n),
        "pooled_projections": n(B, 10),
        "visual_rope_pos": [torch.arange(2), torch.arange(4), torch.arange(4)],
        "text_rope_pos": torch.arange(6),
    },
    **LEVELS,
)  # fmt: skip
case(
    "Kandinsky6Transformer3DModel",
    {**_KANDINSKY, "visual_cond": False, "in_audio_dim": 6, "out_audio_dim": 6},
    lambda n: {
        "hidden_states": n(B, 2, 8, 8, 4), "encoder_hidden_states": texts(n),
        "pooled_projections": n(B, 10), "audio_hidden_states": n(B, 5, 6),
    },
    **LEVELS,
)  # fmt: skip
case(
    "Kandinsky6SRTransformer3DModel",
    {"in_visual_dim": 4, "out_visual_dim": 4, "time_dim": 16, "model_dim": 16, "ff_dim": 32,
     "num_visual_blocks": 1, "axes_dims": (4, 2, 2), "nabla_window": (3, 3, 3)},
    lambda n: {"hidden_states": n(B, 1, 8, 8, 9)},
    **LEVELS,
)  # fmt: skip
_LTX = {
    **HEADS, "in_channels": 8, "out_channels": 8, "cross_attention_dim": 16, "num_layers": 1,
    "caption_channels": 12,
}  # fmt: skip
case(
    "LTXVideoTransformer3DModel",
    _LTX,
    lambda n: {
        "hidden_states": n(B, 32, 8), "encoder_hidden_states": texts(n),
        "encoder_attention_mask": mask(6, 4), "num_frames": 2, "height": 4, "width": 4,
    },
    **LEVELS,
)  # fmt: skip
_LTX2 = {
    **_LTX, "audio_in_channels": 8, "audio_out_channels": 8, "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 4, "audio_cross_attention_dim": 8,
}  # fmt: skip


def ltx2(n):
    return {
        "hidden_states": n(B, 32, 8), "audio_hidden_states": n(B, 5, 8),
        "encoder_hidden_states": texts(n), "audio_encoder_hidden_states": texts(n),
        "encoder_attention_mask": mask(6, 4, torch.long),
        "audio_encoder_attention_mask": mask(6, 4, torch.long),
        "num_frames": 2, "height": 4, "width": 4, "audio_num_frames": 5, "fps": 24.0,
    }  # fmt: skip


case("LTX2VideoTransformer3DModel", _LTX2, ltx2, **LEVELS)
case(
    "LTX2VideoTransformer3DModel",
    {**_LTX2, "gated_attn": True, "audio_gated_attn": True, "cross_attn_mod": True,
     "audio_cross_attn_mod": True, "rope_type": "split", "perturbed_attn": True},
    ltx2,
    "2.3, gates",
    also=(("sigma", 1.0),),
    **LEVELS,
)  # fmt: skip
case(
    "MochiTransformer3DModel",
    {**HEADS, "num_layers": 2, "pooled_projection_dim": 8, "in_channels": 4, "text_embed_dim": 16,
     "time_embed_dim": 8, "max_sequence_length": 6},
    lambda n: {
        "hidden_states": n(B, 4, 2, 8, 8), "encoder_hidden_states": n(B, 6, 16),
        "encoder_attention_mask": mask(6, 4),
    },
    **LEVELS,
)  # fmt: skip
_COSMOS = {
    **HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 1, "mlp_ratio": 2.0,
    "text_embed_dim": 12, "adaln_lora_dim": 4, "max_size": (4, 8, 8), "attention_head_dim": 16,
    "concat_padding_mask": False,
}  # fmt: skip
case("CosmosTransformer3DModel", _COSMOS, lambda n: {**video(n), "fps": 24}, **LEVELS)
case(
    "CosmosTransformer3DModel",
    {**_COSMOS, "in_channels": 5, "extra_pos_embed_type": None, "use_crossattn_projection": True,
     "crossattn_proj_in_channels": 12, "encoder_hidden_states_channels": 12},
    lambda n: {**video(n), "fps": 24, "condition_mask": torch.zeros(B, 1, 2, 8, 8)},
    "2.5, condition",
    times="0 to 1",
)  # fmt: skip
case(
    "SanaVideoTransformer3DModel",
    {**SANA, "num_layers": 1},
    lambda n: {**video(n), "encoder_attention_mask": mask(6, 4, torch.long)},
    **LEVELS,
)  # fmt: skip
