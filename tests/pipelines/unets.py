"""Tiny pipelines around UNets. Each function gives a pipeline and the arguments of one call."""

import diffusers
import torch
from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel

from tests.pipelines.parts import autoencoder, clip, embedding, model, quantizing_autoencoder

_BLOCKS = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 8,
}
_CROSS = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 4,
    "cross_attention_dim": 16,
}


def _conditional(**config):
    return model(diffusers.UNet2DConditionModel, **(_BLOCKS | _CROSS | config))


def _stable_diffusion(unet, scheduler, **more):
    encoder, tokenizer = clip()
    cls = (
        diffusers.StableDiffusionControlNetPipeline if more else diffusers.StableDiffusionPipeline
    )
    return cls(
        vae=autoencoder(),
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **more,
    )


_PROMPT = {
    "prompt": "a cat",
    "guidance_scale": 2.0,
    "height": 8,
    "width": 8,
    "num_inference_steps": 4,
}


def ddim():
    """Pixels, no condition: UNet2DModel."""
    unet = model(
        diffusers.UNet2DModel,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        **_BLOCKS,
    )
    pipe = diffusers.DDIMPipeline(unet, diffusers.DDIMScheduler())
    return pipe, {"batch_size": 2, "num_inference_steps": 4}


def consistency():
    """A consistency model: time is a continuous function of sigma."""
    unet = model(
        diffusers.UNet2DModel,
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        attention_head_dim=8,
        resnet_time_scale_shift="scale_shift",
        num_class_embeds=4,
        **_BLOCKS,
    )
    scheduler = diffusers.CMStochasticIterativeScheduler()
    pipe = diffusers.ConsistencyModelPipeline(unet, scheduler)
    return pipe, {"batch_size": 2, "num_inference_steps": 3, "class_labels": [1, 2]}


def stable_diffusion_1():
    """Guidance doubles the batch; a prompt through a real tokenizer and text encoder."""
    return _stable_diffusion(
        _conditional(), diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1)
    ), _PROMPT


def stable_diffusion_2():
    """Prediction of v, linear projections."""
    unet = _conditional(use_linear_projection=True, upcast_attention=True)
    scheduler = diffusers.DDIMScheduler(
        prediction_type="v_prediction", steps_offset=1, clip_sample=False
    )
    return _stable_diffusion(unet, scheduler), _PROMPT


def stable_diffusion_xl():
    """A pooled text embedding and image sizes on the time path."""
    unet = _conditional(
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=8 * 6 + 16,
    )
    pipe = diffusers.StableDiffusionXLPipeline(
        autoencoder(), None, None, None, None, unet, diffusers.EulerDiscreteScheduler()
    )
    texts = {"prompt_embeds": embedding(1, 6, 16), "pooled_prompt_embeds": embedding(1, 16)}
    none = {f"negative_{name}": torch.zeros_like(value) for name, value in texts.items()}
    return pipe, {"height": 8, "width": 8, "num_inference_steps": 4, **texts, **none}


def latent_consistency():
    """Guidance as an embedding beside the timestep."""
    encoder, tokenizer = clip()
    pipe = diffusers.LatentConsistencyModelPipeline(
        autoencoder(),
        encoder,
        tokenizer,
        _conditional(time_cond_proj_dim=16),
        diffusers.LCMScheduler(),
        None,
        None,
        requires_safety_checker=False,
    )
    return pipe, _PROMPT


def controlnet():
    """A quantized UNet that gets the residuals of a float ControlNet."""
    control = {name: value for name, value in _CROSS.items() if name != "up_block_types"}
    control |= {name: value for name, value in _BLOCKS.items() if name != "sample_size"}
    side = model(
        diffusers.ControlNetModel,
        seed=3,
        conditioning_embedding_out_channels=(4,),
        conditioning_channels=3,
        **control,
    )
    pipe = _stable_diffusion(_conditional(), diffusers.UniPCMultistepScheduler(), controlnet=side)
    return pipe, _PROMPT | {"image": embedding(1, 3, 8, 8).sigmoid()}


def kandinsky_2():
    """An image embedding in the place of text."""
    unet = _conditional(
        in_channels=4,
        out_channels=8,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        resnet_time_scale_shift="scale_shift",
        addition_embed_type="image",
        encoder_hid_dim_type="image_proj",
        encoder_hid_dim=16,
    )
    pipe = diffusers.KandinskyV22Pipeline(
        unet, diffusers.DDPMScheduler(clip_sample=True), quantizing_autoencoder()
    )
    images = {"image_embeds": embedding(1, 16), "negative_image_embeds": torch.zeros(1, 16)}
    return pipe, {"height": 16, "width": 16, "num_inference_steps": 3, **images}


def kandinsky_3():
    """Norms that follow time, and text pooled into the time path."""
    unet = model(
        diffusers.Kandinsky3UNet,
        time_embedding_dim=8,
        groups=4,
        attention_head_dim=4,
        layers_per_block=2,
        block_out_channels=(8, 16),
        cross_attention_dim=16,
        encoder_hid_dim=16,
    )
    pipe = diffusers.Kandinsky3Pipeline(
        None, None, unet, diffusers.DDPMScheduler(), quantizing_autoencoder()
    )
    mask = torch.ones(1, 6, dtype=torch.long)
    return pipe, {
        "prompt_embeds": embedding(1, 6, 16),
        "negative_prompt_embeds": torch.zeros(1, 6, 16),
        "attention_mask": mask,
        "negative_attention_mask": mask,
        "height": 32,
        "width": 32,
        "num_inference_steps": 3,
    }


def stable_cascade():
    """Time as a ratio of noise, under a name of its own."""
    decoder = model(
        diffusers.StableCascadeUNet,
        in_channels=4,
        out_channels=4,
        timestep_ratio_embedding_dim=8,
        patch_size=2,
        conditioning_dim=8,
        block_out_channels=(8, 16),
        num_attention_heads=(0, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        down_blocks_repeat_mappers=(1, 1),
        up_blocks_repeat_mappers=(1, 1),
        block_types_per_layer=(
            ("SDCascadeResBlock", "SDCascadeTimestepBlock"),
            ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),
        ),
        clip_text_pooled_in_channels=16,
        effnet_in_channels=4,
    )
    vqgan = model(
        PaellaVQModel,
        bottleneck_blocks=1,
        num_vq_embeddings=4,
        embed_dim=8,
    )
    pipe = diffusers.StableCascadeDecoderPipeline(
        decoder, None, None, diffusers.DDPMWuerstchenScheduler(), vqgan, latent_dim_scale=4.0
    )
    texts = {"prompt_embeds": embedding(1, 6, 16), "prompt_embeds_pooled": embedding(1, 1, 16)}
    none = {f"negative_{name}": torch.zeros_like(value) for name, value in texts.items()}
    images = embedding(1, 4, 4, 4)
    return pipe, {"image_embeddings": images, "num_inference_steps": 3} | texts | none | {
        "guidance_scale": 2.0
    }
