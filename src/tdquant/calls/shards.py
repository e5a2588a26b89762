"""Recorded calls on disk: one safetensors file a run of the pipeline and denoiser, and an index.

    calls.json                       format, what made them, denoiser -> its shards and calls
    transformer-00000.safetensors    the tensors of one run, each once; the calls that name them
                                     are JSON in the file's metadata

A tensor that every call of a run gets, as text embeddings are, is stored once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tdquant.errors import StorageError
from tdquant.files.documents import check_version
from tdquant.files.writing import replacing_folder, write_tensors

INDEX, FORMAT, VERSION = "calls.json", "tdquant-calls", 1
_TENSOR = "__tensor__"


@dataclass(frozen=True)
class Shards:
    """Calls of one denoiser, read from a folder shard by shard. With several denoisers index it by
    name.

    Attributes:
        folder: Where they are.
        index: What ``calls.json`` holds.
        names: Denoisers to give the calls of.
    """

    folder: Path
    index: Mapping[str, Any]
    names: tuple[str, ...]

    def __getitem__(self, name: str) -> Shards:
        if name not in self.names:
            raise StorageError(
                f"no calls of {name!r}", where=str(self.folder), fix=f"of {', '.join(self.names)}"
            )
        return Shards(self.folder, self.index, (name,))

    @property
    def made_by(self) -> Mapping[str, Any]:
        """What made the calls."""
        return self.index["made_by"]

    def __len__(self) -> int:
        return sum(self.index["denoisers"][name]["calls"] for name in self.names)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if len(self.names) > 1:
            raise StorageError(
                f"calls of {len(self.names)} denoisers were asked for at once",
                where=str(self.folder),
                fix=" or ".join(f'calls["{name}"]' for name in self.names),
            )
        for shard in self.index["denoisers"][self.names[0]]["shards"]:
            yield from _read(self.folder / shard)


def write_shards(
    directory: str | Path,
    runs: Iterable[Mapping[str, Sequence[Mapping[str, Any]]]],
    names: Sequence[str],
    made_by: Mapping[str, Any],
) -> Shards:
    """Writes runs as they come, a folder of them or nothing.

    Arguments:
        directory: Folder to write; earlier calls there are replaced.
        runs: Denoiser -> its calls, run by run.
        names: The denoisers.
        made_by: What the index says of their origin.

    Raises:
        StorageError: The folder holds something else, or a value is neither tensor nor JSON.
    """
    index: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "made_by": dict(made_by),
        "denoisers": {name: {"calls": 0, "shards": []} for name in names},
    }
    with replacing_folder(directory, INDEX) as fresh:
        for number, run in enumerate(runs):
            for name, calls in run.items():
                if not calls:
                    continue
                file = f"{name}-{number:05}.safetensors"
                _write(fresh / file, calls)
                index["denoisers"][name]["shards"].append(file)
                index["denoisers"][name]["calls"] += len(calls)
        (fresh / INDEX).write_text(json.dumps(index, indent=1) + "\n")
    return Shards(Path(directory), index, tuple(names))


def read_shards(directory: str | Path) -> Shards:
    """The calls that ``write_shards`` wrote.

    Raises:
        StorageError: The index is missing, damaged, foreign or of a newer format.
    """
    folder = Path(directory)
    try:
        index = json.loads((folder / INDEX).read_text())
    except FileNotFoundError as error:
        raise StorageError(
            f"no {INDEX} here", where=str(folder), fix="a folder that Recording.save wrote"
        ) from error
    except ValueError as error:
        raise StorageError("the index is not JSON", where=str(folder / INDEX)) from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise StorageError("a foreign format", where=str(folder / INDEX))
    check_version(index.get("version"), VERSION, str(folder))
    return Shards(folder, index, tuple(index["denoisers"]))


def _write(file: Path, calls: Sequence[Mapping[str, Any]]) -> None:
    tensors: dict[str, Tensor] = {}
    names: dict[int, str] = {}

    def plain(value: Any, where: str) -> Any:
        if isinstance(value, Tensor):
            if id(value) not in names:
                names[id(value)] = f"t{len(names)}"
                tensors[names[id(value)]] = value.detach().cpu().contiguous()
            return {_TENSOR: names[id(value)]}
        if isinstance(value, Mapping):
            return {str(k): plain(v, f"{where}.{k}") for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(v, where) for v in value]
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise StorageError(
            f"a value of type {type(value).__name__} cannot be stored",
            where=where,
            fix="use the recording without saving it",
        )

    described = [{k: plain(v, k) for k, v in call.items()} for call in calls]
    # Views of one memory, as both halves of a batch are, have to be files of their own.
    tensors = {
        k: v.clone() if v.untyped_storage().nbytes() != v.nbytes else v for k, v in tensors.items()
    }
    write_tensors(tensors, file, metadata={"calls": json.dumps(described)})


def _read(file: Path) -> Iterator[dict[str, Any]]:
    try:
        with safe_open(file, framework="pt") as opened:
            calls = json.loads(opened.metadata()["calls"])
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise StorageError(
            "recorded calls cannot be read",
            where=str(file),
            why=str(error),
            fix="the file is missing or was cut; record again",
        ) from error

    def full(value: Any) -> Any:
        if isinstance(value, dict):
            if set(value) == {_TENSOR}:
                return tensors[value[_TENSOR]]
            return {k: full(v) for k, v in value.items()}
        return [full(v) for v in value] if isinstance(value, list) else value

    with torch.no_grad():
        for call in calls:
            yield full(call)
