"""The content of a file or folder as text, from indices and headers of tensors.

Of a model's tensors only the scale tables are read. No model is built, and nothing that a pickle
names is run.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tdquant.calibration.record import RemedyRecord
from tdquant.errors import StorageError
from tdquant.files.checkpoints import LazyTensor, open_checkpoint
from tdquant.files.documents import Section, checked, json_safe, read_json
from tdquant.files.looking import entries, exists, files_below, is_file, is_folder, matching
from tdquant.recipe import Recipe
from tdquant.storage.diffusers_folder import quantized_parts
from tdquant.storage.files import open_tensors, read_index
from tdquant.storage.layer_table import layer_table
from tdquant.support.tables import counted, text_table

_TENSORS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin")


def inspect_saved(path: str | os.PathLike[str], width: int | None = None) -> str:
    """Describes what is saved at a path: a model of ``tdq.save`` or ``save_pretrained``, a whole
    pipeline, a training run or one of its checkpoints, or a file of tensors.

    Arguments:
        path: The file or folder.
        width: Characters of the terminal, to which tables are cut; None cuts nothing.

    Raises:
        StorageError: There is nothing, or it cannot be described without running it.
    """
    place = Path(path)
    if not exists(place):
        raise StorageError("there is nothing here", where=str(place), fix="check the path")
    if is_file(place):
        return _file(place, width)
    parts = quantized_parts(place)
    if parts:
        return "\n\n".join(f"{part.name}: {inspect_saved(part, width)}" for part in parts)
    if exists(place / "state.json"):
        return _checkpoint(place)
    if is_folder(place / "checkpoints") or exists(place / "run.json"):
        return _run(place, width)
    return _model(place, width)


def _model(folder: Path, width: int | None) -> str:
    index = read_index(folder)
    with open_tensors(folder) as tensors:
        table = layer_table(index, tensors, width)
    model = index["model"] or {"source": "the caller's", "class": "model"}
    size = sum(file.stat().st_size for file in entries(folder) if is_file(file))
    lines = [
        f"{model['source']} {model['class']}, timestep argument {index['timestep']!r}, "
        f"{size / 1e6:.2f} MB"
    ]
    if index.get("recipe"):
        lines.append("recipe: " + _facts(_shown_fields(index["recipe"])))
    for step in index.get("history", ()):
        facts = {k: v for k, v in step.items() if k != "step" and v not in ({}, [], None)}
        lines.append(f"{step.get('step')}: {_facts(facts)}")
    if index.get("remedies"):
        lines.append(str(RemedyRecord.from_dict(index["remedies"])))
    return "\n".join([*lines, "", table])


def _shown_fields(recipe: dict[str, Any]) -> dict[str, Any]:
    """The fields of a recipe that are always shown, and those that differ from their defaults."""
    usual = json_safe(Recipe().to_dict())
    shown = ("weights", "activations", "scale")
    return {k: v for k, v in recipe.items() if k in shown or v != usual.get(k)}


def _facts(facts: dict[str, Any]) -> str:
    def word(value: Any) -> str:
        if isinstance(value, dict):
            return "(" + _facts(value) + ")"
        if isinstance(value, list):
            numbers = all(isinstance(each, (int, float)) for each in value)
            return (" to " if numbers else " ").join(map(word, value))
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    return ", ".join(f"{k} {word(v)}" for k, v in facts.items())


def _run(folder: Path, width: int | None) -> str:
    lines = [f"a training run, {_megabytes(folder):.2f} MB"]
    kept = matching(folder / "checkpoints", "step-*")
    lines += [_checkpoint(kept[-1])] if kept else ["no checkpoint yet"]
    if is_folder(folder / "frozen"):
        lines += ["", f"frozen: {_model(folder / 'frozen', width)}"]
    return "\n".join(lines)


class _Activation(Section):
    kind: str
    grid: list[Any]


class _Structure(Section):
    activations: dict[str, _Activation] = {}  # noqa: RUF012


class _State(Section):
    """The parts of a checkpoint's state that are shown."""

    step: int
    seconds: float
    structure: _Structure | None = None


def _checkpoint(folder: Path) -> str:
    file, what, fix = folder / "state.json", "the state", "the checkpoint before it"
    state = checked(_State, read_json(file, what, fix), what, str(file), fix)
    done = f"step {state.step}, {state.seconds / 60:.0f} minutes of training"
    lines = [f"{folder.name}: {done}, {_megabytes(folder):.2f} MB"]
    activations = state.structure.activations if state.structure else {}
    found = Counter(f"{spec.kind} at {spec.grid[0]} bits" for spec in activations.values())
    if found:
        lines.append("activations: " + ", ".join(f"{n} {kind}" for kind, n in found.items()))
    return "\n".join(lines)


def _file(file: Path, width: int | None) -> str:
    what = "not a file of tensors"
    if file.suffix == ".json":
        fix = f"its folder, {file.parent}, if that is a model or a checkpoint"
        raise StorageError(what, where=str(file), why=_format(file), fix=fix)
    try:
        with open_checkpoint(file) as tensors:
            return _listing(tensors, width)
    except StorageError as error:
        if file.suffix in _TENSORS:
            raise
        fix = "a .safetensors or .ckpt file, or the folder of a model or a run"
        raise StorageError(what, where=str(file), why=error.why, fix=fix) from error


def _format(file: Path) -> str:
    """What a JSON file is, in words."""
    try:
        content = read_json(file, "the file")
    except StorageError as error:
        return f"damaged JSON: {error.why}"
    name = content.get("format") if isinstance(content, dict) else None
    return f"JSON of the format {name}" if isinstance(name, str) else "JSON of no known format"


def _listing(tensors: Mapping[str, LazyTensor], width: int | None) -> str:
    """A line for each tensor, and the whole."""
    rows = [
        (name, str(t.dtype).removeprefix("torch."), "x".join(map(str, t.shape)) or "scalar")
        for name, t in tensors.items()
    ]
    size = sum(tensor.nbytes for tensor in tensors.values()) / 1e6
    total = f"{counted(len(rows), 'tensor')}, {size:.2f} MB"
    return "\n".join([text_table(rows, width=width), total])


def _megabytes(folder: Path) -> float:
    return sum(f.stat().st_size for f in files_below(folder) if is_file(f)) / 1e6
