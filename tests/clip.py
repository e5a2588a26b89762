"""A CLIP model as people have it in a folder, small and random."""

import json

import torch
import transformers


def save_clip(path):
    """A CLIP of one layer with random weights, its processor, and a tokenizer of letters."""
    path.mkdir(exist_ok=True)
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (path / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(path, model_max_length=8)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    sizes["num_attention_heads"] = 2
    text = sizes | {
        "vocab_size": len(words),
        "max_position_embeddings": 8,
        "bos_token_id": len(words) - 2,
        "eos_token_id": len(words) - 1,
        "pad_token_id": len(words) - 1,
    }
    vision = sizes | {"image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    model = transformers.CLIPModel(config)
    with torch.no_grad():
        model.text_projection.weight.neg_()  # as drawn, no text would suit any image
    model.save_pretrained(path)
    images = transformers.CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    transformers.CLIPProcessor(images, tokenizer).save_pretrained(path)
    return path
