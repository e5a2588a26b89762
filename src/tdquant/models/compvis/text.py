"""The text encoder of latent-diffusion checkpoints, from a folder of transformers or diffusers.

Checkpoints have the encoder's weights but not its vocabulary, so a folder is needed anyway.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.diffusion.guidance import Condition
from tdquant.errors import ModelError, first_line
from tdquant.files.looking import is_folder
from tdquant.support.optional import require

GUIDANCE = 7.5
"""Usual guidance scale of Stable Diffusion 1."""


class TextEncoder(nn.Module):
    """CLIP's text model behind its tokenizer: ``encoder(prompts) -> (N, length, width)``.

    Arguments:
        tokenizer: transformers' tokenizer.
        model: transformers' ``CLIPTextModel``.
        length: Tokens to which every prompt is cut or padded.
    """

    def __init__(self, tokenizer: Any, model: nn.Module, length: int) -> None:
        super().__init__()
        self.tokenizer, self.model, self.length = tokenizer, model, length

    def condition(self, prompts: Sequence[str], guidance: float | None = None) -> Condition:
        """Encodes prompts for sampling, with the empty prompt for guidance.

        Arguments:
            prompts: Image i takes prompt ``i % len(prompts)``.
            guidance: Guidance scale; GUIDANCE if None.
        """
        return Condition(self(prompts), self([""]), GUIDANCE if guidance is None else guidance)

    @torch.no_grad()
    def forward(self, prompts: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(
            list(prompts), truncation=True, max_length=self.length, padding="max_length",
            return_tensors="pt",
        )  # fmt: skip
        device = next(self.model.parameters()).device
        return self.model(input_ids=tokens["input_ids"].to(device)).last_hidden_state


def load_text_encoder(condition: Any, folder: str | os.PathLike[str]) -> TextEncoder:
    """Loads the text encoder that a configuration names, from a folder.

    Arguments:
        condition: The configuration's ``cond_stage_config``.
        folder: A CLIP model's folder, or a pipeline's with ``text_encoder`` and ``tokenizer``.

    Raises:
        ModelError: The configuration has no CLIP text encoder, or the folder holds none.
        MissingDependencyError: transformers is not installed.
    """
    target = condition.get("target") if isinstance(condition, Mapping) else condition
    target = str(target or "an unconditional model")
    place = Path(folder)
    if "CLIP" not in target:
        raise ModelError(
            f"a text encoder for {target}",
            where="text_encoder",
            why="only CLIP text encoders (FrozenCLIPEmbedder) can be taken from a folder",
            fix="leave text_encoder out, and pass embeddings as context=",
        )
    if not is_folder(place):
        raise ModelError("no such folder", where=str(place), fix="check the path")
    transformers = require("transformers", "pipelines")
    models, texts = place, place
    if is_folder(place / "text_encoder"):
        models, texts = place / "text_encoder", place / "tokenizer"
    try:
        tokenizer = transformers.CLIPTokenizer.from_pretrained(texts, local_files_only=True)
        model = transformers.CLIPTextModel.from_pretrained(models, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            "no CLIP text encoder",
            where=str(place),
            why=first_line(error),
            fix="a folder with config.json, model.safetensors, vocab.json and merges.txt, or that "
            "of a pipeline",
        ) from error
    params = condition.get("params") or {}
    longest = int(model.config.max_position_embeddings)
    length = min(int(params.get("max_length", longest)), longest)
    return TextEncoder(tokenizer, model.eval().requires_grad_(False), length).eval()
