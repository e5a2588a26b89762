"""Images of a diffusers pipeline, by prompts or without."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.calls import denoisers
from tdquant.calls.from_pipeline import Recording, quietly, record
from tdquant.calls.prompts import COUNT, FIRST
from tdquant.clock import is_quantized
from tdquant.diffusion.pictures import save_png, to_uint8
from tdquant.errors import ModelError
from tdquant.lab.evaluation.sampling import Sampling, Seen
from tdquant.lab.evaluation.subject import (
    describe_model,
    describe_scheduler,
    digest_of,
    frozen_of,
    running,
)
from tdquant.lab.runs.pictures import claim_folder, picture_path
from tdquant.support.progress import Bar


class PipelineGenerator:
    """Images of a diffusers pipeline.

    Arguments:
        pipeline: The pipeline; its denoisers may be quantized.
        name: What it is called.
        prompts: One image each, over and over if more are asked for; None for a pipeline that
            takes none.
        call: Further arguments of the pipeline's call.
    """

    def __init__(
        self,
        pipeline: Any,
        name: str,
        prompts: Sequence[str] | None = None,
        call: dict[str, Any] | None = None,
    ) -> None:
        self.pipeline, self.name, self.prompts = pipeline, name, prompts
        self.call = dict(call or {})
        self.parts = denoisers(pipeline)
        for part, module in self.parts.items():
            self.parts[part] = frozen_of(module)
            setattr(pipeline, part, self.parts[part])
        self.model = next(iter(self.parts.values()))
        digests = [digest_of(part) for part in self.parts.values()]
        together = hashlib.sha256("|".join(digests).encode()).hexdigest()[:16]
        self.digest = digests[0] if len(digests) == 1 else together
        vae = getattr(pipeline, "vae", None)
        self._first_stage = digest_of(vae) if isinstance(vae, nn.Module) else None
        self._running: dict[Sampling, dict[str, tuple[nn.Module, str]]] = {}

    def describe(self, source: str) -> dict[str, Any]:
        return describe_model(self.model, self.name, source, self.digest)

    def settings(self, sampling: Sampling) -> dict[str, Any]:
        texts = json.dumps(list(self.prompts)) if self.prompts is not None else None
        return {
            "model": self.digest,
            "first_stage": self._first_stage,
            "scheduler": describe_scheduler(self.pipeline.scheduler),
            "batch": sampling.batch,
            "backend": self._backend(sampling),
            "device": sampling.device.partition(":")[0],
            "shape": None,
            "prompts": texts and hashlib.sha256(texts.encode()).hexdigest()[:16],
            "call": self.call,
        }

    def _lowered_parts(self, sampling: Sampling) -> dict[str, tuple[nn.Module, str]]:
        """The frozen denoisers as they run, and the name of what runs each."""
        if sampling not in self._running:
            self._running[sampling] = {
                name: running(part, sampling.backend, None, 1, sampling.device)
                for name, part in self.parts.items()
                if is_quantized(part)
            }
        return self._running[sampling]

    def _backend(self, sampling: Sampling) -> str:
        """What runs the frozen denoisers: one name, as a rule."""
        chosen = dict.fromkeys(name for _, name in self._lowered_parts(sampling).values())
        return ", ".join(chosen) or "float"

    def size(self) -> tuple[int, int] | None:
        return None

    def texts(self, count: int) -> list[str]:
        """The prompt of every image."""
        assert self.prompts is not None
        return [self.prompts[i % len(self.prompts)] for i in range(count)]

    def write(
        self, folder: Path, count: int, sampling: Sampling, *, rank: int, world: int,
        progress: bool, seen: Seen,
    ) -> int:  # fmt: skip
        if count < 1:
            raise ModelError(f"{count} images", fix="at least 1")
        own = {"seed": sampling.seed, "steps": sampling.steps, "eta": sampling.eta}
        claim_folder(folder, own | self.settings(sampling))
        recording = self._recording(count, sampling)
        todo = []
        for k, given in enumerate(recording.arguments()):
            first, images = recording.runs[k][FIRST], recording.runs[k][COUNT]
            files = [picture_path(folder, i) for i in range(first, first + images)]
            if k % world == rank and not all(file.exists() for file in files):
                todo.append((given, files))
        if not todo:
            return 0
        bar, written = Bar("sampling", len(todo), show=progress and rank == 0), 0
        self.pipeline.to(sampling.device)
        with torch.no_grad(), quietly(self.pipeline), self._lowered(sampling):
            for given, files in todo:
                drawn = _pictures(self.pipeline(**given, return_dict=False)[0], self.name)
                if len(drawn) != len(files):
                    raise ModelError(
                        f"a run gives {len(drawn)} images in the place of {len(files)}",
                        where=self.name,
                        why="which noise an image has must not depend on how many come with it",
                        fix="arguments of the pipeline that give one image for each sample",
                    )
                for file, image in zip(files, drawn, strict=True):
                    if not file.exists():
                        save_png(image, file)
                        written += 1
                bar.advance()
                seen(written)
        bar.close()
        return written

    def _recording(self, count: int, sampling: Sampling) -> Recording:
        prompts: Any = count if self.prompts is None else self.texts(count)
        eta = {"eta": sampling.eta} if sampling.eta else {}
        return record(
            self.pipeline,
            prompts,
            steps=sampling.steps,
            batch=sampling.batch,
            seed=sampling.seed,
            progress=False,
            **{"output_type": "np", **eta, **self.call},
        )

    @contextlib.contextmanager
    def _lowered(self, sampling: Sampling) -> Iterator[None]:
        """While it is entered, the frozen denoisers of the pipeline run on their backends."""
        for name, (lowered, _) in self._lowered_parts(sampling).items():
            setattr(self.pipeline, name, lowered)
        try:
            yield
        finally:
            for name, part in self.parts.items():
                setattr(self.pipeline, name, part)

    def calls(self, count: int, steps: int, seed: int) -> Any:
        prompts: Any = count if self.prompts is None else self.texts(count)
        found = record(self.pipeline, prompts, steps=steps, seed=seed, progress=False, **self.call)
        return found[next(iter(self.parts))]

    def milliseconds(self, count: int, sampling: Sampling) -> float | None:
        return None


def _pictures(drawn: Any, name: str) -> Tensor:
    """What a pipeline gave as uint8 images ``(N, C, H, W)``."""
    pictures = torch.as_tensor(drawn)
    if pictures.ndim != 4 or pictures.shape[-1] not in (1, 3):
        raise ModelError(
            f"the pipeline gives {tuple(pictures.shape)}",
            where=name,
            why="images are (N, H, W, 3)",
            fix="a pipeline of images",
        )
    return to_uint8(pictures.permute(0, 3, 1, 2).float() * 2 - 1)
