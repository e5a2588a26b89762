"""What tiny pipelines are made of: models with random weights, and embeddings of no prompt."""

import json
import tempfile
from pathlib import Path

import diffusers
import torch
import transformers


def model(cls, seed=0, **config):
    """A model with random weights everywhere: also where its class starts from zeros."""
    torch.manual_seed(seed)
    made = cls(**config).eval()
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(0, 0.1, generator=rng)
    return made


def embedding(*shape, seed=1):
    """A text embedding drawn at random."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def autoencoder(**config):
    """An autoencoder whose latents have the size of the image."""
    options = {"block_out_channels": (8,), "norm_num_groups": 4, "latent_channels": 4}
    options |= {"shift_factor": 0.0, "scaling_factor": 0.5}
    return model(diffusers.AutoencoderKL, **(options | config))


def quantizing_autoencoder():
    return model(
        diffusers.VQModel,
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        norm_num_groups=4,
        latent_channels=4,
        num_vq_embeddings=8,
    )


def clip(width=16, projection=None):
    """A CLIP text encoder of two layers, with a projection if its size is given, and a tokenizer
    of letters.
    """
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
        Path(folder, "merges.txt").write_text("#version: 0.2\n")
        tokenizer = transformers.CLIPTokenizer.from_pretrained(folder, model_max_length=8)
    config = transformers.CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
        bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1,
        pad_token_id=len(words) - 1,
        **({} if projection is None else {"projection_dim": projection}),
    )
    cls = transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel
    return model(cls, config=config), tokenizer


def t5(width=12):
    """A T5 encoder of two layers and a tokenizer of letters."""
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    tokenizer = transformers.T5Tokenizer(
        vocab=[*pieces, *((c, -3.0) for c in letters)], extra_ids=0, model_max_length=16
    )
    config = transformers.T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=4,
        d_ff=16,
        num_layers=2,
        num_heads=2,
        feed_forward_proj="gated-gelu",
    )
    return model(transformers.T5EncoderModel, config=config), tokenizer
