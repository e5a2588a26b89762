"""Recorded calls on disk: a safetensors file for each denoiser and pipeline run, and an index.

    calls.json                       format, origin, denoiser -> its shards and number of calls
    transformer-00000.safetensors    the tensors of one run; the calls that refer to them are JSON
                                     in the file's metadata

A tensor that every call of a run gets, such as a text embedding, is stored once. Tuples and
dictionaries whose keys are not strings, which JSON does not have, are marked:

    {"__tensor__": name}    {"__tuple__": [...]}    {"__items__": [[key, value], ...]}
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tdquant.errors import StorageError
from tdquant.files.documents import Document, FileName, Section, checked
from tdquant.files.writing import recover, replacing_folder, write_tensors

INDEX = "calls.json"
_MARKS = _TENSOR, _TUPLE, _ITEMS = "__tensor__", "__tuple__", "__items__"


class ShardList(Section):
    """The files of one denoiser, and the number of calls in them."""

    calls: Annotated[int, Field(ge=0, le=1 << 24)]
    shards: list[FileName]


class Index(Document):
    """The index of a folder of recorded calls."""

    FORMAT: ClassVar = "tdquant-calls"
    VERSION: ClassVar = 2

    made_by: dict[str, Any]
    denoisers: dict[str, ShardList]


@dataclass(frozen=True)
class Shards:
    """Calls of one denoiser, read from a folder shard by shard. With several denoisers index it by
    name.

    Attributes:
        folder: The folder.
        index: Its index.
        names: Denoisers whose calls to give.
    """

    folder: Path
    index: Index
    names: tuple[str, ...]

    def __getitem__(self, name: str) -> Shards:
        if name not in self.names:
            fix = f"one of {', '.join(self.names)}"
            raise StorageError(f"no calls of {name!r}", where=str(self.folder), fix=fix)
        return replace(self, names=(name,))

    @property
    def made_by(self) -> Mapping[str, Any]:
        """Origin of the calls."""
        return self.index.made_by

    def __len__(self) -> int:
        return sum(self.index.denoisers[name].calls for name in self.names)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if len(self.names) > 1:
            raise StorageError(
                f"the folder has calls of {len(self.names)} denoisers",
                where=str(self.folder),
                fix=" or ".join(f'calls["{name}"]' for name in self.names),
            )
        for shard in self.index.denoisers[self.names[0]].shards:
            yield from _read(self.folder / shard)


def write_shards(
    directory: str | Path,
    runs: Iterable[Mapping[str, Sequence[Mapping[str, Any]]]],
    names: Sequence[str],
    made_by: Mapping[str, Any],
) -> Shards:
    """Writes runs as they come, to a folder that appears as a whole or not at all.

    Arguments:
        directory: Folder to write; earlier calls there are replaced.
        runs: Denoiser -> its calls, run by run.
        names: The denoisers.
        made_by: Origin of the calls, JSON.

    Raises:
        StorageError: The folder holds something else, or a value is neither a tensor nor JSON.
    """
    shards: dict[str, list[str]] = {name: [] for name in names}
    counts = dict.fromkeys(names, 0)
    with replacing_folder(directory, INDEX, _is_own) as fresh:
        for number, run in enumerate(runs):
            for name, calls in run.items():
                if calls:
                    file = f"{name}-{number:05}.safetensors"
                    _write(fresh / file, calls)
                    shards[name].append(file)
                    counts[name] += len(calls)
        lists = {name: ShardList(calls=counts[name], shards=shards[name]) for name in names}
        index = Index(made_by=dict(made_by), denoisers=lists)
        index.write(fresh / INDEX)
    return Shards(Path(directory).absolute(), index, tuple(names))


def read_shards(directory: str | Path) -> Shards:
    """Opens a folder of recorded calls, which ``Recording.save`` wrote.

    Raises:
        StorageError: The index is missing, damaged, foreign or of a newer format.
    """
    folder = Path(directory).absolute()  # calls are read later, wherever the process is then
    recover(folder)
    index = Index.read(folder / INDEX, INDEX, fix="a folder that Recording.save wrote")
    return Shards(folder, index, tuple(index.denoisers))


def _is_own(name: str) -> bool:
    """Whether a file of the folder is the recording's; others are the user's."""
    return name == INDEX or re.fullmatch(r".+-\d{5,}\.safetensors", name) is not None


def _write(file: Path, calls: Sequence[Mapping[str, Any]]) -> None:
    tensors: dict[str, Tensor] = {}
    names: dict[int, str] = {}

    def plain(value: Any, where: str) -> Any:
        if isinstance(value, Tensor):
            if id(value) not in names:
                names[id(value)] = f"t{len(names)}"
                tensors[names[id(value)]] = value.detach().cpu().contiguous()
            return {_TENSOR: names[id(value)]}
        if isinstance(value, Mapping) and all(isinstance(k, (str, int, float)) for k in value):
            parts = {k: plain(v, f"{where}.{k}") for k, v in value.items()}
            if all(isinstance(k, str) and k not in _MARKS for k in parts):
                return parts
            return {_ITEMS: [[k, v] for k, v in parts.items()]}
        if isinstance(value, tuple):
            return {_TUPLE: [plain(v, where) for v in value]}
        if isinstance(value, list):
            return [plain(v, where) for v in value]
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise StorageError(
            f"a value of type {type(value).__name__} cannot be stored",
            where=where,
            fix="use the recording without saving it",
        )

    described = [{k: plain(v, k) for k, v in call.items()} for call in calls]
    # Views of one memory, such as both halves of a batch, would be refused.
    tensors = {
        k: v.clone() if v.untyped_storage().nbytes() != v.nbytes else v for k, v in tensors.items()
    }
    write_tensors(tensors, file, metadata={"calls": json.dumps(described)})


def _read(file: Path) -> Iterator[dict[str, Any]]:
    def full(value: Any) -> Any:
        if isinstance(value, dict):
            if set(value) == {_TENSOR}:
                return tensors[value[_TENSOR]]
            if set(value) == {_TUPLE}:
                return tuple(full(v) for v in value[_TUPLE])
            if set(value) == {_ITEMS}:
                return {k: full(v) for k, v in value[_ITEMS]}
            return {k: full(v) for k, v in value.items()}
        return [full(v) for v in value] if isinstance(value, list) else value

    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            described = checked(
                list[dict[str, Any]],
                json.loads(opened.metadata()["calls"]),
                "the list of calls",
                str(file),
            )
        calls = [full(call) for call in described]
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise StorageError(
            "recorded calls cannot be read",
            where=str(file),
            why=f"{type(error).__name__}: {error}",
            fix="the file is missing or was cut; record again",
        ) from error
    yield from calls
