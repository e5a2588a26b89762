"""The two files of a saved model: reading and checking them, without building anything."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from tdquant.errors import StorageError

FORMAT = "tdquant"
VERSION = 1
INDEX, TENSORS = "tdquant.json", "model.safetensors"


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a saved model.

    Raises:
        StorageError: It is missing, damaged, foreign or of a newer format.
    """
    try:
        index = json.loads((folder / INDEX).read_text())
    except FileNotFoundError as error:
        raise StorageError(
            f"no {INDEX} here",
            where=str(folder),
            why="it is not a folder that tdq.save wrote",
            fix="check the path",
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StorageError(
            "the index is not JSON", where=str(folder / INDEX), why=str(error)
        ) from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise StorageError(
            "a foreign format", where=str(folder / INDEX), fix="a folder that tdq.save wrote"
        )
    if index.get("version", 0) > VERSION:
        raise StorageError(
            f"format version {index['version']}, newer than {VERSION}",
            where=str(folder),
            fix="update tdquant",
        )
    needed = {"model", "timestep", "layers", "attention", "tensors"} - set(index)
    if needed:
        raise StorageError(
            f"the index lacks {sorted(needed)}",
            where=str(folder / INDEX),
            fix="save the model again",
        )
    return index


def read_tensors(file: Path) -> dict[str, Tensor]:
    """All tensors of a saved model.

    Raises:
        StorageError: The file is missing or cut.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise StorageError(f"no {TENSORS} here", where=str(file.parent)) from error
    except (SafetensorError, OSError) as error:
        raise StorageError(
            "the tensors cannot be read",
            where=str(file),
            why=str(error),
            fix="the file was cut; copy or save it again",
        ) from error


def inspect_saved(directory: str | os.PathLike[str]) -> str:
    """A table of what a saved folder holds, without building the model.

    Raises:
        StorageError: As ``load``.
    """
    folder = Path(directory)
    index = read_index(folder)
    model = index["model"] or {"source": "the caller's", "class": "model"}
    size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
    built = f"{model['source']} {model['class']}"
    lines = [f"{built}, timestep argument {index['timestep']!r}, {size:.2f} MB"]
    rows = [
        (path, spec["type"], spec.get("weight"), spec.get("input"))
        for path, spec in index["layers"].items()
    ]
    for path, operands in index["attention"].items():
        rows += [(f"{path}.{name}", "attention", None, spec) for name, spec in operands.items()]
    width = max([len(row[0]) for row in rows], default=0)
    for path, kind, weight, activation in rows:
        w = f"W{weight['bits']}" if weight else "W float"
        a, scale = "A float", ""
        if activation:
            knots = activation.get("knots", 0)
            a, scale = (
                f"A{activation['bits']}",
                f"table of {knots}" if knots > 1 else "static" if knots else "dynamic",
            )
            scale += f", zero {activation['zero_point']}" if activation["zero_point"] else ""
        lines.append(f"{path:<{width}}  {kind:<12} {w:<8}{a:<8}{scale}".rstrip())
    return "\n".join(lines)
