"""Prompts from a file; and the runs of a pipeline for prompts or for a number of samples."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tdquant.errors import DataError, ModelError

FIRST, COUNT = "_first", "_count"
"""Entries of a run that are not arguments: its samples, which determine its random numbers."""


def read_prompts(file: str | Path) -> list[str]:
    """Reads prompts from a text file, one a line, skipping empty lines.

    Raises:
        DataError: The file cannot be read, or has no prompts.
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
        taken: Parameters of the pipeline's call.
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
        if prompts < 1:
            raise ModelError(f"{prompts} samples", where="trajectories", fix="at least 1")
        if "batch_size" not in taken:  # the other arguments decide how many samples a run has
            return [{FIRST: i, COUNT: 1} for i in range(prompts)]
        starts = range(0, prompts, batch)
        sizes = {i: min(batch, prompts - i) for i in starts}
        return [{"batch_size": sizes[i], FIRST: i, COUNT: sizes[i]} for i in starts]
    given: list[Any] = [prompts] if isinstance(prompts, str) else list(prompts)
    if not given:
        raise ModelError("there are no prompts", where="trajectories", fix="at least one")
    if all(isinstance(prompt, Mapping) for prompt in given):
        return [{**each, FIRST: i, COUNT: 1} for i, each in enumerate(given)]
    odd = next((type(prompt).__name__ for prompt in given if not isinstance(prompt, str)), None)
    if odd is not None:
        raise ModelError(
            f"a prompt of type {odd}",
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
    groups = [(i, given[i : i + batch]) for i in range(0, len(given), batch)]
    return [{"prompt": group, FIRST: i, COUNT: len(group)} for i, group in groups]
