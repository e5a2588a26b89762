"""``load``: builds a float model, replaces its layers by frozen ones, and fills them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, overload

from torch import nn

from tdquant.errors import StorageError
from tdquant.files.checkpoints import LazyTensor
from tdquant.files.digests import add_tensor
from tdquant.models import build
from tdquant.storage.files import open_tensors, read_index
from tdquant.storage.rebuilding import build_skeleton, finalize_weights, unpack_tensors
from tdquant.support.announce import announce
from tdquant.support.memory import trim_heap
from tdquant.support.restoring import with_gradients
from tdquant.support.wrappers import check_denoiser

M = TypeVar("M", bound=nn.Module)


@overload
def load(directory: str | os.PathLike[str], model: M, compact: bool = False) -> M: ...
@overload
def load(
    directory: str | os.PathLike[str], model: None = None, compact: bool = False
) -> nn.Module: ...
@with_gradients
def load(
    directory: str | os.PathLike[str], model: nn.Module | None = None, compact: bool = False
) -> nn.Module:
    """Loads a frozen model.

    Arguments:
        directory: Folder that ``save``, or ``save_pretrained`` of a diffusers model, wrote.
        model: A new float model of the same architecture, needed if the model cannot be built
            from its configuration. It is changed in place.
        compact: Keep weights as codes, in a quarter of the memory, for compiling. The frozen model
            itself gives the same outputs but dequantizes its weights at every call.

    Returns:
        The frozen model on the CPU. Its outputs equal those of the saved model bit for bit.

    Raises:
        StorageError: Missing, truncated, foreign or newer files, or tensors and index that
            disagree.
        ModelError: The model cannot be built and none was given.
        ConversionError: A class, pipeline or wrapper was given in the place of a model.
    """
    folder = Path(directory)
    index = read_index(folder)
    with open_tensors(folder) as tensors:
        _check(tensors, index, folder)
        return _rebuild(tensors, index, folder, model, compact)


def _check(tensors: Mapping[str, LazyTensor], index: Mapping[str, Any], folder: Path) -> None:
    """Compares the names and the digest of the tensors with the index.

    Raises:
        StorageError: They differ.
    """
    listed = set(index.get("tensors", tensors))
    if set(tensors) != listed:
        different = sorted(set(tensors) ^ listed)
        raise StorageError(
            f"index and tensors disagree on {len(different)} names, such as {different[0]!r}",
            where=str(folder),
            why="the two files are not of one save",
            fix="save the model again",
        )
    if index.get("digest") is None:
        return
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        add_tensor(digest, name, tensor.load())
    if index["digest"] != digest.hexdigest():
        raise StorageError(
            "the tensors are not those that were saved",
            where=str(folder),
            why="a byte changed, or the two files are not of one save",
            fix="copy or save the model again",
        )


def _rebuild(
    tensors: Mapping[str, LazyTensor],
    index: Mapping[str, Any],
    folder: Path,
    model: nn.Module | None,
    compact: bool,
) -> nn.Module:
    if model is None:
        model = build.without_weights(index["model"], where=str(folder))
    check_denoiser(model, "tdq.load")
    try:
        build_skeleton(model, index)
        state = unpack_tensors(((name, t.load()) for name, t in tensors.items()), index)
        missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    except StorageError as error:
        raise StorageError(
            error.what, where=f"{folder}: {error.where}", why=error.why, fix=error.fix
        ) from error
    except (
        RuntimeError, KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError,
    ) as error:  # fmt: skip
        raise StorageError(
            "the saved tensors do not fit the model",
            where=str(folder),
            why=(str(error).strip() or type(error).__name__).splitlines()[0],
            fix="a float model of the architecture that was saved: tdq.load(directory, model=...)",
        ) from error
    # Zero points are part of the description.
    missing = [k for k in missing if not k.endswith(".zero_point")]
    if missing or unexpected:
        misfits = [f"missing {k}" for k in missing] + [f"unexpected {k}" for k in unexpected]
        raise StorageError(
            f"{len(misfits)} tensors do not fit the model: {', '.join(misfits[:4])}",
            where=str(folder),
            fix="a float model of the architecture that was saved",
        )
    del state
    finalize_weights(model, compact)
    trim_heap()
    return announce(model)
