"""Reads a model's folder in diffusers' layout without diffusers: ``config.json``, whose
``quantization_config`` is the description, and weights in one file or in shards.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tdquant.errors import StorageError
from tdquant.files.documents import read_json
from tdquant.files.looking import entries, exists, is_folder, matching

CONFIG, PIPELINE = "config.json", "model_index.json"
WEIGHTS = "diffusion_pytorch_model"
SUFFIXES = (".safetensors", ".bin")


def read_config(folder: Path) -> dict[str, Any] | None:
    """Reads a model that ``save_pretrained`` wrote, as the index that ``tdq.save`` would have
    written; None if there is no such model.

    Raises:
        StorageError: The configuration is not JSON.
    """
    config = _json(folder / CONFIG)
    saved = (config or {}).get("quantization_config") or {}
    if config is None or saved.get("quant_method") != "tdquant":
        return None
    plain = {k: v for k, v in config.items() if k != "quantization_config" and k[0] != "_"}
    return {
        "format": "tdquant",
        "version": saved.get("version", 0),
        "model": {"source": "diffusers", "class": config.get("_class_name"), "config": plain},
        **(saved.get("description") or {}),
        "recipe": saved.get("recipe"),
        "timestep": saved.get("timestep"),
    }


def weight_files(folder: Path) -> list[Path]:
    """Finds the files of a model's weights, safetensors or else those of torch.save. As in
    diffusers, files without a variant's name are preferred, and the shards that an index lists are
    preferred to a single file.

    Raises:
        StorageError: There are several variants, and none without a name.
    """
    return next(filter(None, (_files_of(folder, suffix) for suffix in SUFFIXES)), [])


def _files_of(folder: Path, suffix: str) -> list[Path]:
    whole = folder / f"{WEIGHTS}{suffix}"
    named = ((_json(folder / f"{WEIGHTS}{suffix}.index.json") or {}).get("weight_map")) or {}
    names = set(map(str, named.values())) if isinstance(named, dict) else set()
    if names and names <= {file.name for file in entries(folder)}:
        return [folder / name for name in sorted(names)]
    if exists(whole):
        return [whole]
    found: dict[str, list[Path]] = {}
    for file in matching(folder, f"{WEIGHTS}*{suffix}"):
        variant = re.sub(r"-\d+-of-\d+", "", file.stem.removeprefix(WEIGHTS))
        found.setdefault(variant.strip("."), []).append(file)
    if len(found) > 1:
        raise StorageError(
            f"variants {', '.join(found)} of one model",
            where=str(folder),
            fix="diffusers' from_pretrained(variant=...), or a folder for each variant",
        )
    return next(iter(found.values()), [])


def quantized_parts(folder: Path) -> list[Path]:
    """Finds the folders of a pipeline's quantized models; none if the folder is no pipeline."""
    if not exists(folder / PIPELINE):
        return []
    return [part for part in entries(folder) if is_folder(part) and read_config(part)]


def _json(file: Path) -> dict[str, Any] | None:
    found = read_json(file, "the configuration") if exists(file) else None
    return found if isinstance(found, dict) else None
