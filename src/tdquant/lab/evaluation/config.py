"""Options of an evaluation beyond those that most callers set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tdquant.support.devices import default_device


@dataclass(frozen=True)
class JudgeConfig:
    """Options of ``evaluate_images``.

    Attributes:
        weights: File of the feature network's weights.
        resamples: What each interval is computed from: subsets of the images for metrics of sets,
            draws of the bootstrap for means over images or pairs. Fewer than 2 leave intervals
            out.
        resize: Side to which the centred square of every image is resized for the network, and of
            reference images in a folder too. Without it all must be square and of one size. Pairs
            are compared as they are.
        prompts: Prompt of each image: of existing images in their order; for a pipeline one image
            each, repeated if more images are made.
        clip: Folder of a CLIP model, to score images with their prompts.
        rank: Index of this process.
        world: Number of processes that share the work, on one machine or on several that share
            the folder.
        device: Where to run; None takes the process's GPU if there is one, else the CPU.
        command: The command that asked for it, for the record.
        progress: Draw bars.
    """

    weights: str | Path | None = None
    resamples: int = 100
    resize: int | None = None
    prompts: Sequence[str] | None = None
    clip: str | Path | None = None
    rank: int = 0
    world: int = 1
    device: str | None = None
    command: str = ""
    progress: bool = True

    @property
    def place(self) -> str:
        """The device, the default one resolved."""
        return self.device or str(default_device())


@dataclass(frozen=True)
class EvaluationConfig(JudgeConfig):
    """Options of ``evaluate``: those of ``JudgeConfig``, and how images are made and paired.

    Attributes:
        batch: Images at a time; None takes the batch of the folder's images, and 64 in a new one.
        eta: Share of DDIM's noise.
        backend: What runs a frozen model: a backend, ``"auto"``, ``"cpu"``, or ``"simulated"``.
        paired: Number of images that are compared with those of ``against``.
        lpips: Whether pairs are compared by LPIPS too, or the file of its AlexNet's weights.
        call: Further arguments of a diffusers pipeline's call.
        source: Where the model comes from, for the record.
    """

    batch: int | None = None
    eta: float = 0.0
    backend: str = "auto"
    paired: int = 256
    lpips: str | Path | bool = False
    call: dict[str, Any] | None = None
    source: str = ""
