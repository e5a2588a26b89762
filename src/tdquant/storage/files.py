"""The two files of a saved model: reading and checking them, without building anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from tdquant.errors import StorageError
from tdquant.formats import check_version
from tdquant.storage.diffusers_folder import (
    CONFIG,
    quantized_parts,
    read_config,
    weight_files,
)

FORMAT = "tdquant"
VERSION = 1
INDEX, TENSORS = "tdquant.json", "model.safetensors"


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a model that ``tdq.save`` or diffusers' ``save_pretrained`` saved.

    Raises:
        StorageError: It is missing, damaged, foreign or of a newer format.
    """
    if not (folder / INDEX).exists() and (index := read_config(folder)) is not None:
        return _checked(index, folder, folder / CONFIG)
    try:
        index = json.loads((folder / INDEX).read_text())
    except FileNotFoundError as error:
        parts = ", ".join(str(part) for part in quantized_parts(folder))
        raise StorageError(
            f"no {INDEX} here",
            where=str(folder),
            why="it is a whole pipeline" if parts else "it is not a folder that tdq.save wrote",
            fix=f"one of its models: {parts}" if parts else "check the path",
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StorageError(
            "the index is not JSON", where=str(folder / INDEX), why=str(error)
        ) from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise StorageError(
            "a foreign format", where=str(folder / INDEX), fix="a folder that tdq.save wrote"
        )
    return _checked(index, folder, folder / INDEX)


def _checked(index: dict[str, Any], folder: Path, file: Path) -> dict[str, Any]:
    check_version(index.get("version", 0), VERSION, str(folder))
    needed = {"model", "timestep", "layers", "attention"} - set(index)
    if needed:
        raise StorageError(
            f"the index lacks {sorted(needed)}",
            where=str(file),
            fix="save the model again",
        )
    return index


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a saved model.

    Raises:
        StorageError: A file is missing or cut.
    """
    return {n: tensor for file in model_files(folder) for n, tensor in _read(file).items()}


def model_files(folder: Path) -> list[Path]:
    """The safetensors files of a saved model.

    Raises:
        StorageError: There are none.
    """
    files = [folder / TENSORS] if (folder / INDEX).exists() else weight_files(folder)
    if not files:
        raise StorageError("no safetensors here", where=str(folder))
    return files


def _read(file: Path) -> dict[str, Tensor]:
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise StorageError(f"no {file.name} here", where=str(file.parent)) from error
    except (SafetensorError, OSError) as error:
        raise StorageError(
            "the tensors cannot be read",
            where=str(file),
            why=str(error),
            fix="the file was cut; copy or save it again",
        ) from error
