"""What a file or folder holds, as text: from indices and the headers of tensors alone.

Of a model's numbers only its tables are read. Nothing is built, and nothing that a pickle names
is run.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from tdquant.errors import StorageError
from tdquant.recipe import Recipe
from tdquant.storage.diffusers_folder import quantized_parts
from tdquant.storage.files import model_files, read_index
from tdquant.storage.layer_table import layer_table
from tdquant.storage.tensor_files import TensorFiles

_TENSORS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")


def inspect_saved(path: str | os.PathLike[str], width: int | None = None) -> str:
    """What is saved at a path: a model of ``tdq.save`` or ``save_pretrained``, a whole pipeline, a
    training run or a checkpoint of one, or a file of tensors.

    Arguments:
        path: The file or folder.
        width: Characters of the terminal, to which tables are cut; None cuts nothing.

    Raises:
        StorageError: There is nothing, or nothing that can be told without running it.
    """
    place = Path(path)
    if not place.exists():
        raise StorageError("there is nothing here", where=str(place), fix="check the path")
    if place.is_file():
        return _file(place, width)
    parts = quantized_parts(place)
    if parts:
        return "\n\n".join(f"{part.name}: {inspect_saved(part, width)}" for part in parts)
    if (place / "state.json").exists():
        return _checkpoint(place)
    if (place / "checkpoints").is_dir():
        return _run(place, width)
    return _model(place, width)


def _model(folder: Path, width: int | None) -> str:
    index = read_index(folder)
    files = TensorFiles(model_files(folder))
    model = index["model"] or {"source": "the caller's", "class": "model"}
    size = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    lines = [
        f"{model['source']} {model['class']}, timestep argument {index['timestep']!r}, "
        f"{size / 1e6:.2f} MB"
    ]
    if index.get("recipe"):
        lines.append("recipe: " + _facts(_said(index["recipe"])))
    for step in index.get("history", ()):
        facts = {k: v for k, v in step.items() if k != "step" and v not in ({}, [], None)}
        lines.append(f"{step.get('step')}: {_facts(facts)}")
    return "\n".join([*lines, "", layer_table(index, files, width)])


def _said(recipe: dict[str, Any]) -> dict[str, Any]:
    """The fields of a recipe that are always of interest, and those that are not as by default."""
    usual = json.loads(json.dumps(Recipe().to_dict()))
    shown = ("weights", "activations", "scale")
    return {k: v for k, v in recipe.items() if k in shown or v != usual.get(k)}


def _facts(facts: dict[str, Any]) -> str:
    def word(value: Any) -> str:
        if isinstance(value, dict):
            return "(" + _facts(value) + ")"
        if isinstance(value, list):
            return " to ".join(map(word, value))
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    return ", ".join(f"{k} {word(v)}" for k, v in facts.items())


def _run(folder: Path, width: int | None) -> str:
    lines = [f"a training run, {_megabytes(folder):.2f} MB"]
    kept = sorted((folder / "checkpoints").glob("step-*"))
    lines += [_checkpoint(kept[-1])] if kept else ["no checkpoint yet"]
    if (folder / "frozen").is_dir():
        lines += ["", f"frozen: {_model(folder / 'frozen', width)}"]
    return "\n".join(lines)


def _checkpoint(folder: Path) -> str:
    try:
        state = json.loads((folder / "state.json").read_text())
        done = f"step {state['step']}, {state['seconds'] / 60:.0f} minutes of training"
        structure: dict[str, Any] = state.get("structure") or {}
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(
            "the state of a checkpoint is damaged",
            where=str(folder / "state.json"),
            why=str(error),
            fix="the checkpoint before it",
        ) from error
    lines = [f"{folder.name}: {done}, {_megabytes(folder):.2f} MB"]
    found = Counter(
        f"{spec['kind']} at {spec['grid'][0]} bits"
        for spec in structure.get("activations", {}).values()
    )
    if found:
        lines.append("activations: " + ", ".join(f"{n} {kind}" for kind, n in found.items()))
    return "\n".join(lines)


def _file(file: Path, width: int | None) -> str:
    if (found := _json(file)) is not None:
        raise StorageError(
            "not a file of tensors",
            where=str(file),
            why=found,
            fix=f"its folder, {file.parent}, if that is a model or a checkpoint",
        )
    try:
        return TensorFiles([file]).listing(width)
    except StorageError as error:
        if file.suffix in _TENSORS:
            raise
        raise StorageError(
            "not a file of tensors",
            where=str(file),
            why=error.why,
            fix="a .safetensors or .ckpt file, or the folder of a model or a run",
        ) from error


def _json(file: Path) -> str | None:
    """What a file of JSON is, in words; None of any other."""
    if file.suffix != ".json":
        return None
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        return f"damaged JSON: {error}"
    name = content.get("format") if isinstance(content, dict) else None
    return f"JSON of the format {name}" if isinstance(name, str) else "JSON of no known format"


def _megabytes(folder: Path) -> float:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e6
