"""How images are made, and what makes them.

Whatever it is, image i is ``000123.png``, its noise depends on the seed and on i alone, and its
batch too is fixed, so that any split over processes and restarts gives the same images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn

Seen = Callable[[int], None]


@dataclass(frozen=True)
class Sampling:
    """How images are made.

    Attributes:
        steps: Sampler steps.
        seed: Seed of all noise.
        batch: Images at a time, as it was asked for: fewer images than that are one batch of their
            own, and more of them go on in whole ones.
        eta: Share of DDIM's noise.
        backend: What runs a frozen model.
        device: Where.
    """

    steps: int = 50
    seed: int = 0
    batch: int = 64
    eta: float = 0.0
    backend: str = "auto"
    device: str = "cpu"


class Generator(Protocol):
    """What makes images.

    Attributes:
        name: What it is called.
        model: Its denoiser, float or frozen; the first one if there are several.
        digest: Digest of its denoisers.
    """

    name: str
    model: nn.Module
    digest: str

    def describe(self, source: str) -> dict[str, Any]:
        """What a record says of the model."""
        ...

    def settings(self, sampling: Sampling) -> dict[str, Any]:
        """What images depend on apart from the fields of ``sampling``, JSON-safe."""
        ...

    def size(self) -> tuple[int, int] | None:
        """Height and width of its images, where that is known before there are any."""
        ...

    def write(
        self, folder: Path, count: int, sampling: Sampling, *, rank: int, world: int,
        progress: bool, seen: Seen,
    ) -> int:  # fmt: skip
        """Writes this process's share of the images that are missing; how many those were."""
        ...

    def calls(self, count: int, steps: int, seed: int) -> Any:
        """Calls of the denoiser on trajectories of ``count`` samples."""
        ...

    def milliseconds(self, count: int, sampling: Sampling) -> float | None:
        """Median time of a call of the denoiser in a run of ``count`` images, where it can be
        called alone.
        """
        ...
