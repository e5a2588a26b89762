"""Images of a diffusers pipeline, with or without prompts."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.calls import Recording, denoisers, record_pipeline
from tdquant.calls.from_pipeline import quietly
from tdquant.calls.prompts import COUNT, FIRST
from tdquant.clock import is_quantized
from tdquant.diffusion.pictures import save_png, to_uint8
from tdquant.errors import ModelError
from tdquant.files.looking import exists
from tdquant.lab.evaluation.config import EvaluationConfig
from tdquant.lab.evaluation.generator import Generator, Sampling
from tdquant.lab.evaluation.subject import digest_of, frozen_of, running
from tdquant.lab.runs.pictures import claim_folder, is_claimed, picture_path
from tdquant.support.progress import Bar


class PipelineGenerator(Generator):
    """Images of a diffusers pipeline.

    Arguments:
        pipeline: The pipeline; its denoisers may be quantized.
        prompts: One image each, repeated if more images are made; None for a pipeline without
            prompts.
        call: Further arguments of the pipeline's call.

    Raises:
        ModelError: There are no prompts, though they are given, or no denoiser.
    """

    def __init__(
        self,
        pipeline: Any,
        prompts: Sequence[str] | None = None,
        call: dict[str, Any] | None = None,
    ) -> None:
        if prompts is not None and not prompts:
            raise ModelError("there are no prompts", fix="at least one")
        self.pipeline, self.prompts, self.call = pipeline, prompts, dict(call or {})
        self.parts = {name: frozen_of(part) for name, part in denoisers(pipeline).items()}
        for name, part in self.parts.items():
            setattr(pipeline, name, part)
        digests = [digest_of(part) for part in self.parts.values()]
        together = hashlib.sha256("|".join(digests).encode()).hexdigest()[:16]
        super().__init__(
            Path(str(getattr(pipeline, "name_or_path", "") or type(pipeline).__name__)).name,
            next(iter(self.parts.values())),
            digests[0] if len(digests) == 1 else together,
            getattr(pipeline, "vae", None),
            pipeline.scheduler,
        )
        self._running: dict[Sampling, dict[str, tuple[nn.Module, str]]] = {}

    def settings(self, sampling: Sampling) -> dict[str, Any]:
        texts = json.dumps(list(self.prompts)) if self.prompts is not None else None
        prompts = texts and hashlib.sha256(texts.encode()).hexdigest()[:16]
        return super().settings(sampling) | {"prompts": prompts, "call": self.call}

    def _lowered_parts(self, sampling: Sampling) -> dict[str, tuple[nn.Module, str]]:
        """The frozen denoisers as they run, and the name of what runs each."""
        if sampling not in self._running:
            self._running[sampling] = {
                name: running(part, sampling.backend, None, 1, sampling.device)
                for name, part in self.parts.items()
                if is_quantized(part)
            }
        return self._running[sampling]

    def backend(self, sampling: Sampling) -> str:
        chosen = dict.fromkeys(name for _, name in self._lowered_parts(sampling).values())
        return ", ".join(chosen) or "float"

    def write(
        self,
        folder: Path,
        count: int,
        sampling: Sampling,
        config: EvaluationConfig,
        on_batch: Callable[[int], None],
    ) -> int:
        if count < 1:
            raise ModelError(f"{count} images", fix="at least 1")
        is_claimed(folder, made_with := self.made_with(sampling))
        eta = {"eta": sampling.eta} if sampling.eta else {}
        options = {"output_type": "np", **eta, **self.call}
        recording = self._record(
            count, sampling.steps, sampling.seed, batch=sampling.batch, **options
        )
        todo = []
        for k, given in enumerate(recording.arguments()):
            first, images = recording.runs[k][FIRST], recording.runs[k][COUNT]
            files = [picture_path(folder, i) for i in range(first, first + images)]
            if k % config.world == config.rank and not all(exists(file) for file in files):
                todo.append((given, first, files))
        if not todo:
            return 0
        show = config.progress and config.rank == 0
        bar, written = Bar("sampling", len(todo), show=show), 0
        self.pipeline.to(sampling.device)
        with torch.no_grad(), quietly(self.pipeline), self._lowered(sampling):
            for given, first, files in todo:
                drawn = _pictures(
                    recording.draw(given | {"return_dict": False}, first)[0], self.name
                )
                if len(drawn) != len(files):
                    raise ModelError(
                        f"a run gives {len(drawn)} images in the place of {len(files)}",
                        where=self.name,
                        why="an image's noise must not depend on how many images come with it",
                        fix="arguments of the pipeline that give one image for each sample",
                    )
                # Not before there is an image: settings that fail leave the folder to others.
                claim_folder(folder, made_with)
                for file, image in zip(files, drawn, strict=True):
                    if not exists(file):
                        save_png(image, file)
                        written += 1
                bar.advance()
                on_batch(written)
        bar.close()
        return written

    def _record(self, count: int, steps: int, seed: int, **options: Any) -> Recording:
        prompts: Any = count
        if self.prompts is not None:
            prompts = [self.prompts[i % len(self.prompts)] for i in range(count)]
        return record_pipeline(
            self.pipeline, prompts, steps=steps, seed=seed, progress=False, **options
        )

    @contextlib.contextmanager
    def _lowered(self, sampling: Sampling) -> Iterator[None]:
        """Runs the frozen denoisers of the pipeline on their backends inside the context."""
        for name, (lowered, _) in self._lowered_parts(sampling).items():
            setattr(self.pipeline, name, lowered)
        try:
            yield
        finally:
            for name, part in self.parts.items():
                setattr(self.pipeline, name, part)

    def calls(self, count: int, steps: int, seed: int) -> Any:
        return self._record(count, steps, seed, **self.call)[next(iter(self.parts))]


def _pictures(drawn: Any, name: str) -> Tensor:
    """The output of a pipeline as uint8 images ``(N, C, H, W)``."""
    pictures = torch.as_tensor(drawn)
    if pictures.ndim != 4 or pictures.shape[-1] not in (1, 3):
        raise ModelError(
            f"the pipeline gives {tuple(pictures.shape)}",
            where=name,
            why="images are (N, H, W, 3)",
            fix="a pipeline of images",
        )
    return to_uint8(pictures.permute(0, 3, 1, 2).float() * 2 - 1)
