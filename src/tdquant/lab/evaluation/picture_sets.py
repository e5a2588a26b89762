"""Sets of images that serve as references: folders, and data sets that need only a name."""

from __future__ import annotations

import hashlib
import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tdquant.diffusion.pictures import to_uint8
from tdquant.errors import DataError
from tdquant.files.looking import is_folder
from tdquant.lab.data import DATASETS
from tdquant.lab.data.folder import picture_files
from tdquant.lab.data.registry import make_dataset
from tdquant.lab.evaluation.image_files import (
    check_pictures,
    content_digest,
    preparation,
    read_pictures,
)
from tdquant.lab.metrics.frechet import CATS_HELDOUT

HELDOUT = "cats-heldout"
KEPT = 10_000
"""Images of a set that are taken without a count."""


@dataclass(frozen=True)
class PictureSet:
    """Images before features are computed.

    Attributes:
        name: Its name.
        place: Distinguishes sets of one name.
        count: Number of images.
        size: Their height and width.
        preprocessing: What was done to them, in words.
        digest: Digest of its content.
        part: ``(first, end) -> (end - first, 3, H, W)``, uint8.
    """

    name: str
    place: str
    count: int
    size: tuple[int, int]
    preprocessing: str
    digest: str
    part: Callable[[int, int], Tensor]


def find_pictures(spec: str, side: int | None, resize: int | None) -> PictureSet:
    """The set of ``FOLDER[:COUNT]``, resized to a side, or of ``NAME[:SPLIT][:COUNT]``, drawn at
    the side of the judged images if it can be.

    Raises:
        DataError: There is no such set, or it has fewer images.
    """
    place, count = counted_folder(spec)
    return _dataset(spec, side) if place is None else _folder(place, count, resize)


def counted_folder(spec: str) -> tuple[Path | None, int | None]:
    """Folder and count of ``FOLDER[:COUNT]``; no folder if ``spec`` is something else."""
    before, _, count = spec.rpartition(":")
    if is_folder(spec):
        return Path(spec), None
    if count.isdigit() and before and is_folder(before):
        return Path(before), int(count)
    return None, None


def _warn_of_the_rest(spec: str, there: int) -> None:
    if there > KEPT:
        warnings.warn(
            f"reference set {spec}: the first {KEPT} of {there} images are taken; {spec}:{there} "
            "takes all",
            stacklevel=5,
        )


def _folder(path: Path, count: int | None, resize: int | None) -> PictureSet:
    files = picture_files(path)
    if count is not None and not 0 < count <= len(files):
        raise DataError(f"{len(files)} images, {count} asked for", where=str(path))
    if count is None:
        _warn_of_the_rest(str(path), len(files))
    files = files[: count or KEPT]
    size = check_pictures(files, resize)
    place = str(path.resolve())
    return PictureSet(
        path.resolve().name,
        place if count is None else f"{place}:{count}",
        len(files),
        size,
        preparation(size, resize),
        content_digest(files),
        lambda first, end: read_pictures(files[first:end], resize),
    )


def _dataset(spec: str, side: int | None) -> PictureSet:
    """``NAME[:SPLIT][:COUNT]`` in the size of the images that are judged."""
    name, *rest = (f"cats:heldout:{CATS_HELDOUT}" if spec == HELDOUT else spec).split(":")
    if name not in _named_sets() or len(rest) > 2:
        raise DataError(
            f"no reference set {spec!r}",
            why=f"the name {name} does not say where it lies" if name in DATASETS else "",
            fix=f"{HELDOUT}, NAME:SPLIT:COUNT with a NAME of {', '.join(_named_sets())}, a folder "
            "of images as FOLDER or FOLDER:COUNT, or statistics in .npz or .safetensors",
        )
    counts = [word for word in rest if word.isdigit()]
    splits = [word for word in rest if word not in counts]
    if len(counts) > 1 or len(splits) > 1 or counts == ["0"]:
        raise DataError(
            f"reference set {spec!r}", fix="NAME:SPLIT:COUNT, such as cats:heldout:500"
        )
    known = inspect.signature(DATASETS[name]).parameters
    if splits and "split" not in known:
        raise DataError(f"{name} has no splits", where=spec, fix=f"{name}:COUNT")
    count = int(counts[0]) if counts else KEPT
    options: dict[str, Any] = {"split": splits[0]} if splits else {}
    if counts and "count" in known:
        options["count"] = count
    if spec != HELDOUT and side is not None and "size" in known:
        options["size"] = side
    found = make_dataset(name, where=spec, **options)
    if not counts:
        _warn_of_the_rest(spec, len(found))
    if counts and len(found) < count:
        raise DataError(f"{len(found)} images, {count} asked for", where=spec)
    count = min(count, len(found))
    size = tuple(found[0].shape[-2:])

    def part(first: int, end: int) -> Tensor:
        images = to_uint8(torch.stack([found[i] for i in range(first, end)]))
        return images.expand(-1, 3, -1, -1)

    # Evenly spread items represent all: reading a large set would take as long as its features.
    chosen = [found[round(i * (count - 1) / 31)] for i in range(32)]
    digest = hashlib.sha256(f"{count}|".encode() + to_uint8(torch.stack(chosen)).numpy().tobytes())
    return PictureSet(
        spec if spec == HELDOUT else ":".join([name, *splits, str(count)]),
        name,
        count,
        (int(size[0]), int(size[1])),
        preparation((int(size[0]), int(size[1])), None),
        digest.hexdigest()[:16],
        part,
    )


def _named_sets() -> list[str]:
    """The data sets that need only a name."""
    empty = inspect.Parameter.empty
    return [
        name
        for name, make in DATASETS.items()
        if all(p.default is not empty for p in inspect.signature(make).parameters.values())
    ]
