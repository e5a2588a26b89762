"""What makes images.

Image i is ``000123.png`` for every generator. Its noise depends on the seed and on i alone, and
its batch is fixed too, so that any split over processes and restarts gives the same images.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from tdquant.lab.evaluation.config import EvaluationConfig
from tdquant.lab.evaluation.subject import describe_model, describe_scheduler, digest_of


@dataclass(frozen=True)
class Sampling:
    """How images are made.

    Attributes:
        steps: Sampler steps.
        seed: Seed of all noise.
        batch: Images at a time. Fewer images than that are one smaller batch, and a larger run
            continues in whole ones.
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


class Generator(ABC):
    """Makes images of a float or frozen model.

    Arguments:
        name: Its name.
        model: Its denoiser; the first one if there are several.
        digest: Digest of its denoisers.
        first_stage: Its autoencoder, or None.
        scheduler: Its diffusers scheduler.
    """

    def __init__(
        self, name: str, model: nn.Module, digest: str, first_stage: Any, scheduler: Any
    ) -> None:
        self.name, self.model, self.digest = name, model, digest
        self._first_stage = digest_of(first_stage) if isinstance(first_stage, nn.Module) else None
        self._scheduler = describe_scheduler(scheduler)

    def describe(self, source: str) -> dict[str, Any]:
        """The model's description in a record."""
        return describe_model(self.model, self.name, source, self.digest)

    def settings(self, sampling: Sampling) -> dict[str, Any]:
        """What images depend on besides seed, steps and eta, JSON-safe."""
        return {
            "model": self.digest,
            "first_stage": self._first_stage,
            "scheduler": self._scheduler,
            "batch": sampling.batch,
            "backend": self.backend(sampling),
            "device": sampling.device.partition(":")[0],
            "shape": None,
            "prompts": None,
        }

    def made_with(self, sampling: Sampling) -> dict[str, Any]:
        """Everything that images depend on: content of ``samples.json``."""
        own = {"seed": sampling.seed, "steps": sampling.steps, "eta": sampling.eta}
        return own | self.settings(sampling)

    @abstractmethod
    def backend(self, sampling: Sampling) -> str:
        """Name of what runs the denoisers."""

    @abstractmethod
    def write(
        self,
        folder: Path,
        count: int,
        sampling: Sampling,
        config: EvaluationConfig,
        on_batch: Callable[[int], None],
    ) -> int:
        """Writes this process's share of the missing images, and returns their number; calls
        ``on_batch`` with it after every batch.
        """

    @abstractmethod
    def calls(self, count: int, steps: int, seed: int) -> Any:
        """Calls of the denoiser on trajectories of ``count`` samples."""

    def size(self) -> tuple[int, int] | None:
        """Height and width of its images, if known before there are any."""
        return None

    def milliseconds(self, count: int, sampling: Sampling) -> float | None:
        """Median time of a call of the denoiser in a run of ``count`` images, if it can be called
        alone.
        """
        return None
