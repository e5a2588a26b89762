"""``trajectories``: calls of a denoiser while it samples, whatever they are recorded from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

from torch import nn

from tdquant.calls.from_denoiser import Trajectories, record_denoiser
from tdquant.calls.from_pipeline import Prompts, Recording, record_pipeline
from tdquant.calls.shards import Shards, read_shards
from tdquant.diffusion.sampling import Denoiser
from tdquant.errors import ModelError
from tdquant.models.pipe import Pipe


@overload
def trajectories(source: str | Path) -> Shards: ...
@overload
def trajectories(
    source: Pipe, prompts: int | None = None, *, count: int | None = None, **options: Any
) -> Trajectories: ...
@overload
def trajectories(
    source: Denoiser, scheduler: Any, count: int, shape: Sequence[int], **options: Any
) -> Trajectories: ...
@overload
def trajectories(source: Any, prompts: Prompts = None, **options: Any) -> Recording: ...
def trajectories(source: Any, *args: Any, **options: Any) -> Shards | Trajectories | Recording:
    """Records the calls that denoisers get while they sample, lazily and reproducibly.

    Arguments:
        source: A folder of recorded calls, see ``read_shards``; a denoiser with a scheduler, see
            ``record_denoiser``; a pipe of ``tdquant.models``, whose denoiser, scheduler and shape
            are then known; or a diffusers pipeline, see ``record_pipeline``.
        *args: Arguments of that function.
        **options: Its keyword arguments: ``count``, ``steps``, ``batch``, ``seed``, ``progress``,
            and others.

    Returns:
        An iterable of calls.

    Raises:
        ModelError: No denoiser, or arguments that it does not take.
        StorageError: The folder holds no calls.
    """
    if isinstance(source, (str, Path)):
        return read_shards(source)
    if isinstance(source, Pipe):
        return _record_pipe(source, *args, **options)
    if isinstance(source, nn.Module) or not hasattr(source, "components"):
        return record_denoiser(source, *args, **options)
    return record_pipeline(source, *args, **options)


def _record_pipe(
    pipe: Pipe, prompts: Any = None, *, count: int | None = None, **options: Any
) -> Trajectories:
    count = prompts if count is None else count
    if not isinstance(count, int):
        raise ModelError(
            f"expected a number of samples, not {count!r}",
            where="trajectories",
            fix="tdq.trajectories(pipe, count=16)",
        )
    return record_denoiser(pipe.unet, pipe.scheduler, count, pipe.shape, **options)
