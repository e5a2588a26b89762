"""State dicts in checkpoint files, whoever wrote them: names, shapes, and numbers on demand."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from tdquant.errors import StorageError
from tdquant.files.checkpoints.safetensors_format import SUFFIX, read_safetensors
from tdquant.files.checkpoints.tensors import LazyTensor
from tdquant.files.checkpoints.torch_format import read_torch

PARALLEL = "module."
"""What DataParallel and DistributedDataParallel put before every name."""


@contextlib.contextmanager
def open_checkpoint(file: str | os.PathLike[str]) -> Iterator[dict[str, LazyTensor]]:
    """Opens the state dict in a ``.safetensors`` file or in one of ``torch.save``.

    Pickles of any content are read; nothing that they name is imported or called, and everything
    in them that is no tensor of the state dict is left out. The tensors are those below
    ``state_dict`` where there is such a key, as Lightning writes it, else those at the top.

    Arguments:
        file: The file; its suffix decides between the formats.

    Returns:
        A context whose value has a ``LazyTensor`` for every name. They can be read while the
        context lasts.

    Raises:
        StorageError: The file is missing, cut, foreign or hostile, or has no state dict.
    """
    path = Path(file)
    with _damage(path):
        exists, folder = path.is_file(), path.is_dir()
    if not exists:
        what = "a folder, not a checkpoint file" if folder else "no such file"
        raise StorageError(what, where=str(path), fix="check the path")
    if path.suffix == SUFFIX:
        with open_safetensors(path) as tensors:
            yield _checked(tensors, path)
        return
    with contextlib.ExitStack() as stack:
        with _damage(path):
            found = read_torch(stack.enter_context(path.open("rb")))
        yield _checked(_guarded(_state_dict(found, path), path), path)


@contextlib.contextmanager
def open_safetensors(path: Path) -> Iterator[dict[str, LazyTensor]]:
    """Opens a safetensors file: its tensors by name, which can be read while the context lasts.

    Raises:
        StorageError: The file is missing, cut or foreign.
    """
    with contextlib.ExitStack() as stack:
        with _damage(path):
            tensors = read_safetensors(path, stack.enter_context(path.open("rb")))
        yield _guarded(tensors, path)


@contextlib.contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Turns whatever reading a foreign file raises into one error."""
    try:
        yield
    except Exception as error:  # a damaged file makes readers raise anything
        raise StorageError(
            "the tensors cannot be read",
            where=str(path),
            why=(str(error) or type(error).__name__).splitlines()[0],
            fix="a whole file of torch.save or safetensors; copy it again if it was cut",
        ) from error


def _guarded(tensors: Mapping[str, LazyTensor], path: Path) -> dict[str, LazyTensor]:
    """The tensors, with such errors when they are loaded."""

    def load(tensor: LazyTensor) -> Tensor:
        with _damage(path):
            return tensor.load()

    return {name: replace(t, load=partial(load, t)) for name, t in tensors.items()}


def _state_dict(found: Any, path: Path) -> dict[str, LazyTensor]:
    """The tensors of a state dict in what a file holds, by name."""
    if not isinstance(found, dict):
        kind = getattr(found, "name", type(found).__name__)
        raise StorageError(
            "no state dict of tensors",
            where=str(path),
            why=f"it holds a {kind.removesuffix('()')}",
            fix="a file that torch.save(model.state_dict(), file) or Lightning wrote",
        )
    state = found.get("state_dict")
    state = state if isinstance(state, dict) else found
    return {k: v for k, v in state.items() if isinstance(k, str) and isinstance(v, LazyTensor)}


def _checked(tensors: dict[str, LazyTensor], path: Path) -> dict[str, LazyTensor]:
    """The tensors by the names that the model gave them."""
    if not tensors:
        raise StorageError("no state dict of tensors", where=str(path))
    strange = [name for name in tensors if not name.isprintable()]
    if strange:
        raise StorageError(
            f"{len(strange)} names with control characters",
            where=str(path),
            why=f"the first is {strange[0][:60]!r}",
        )
    if all(name.startswith(PARALLEL) for name in tensors):
        return {name.removeprefix(PARALLEL): tensor for name, tensor in tensors.items()}
    return tensors
