"""From what a user has, a pipe or a pipeline, to what makes images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tdquant.errors import ModelError
from tdquant.lab.evaluation.pipelines import PipelineGenerator
from tdquant.lab.evaluation.pipes import PipeGenerator
from tdquant.lab.evaluation.sampling import Generator
from tdquant.models import Pipe


def generator_of(
    pipe: Any, prompts: Sequence[str] | None = None, call: dict[str, Any] | None = None
) -> Generator:
    """What makes images of a pipe or pipeline.

    Raises:
        ModelError: Prompts for a pipe that takes none, none for one that needs them, or no
            denoiser.
    """
    if isinstance(pipe, Pipe):
        if prompts is not None:
            raise ModelError("prompts for a model that takes none", where=pipe.name)
        return PipeGenerator(pipe)
    if prompts is not None and not prompts:
        raise ModelError("there are no prompts", fix="at least one")
    name = Path(str(getattr(pipe, "name_or_path", "") or type(pipe).__name__)).name
    return PipelineGenerator(pipe, name, prompts, call)
