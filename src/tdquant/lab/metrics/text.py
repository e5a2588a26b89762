r"""CLIP score: does an image show what its prompt says?

    score = 100 max(cos(E_image, E_text), 0)

with the embeddings of a CLIP model, which has to be given as a folder. Scores by two CLIP models
are not comparable; published ones are mostly by ``openai/clip-vit-base-patch16`` or
``-large-patch14``. torchmetrics' score is a mean over images, without intervals, and does not run
with transformers 5 (torchmetrics 1.9 takes the norm of an output object).

References:
    Hessel et al., CLIPScore: A Reference-free Evaluation Metric for Image Captioning, 2021
    (https://arxiv.org/abs/2104.08718), who scale by 2.5 where papers on generation scale by 100.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from tdquant.diffusion.pictures import to_uint8
from tdquant.errors import DataError
from tdquant.files.looking import is_folder
from tdquant.lab.metrics.features import rgb
from tdquant.support.optional import require

_CHUNK = 16


class ClipScore(nn.Module):
    """``images (N, 3, H, W), N texts -> scores (N,)`` in 0..100; the model is loaded once.

    Longer texts are cut to the model's context, 77 tokens as a rule.

    Arguments:
        folder: A CLIP model with its processor, as transformers saves them.

    Raises:
        DataError: The folder holds no such model.
        MissingDependencyError: The extra ``pipelines`` is not installed.
    """

    name = "clip"
    title = "CLIP score"
    better = "higher"

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        transformers = require("transformers", "pipelines")
        if not is_folder(folder):
            raise DataError(
                "no such folder", where=str(folder), fix="a folder of a CLIP model and processor"
            )
        try:
            self.model = transformers.CLIPModel.from_pretrained(folder, local_files_only=True)
            self.processor = transformers.CLIPProcessor.from_pretrained(
                folder, local_files_only=True
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                "no CLIP model with its processor",
                where=str(folder),
                why=(str(error) or type(error).__name__).splitlines()[0],
                fix="the folder of CLIPModel and CLIPProcessor.save_pretrained",
            ) from error
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """Scores of pairs.

        Arguments:
            images: ``(N, 3, H, W)`` or grey ``(N, 1, H, W)``, uint8 or in [-1, 1].
            texts: The prompt of each.

        Raises:
            DataError: Images and texts do not pair, or the images are of another form.
        """
        if isinstance(texts, str) or len(texts) != len(images):
            count = "one text" if isinstance(texts, str) else f"{len(texts)} texts"
            raise DataError(
                f"{len(images)} images and {count}",
                where="CLIP score",
                fix="a text for each image",
            )
        images = rgb(to_uint8(images), "CLIP score")
        starts = range(0, len(images), _CHUNK)
        return torch.cat(
            [self._scores(images[i : i + _CHUNK], list(texts[i : i + _CHUNK])) for i in starts]
        )

    def _scores(self, images: Tensor, texts: list[str]) -> Tensor:
        image = require("PIL.Image", "pipelines")
        inputs = self.processor(
            images=[image.fromarray(p.permute(1, 2, 0).cpu().numpy()) for p in images],
            text=texts,
            padding=True,
            truncation=True,
            max_length=self.model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        ).to(self.model.device)
        output = self.model(**inputs)
        cosine = (output.image_embeds * output.text_embeds).sum(1)
        return 100 * cosine.clamp_min(0)


def clip_score(images: Tensor, texts: Sequence[str], model_path: str | Path) -> Tensor:
    """CLIP score of each image with its text, ``(N,)``, by a folder's model: see ``ClipScore``."""
    return ClipScore(model_path)(images, texts)
