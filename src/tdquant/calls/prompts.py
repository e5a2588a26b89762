"""Prompts from a file; and from prompts, or their number, to the runs of a pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tdquant.errors import DataError, ModelError

FIRST, COUNT = "_first", "_count"
"""Entries of a run that are no arguments: its samples, which decide its random numbers."""


def read_prompts(file: str | Path) -> list[str]:
    """Prompts from a text file, one a line, empty lines left out.

    Raises:
        DataError: It cannot be read, or has none.
    """
    try:
        lines = [line.strip() for line in Path(file).read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("the prompts cannot be read", where=str(file), why=str(error)) from error
    prompts = [line for line in lines if line]
    if not prompts:
        raise DataError("there are no prompts", where=str(file), fix="one a line")
    return prompts


def make_runs(
    prompts: Any, batch: int, taken: Mapping[str, Any], where: str
) -> list[dict[str, Any]]:
    """Arguments of every run of a pipeline.

    Arguments:
        prompts: Strings, one sample each; a number of samples; or dictionaries, one run each.
        batch: Samples a run, of strings or of a number.
        taken: What the pipeline's call takes.
        where: The pipeline, for errors.

    Raises:
        ModelError: No samples, or prompts for a pipeline that takes none.
    """
    if prompts is None:
        raise ModelError(
            "no prompts and no number of samples",
            where="trajectories",
            fix="trajectories(pipe, prompts), or trajectories(pipe, count=16) if it takes none",
        )
    if isinstance(prompts, int):
        return _counted(prompts, batch, taken)
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    return _prompted(texts, batch, taken, where)


def _counted(count: int, batch: int, taken: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Runs of ``count`` samples that no prompt distinguishes."""
    if count < 1:
        raise ModelError(f"{count} samples", where="trajectories", fix="at least 1")
    if "batch_size" not in taken:  # then the other arguments decide how many samples a run has
        return [{FIRST: i, COUNT: 1} for i in range(count)]
    return [
        {"batch_size": n, FIRST: i, COUNT: n}
        for i, n in ((i, min(batch, count - i)) for i in range(0, count, batch))
    ]


def _prompted(
    prompts: list[Any], batch: int, taken: Mapping[str, Any], where: str
) -> list[dict[str, Any]]:
    """Runs of prompts, or of whole dictionaries of arguments."""
    if not prompts:
        raise ModelError("there are no prompts", where="trajectories", fix="at least one")
    if all(isinstance(p, Mapping) for p in prompts):
        return [{**p, FIRST: i, COUNT: 1} for i, p in enumerate(prompts)]
    odd = next((p for p in prompts if not isinstance(p, str)), None)
    if odd is not None:
        raise ModelError(
            f"a prompt of type {type(odd).__name__}",
            where="trajectories",
            fix="all strings, or all dictionaries of arguments of the pipeline",
        )
    if "prompt" not in taken:
        raise ModelError(
            "prompts for a pipeline that takes none",
            where=where,
            fix="a number of samples, trajectories(pipe, 16); or dictionaries of its arguments, "
            'trajectories(pipe, [{"class_labels": [207]}, ...])',
        )
    return [
        {"prompt": prompts[i : i + batch], FIRST: i, COUNT: len(prompts[i : i + batch])}
        for i in range(0, len(prompts), batch)
    ]
