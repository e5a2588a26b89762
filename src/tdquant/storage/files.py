"""The two files of a saved model: reading and checking them, without building anything."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from tdquant.errors import StorageError
from tdquant.files.checkpoints import LazyTensor
from tdquant.files.checkpoints.safetensors_format import read_safetensors
from tdquant.files.documents import check_version
from tdquant.files.writing import recover
from tdquant.storage.diffusers_folder import CONFIG, quantized_parts, read_config, weight_files

FORMAT = "tdquant"
VERSION = 1
INDEX, TENSORS = "tdquant.json", "model.safetensors"


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a model that ``tdq.save`` or diffusers' ``save_pretrained`` saved.

    Raises:
        StorageError: It is missing, damaged, foreign or of a newer format.
    """
    recover(folder)
    if not (folder / INDEX).exists() and (index := read_config(folder)) is not None:
        return _checked(index, folder / CONFIG)
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
    return _checked(index, folder / INDEX)


def _checked(index: dict[str, Any], file: Path) -> dict[str, Any]:
    check_version(index.get("version"), VERSION, str(file))
    needed = {"model", "timestep", "layers", "attention"} - set(index)
    if needed:
        raise StorageError(
            f"the index lacks {sorted(needed)}",
            where=str(file),
            fix="save the model again",
        )
    wrong = _mistakes(index)
    if wrong:
        raise StorageError(
            "the index is damaged:\n  - " + "\n  - ".join(wrong[:8]),
            where=str(file),
            fix="save the model again",
        )
    return index


_NUMBERS = ("bits", "qmin", "qmax", "zero_point", "knots")


def _mistakes(index: dict[str, Any]) -> list[str]:
    """Parts of an index that are not what a reader can take."""
    kinds: dict[str, Any] = {
        "model": (dict, type(None)), "timestep": str, "layers": dict, "attention": dict,
        "tensors": (list, type(None)), "recipe": (dict, type(None)),
    }  # fmt: skip
    wrong = [key for key, kind in kinds.items() if not isinstance(index.get(key), kind)]
    coverage = index.get("coverage")
    if coverage is not None and not (isinstance(coverage, list) and len(coverage) == 2):
        wrong.append("coverage")
    if wrong:
        return [f"{key} is {index.get(key)!r:.60}" for key in wrong]
    specs = dict(index["layers"])
    for path, operands in index["attention"].items():
        entries = operands.items() if isinstance(operands, dict) else [("", operands)]
        specs |= {f"{path}.{name}": {"input": spec} for name, spec in entries}
    for path, spec in specs.items():
        if not isinstance(spec, dict):
            wrong.append(f"{path} is {spec!r:.60}")
            continue
        for part in ("weight", "input"):
            found = spec.get(part, {})
            if not isinstance(found, dict):
                wrong.append(f"{path}.{part} is {found!r:.60}")
                continue
            wrong += [
                f"{path}.{part}.{key} is {found[key]!r:.60}"
                for key in _NUMBERS
                if key in found and not isinstance(found[key], int)
            ]
        weight = spec.get("weight")
        kind = weight.get("dtype", "float32") if isinstance(weight, dict) else "float32"
        if not isinstance(getattr(torch, str(kind), None), torch.dtype):
            wrong.append(f"{path}.weight.dtype is {kind!r:.60}")
    return wrong


@contextlib.contextmanager
def open_tensors(folder: Path) -> Iterator[dict[str, LazyTensor]]:
    """All tensors of a saved model, each read when it is asked for.

    Raises:
        StorageError: A file is missing or cut.
    """
    found = {}
    with contextlib.ExitStack() as stack:
        for file in model_files(folder):
            with _damage(file):
                tensors = read_safetensors(file, stack.enter_context(file.open("rb")))
            for name, tensor in tensors.items():
                found[name] = replace(tensor, load=partial(_load, file, tensor))
        yield found


def model_files(folder: Path) -> list[Path]:
    """The safetensors files of a saved model.

    Raises:
        StorageError: There are none.
    """
    files = [folder / TENSORS] if (folder / INDEX).exists() else weight_files(folder)
    if not files:
        raise StorageError("no safetensors here", where=str(folder))
    return files


def _load(file: Path, tensor: LazyTensor) -> Tensor:
    with _damage(file):
        return tensor.load()


@contextlib.contextmanager
def _damage(file: Path) -> Iterator[None]:
    """Turns what reading a damaged file raises into one error."""
    try:
        yield
    except FileNotFoundError as error:
        raise StorageError(f"no {file.name} here", where=str(file.parent)) from error
    except (SafetensorError, OSError, EOFError) as error:
        raise StorageError(
            "the tensors cannot be read",
            where=str(file),
            why=str(error),
            fix="the file was cut; copy or save it again",
        ) from error
