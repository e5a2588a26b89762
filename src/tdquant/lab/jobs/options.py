"""Options and outcome of a quantizing job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from tdquant.choice import Budget
from tdquant.model_summary import Summary
from tdquant.recipe import Recipe

PICTURE = "comparison.png"


@dataclass(frozen=True)
class QuantizeOptions:
    """Options of ``run_job``.

    Arguments:
        model: Folder of a diffusers pipeline, or its name on the hub; a latent-diffusion
            checkpoint file; or a training run of a float model.
        out: Folder to write.
        recipe: Bits and scales.
        budget: What each denoiser may cost.
        prompts: Prompts, dictionaries of the pipeline's arguments, or a number of samples.
        call: Further arguments of the pipeline's call.
        steps: Sampler steps of the recorded runs.
        batch: Samples a run.
        seed: Seed of everything that is drawn.
        parts: Denoisers to quantize; all of them if empty.
        balance: Share of ranges that moves from inputs of linear layers into weights, or None.
        target_bits: Average bits of the weights to search a recipe for, or None.
        max_error: Predicted output error to search a recipe for, or None.
        reconstruct: ``"adaround"``, ``"gptq"``, or None.
        iterations: Updates of each block while reconstructing.
        correct: Whether to correct each denoiser's output over time.
        pictures: Samples to compare with the float pipeline's.
        dtype: Type to load the pipeline in.
        device: Where to run it.
        progress: Draw bars.
        config: Latent-diffusion configuration files of a checkpoint file.
        overrides: ``key.path=value`` changes to the configuration.
        ema: Take the averaged parameters of a checkpoint file or run.
        text_encoder: Folder of the text encoder of a text-to-image checkpoint.
    """

    model: str
    out: Path
    recipe: Recipe
    prompts: int | Sequence[str | dict[str, Any]]
    budget: Budget = field(default_factory=Budget)
    call: Mapping[str, Any] = field(default_factory=dict)
    steps: int = 50
    batch: int = 1
    seed: int = 0
    parts: tuple[str, ...] = ()
    balance: float | None = None
    target_bits: float | None = None
    max_error: float | None = None
    reconstruct: str | None = None
    iterations: int = 400
    correct: bool = False
    pictures: int = 4
    dtype: torch.dtype | None = None
    device: str = "cpu"
    progress: bool = True
    config: Sequence[str | Path] | None = None
    overrides: Sequence[str] = ()
    ema: bool = True
    text_encoder: str | Path | None = None


@dataclass(frozen=True)
class Outcome:
    """Results of a job.

    Attributes:
        out: The folder that was written.
        layers: Denoiser -> its layers.
        sizes: Denoiser -> bytes of its tensors, float in memory and quantized on disk.
        errors: Mean squared error and PSNR of pictures against those of the float model, in
            [0, 1]; None if none were compared.
        seconds: Wall time by stage.
    """

    out: Path
    layers: dict[str, Summary]
    sizes: dict[str, tuple[int, int]]
    errors: dict[str, float] | None
    seconds: dict[str, float]

    def __str__(self) -> str:
        lines = []
        for name, (before, after) in self.sizes.items():
            lines.append(f"{name}: {before / 1e6:.1f} MB -> {after / 1e6:.1f} MB on disk")
            lines += [f"  {line}" for line in self.layers[name].footer.splitlines()]
        if self.errors:
            lines.append(
                f"pictures: PSNR {self.errors['psnr']:.1f} dB against the float pipeline "
                f"({self.out / PICTURE})"
            )
        took = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in self.seconds.items())
        return "\n".join([*lines, f"time: {took}", f"saved to {self.out}"])
