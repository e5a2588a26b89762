"""The record of an evaluation: what was judged, how, against what, and the numbers with their
intervals. One JSON file, written last, so that where it is the run is whole.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tdquant.errors import StorageError
from tdquant.files.documents import check_version, json_safe
from tdquant.files.shapes import refuse
from tdquant.files.writing import replacing
from tdquant.lab.evaluation.shape import record_mistakes

FORMAT, VERSION = "tdquant-record", 1
RECORD, PROGRESS = "record.json", "progress.json"
WARNING = "warning: "
"""Before a reason that asks for care and does not forbid a comparison."""
_SPEED = ("device", "processor", "cores", "threads")
"""What speeds depend on of a machine."""


@dataclass(frozen=True)
class Record:
    """One evaluated model. Every part is JSON: dictionaries as docs/evaluation.md lists them.

    Attributes:
        tdquant: Version that wrote it.
        created: ISO time.
        model: What was judged: name, source, digest, recipe, bits, scale, history.
        sampling: How its images were made: images, seed, batch, steps, eta, scheduler, ...
        reference: The set that they are compared with, or None.
        network: The feature network: name, digest, title.
        metrics: Name -> title, value, low, high, images, better, unit.
        cost: Seconds of it all and of sampling, whether the run was resumed, images a second,
            milliseconds a call, megabytes.
        machine: What it ran on.
        paired: Comparison with another model from the same noise, or None.
        sqnr: Times and decibels of the denoiser's output, or None.
        command: The command that made it.
        asked: Digest of everything that was asked for, by which a finished run is known again.
    """

    tdquant: str
    created: str
    model: Mapping[str, Any]
    sampling: Mapping[str, Any]
    reference: Mapping[str, Any] | None
    network: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, Any]]
    cost: Mapping[str, Any]
    machine: Mapping[str, Any]
    paired: Mapping[str, Any] | None = None
    sqnr: Mapping[str, Any] | None = None
    command: str = ""
    asked: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe; numbers that are not finite become None."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        return json_safe({"format": FORMAT, "version": VERSION, **own})

    @classmethod
    def from_dict(cls, spec: Any, where: str = "") -> Record:
        """Reads what ``to_dict`` gave.

        Raises:
            StorageError: It is foreign, of a newer format, or damaged; every part that is not what
                a record has is named.
        """
        if not isinstance(spec, dict) or spec.get("format") != FORMAT:
            raise StorageError(
                "not the record of an evaluation",
                where=where,
                fix="a folder that tdquant evaluate wrote",
            )
        check_version(spec.get("version"), VERSION, where)
        refuse(record_mistakes(spec), "the record", where, "evaluate again")
        # What other versions of tdquant wrote beside, such as complete, says nothing here.
        known = {f.name for f in fields(cls)}
        given = {k: v for k, v in spec.items() if k in known and v is not None}
        return cls(**{"reference": None, **given})

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the JSON file, whole or not at all."""
        with replacing(Path(path)) as fresh:
            fresh.write_text(json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Record:
        """Reads a record.

        Arguments:
            path: The file, or the folder of a run.

        Raises:
            StorageError: There is none, it is damaged, foreign or newer, or the run is still being
                written.
        """
        file = Path(path)
        if file.is_dir():
            file = file / RECORD
        try:
            spec = json.loads(file.read_text())
        except FileNotFoundError as error:
            raise _missing(file) from error
        except (OSError, ValueError) as error:
            raise StorageError(
                "the record is damaged", where=str(file), why=str(error), fix="evaluate again"
            ) from error
        return cls.from_dict(spec, str(file))


def newer_version(file: Path) -> int | None:
    """The version of a record that this tdquant is too old for, and None of any other file."""
    try:
        spec = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(spec, dict) or spec.get("format") != FORMAT:
        return None
    version = spec.get("version")
    return version if type(version) is int and version > VERSION else None


def _missing(file: Path) -> StorageError:
    try:
        state = json.loads((file.parent / PROGRESS).read_text())
        return StorageError(
            "the run is still being written, or was stopped",
            where=str(file.parent),
            why=f"{state['stage']}: {state['done']} of {state['of']} at {state['updated']}",
            fix="let it end, or repeat its command: it goes on where it was",
        )
    except (OSError, ValueError, KeyError, TypeError):
        return StorageError(
            "no record here", where=str(file), fix="a folder that tdquant evaluate wrote"
        )


def incomparable(a: Record, b: Record) -> list[str]:
    """Every reason why the numbers of two records must not stand in one table.

    What asks for care only, such as another sampler where samplers are what is compared, begins
    with ``WARNING``.
    """
    reasons = []
    if a.network.get("digest") != b.network.get("digest"):
        reasons.append(f"feature networks {_network(a)} and {_network(b)}")
    if (a.reference is None) != (b.reference is None):
        reasons.append("one has no reference set")
    elif a.reference is not None and b.reference is not None:
        for key in ("name", "images", "preprocessing", "digest"):
            if a.reference.get(key) != b.reference.get(key):
                found = f"{a.reference.get(key)} and {b.reference.get(key)}"
                reasons.append(f"reference {key} {found}")
    if a.sampling.get("images") != b.sampling.get("images"):
        reasons.append(f"{a.sampling.get('images')} and {b.sampling.get('images')} images")
    # Of latents the shape says little; records before the size have nothing else.
    shown = "size" if all(r.sampling.get("size") for r in (a, b)) else "shape"
    if a.sampling.get(shown) != b.sampling.get(shown):
        reasons.append(f"images of {a.sampling.get(shown)} and {b.sampling.get(shown)}")
    if a.sampling.get("prompts") != b.sampling.get("prompts"):
        reasons.append("other prompts")
    reasons += _other_arguments(a, b)
    reasons += _other_networks(a.metrics, b.metrics)
    if a.paired and b.paired:
        reasons += _other_networks(a.paired["metrics"], b.paired["metrics"])
        if a.paired["against"].get("digest") != b.paired["against"].get("digest"):
            reasons.append("paired errors against other models")
        if a.sampling.get("seed") != b.sampling.get("seed"):
            reasons.append("paired errors from other seeds")
        if a.paired["images"] != b.paired["images"]:
            reasons.append(
                f"paired errors of {a.paired['images']} and {b.paired['images']} images"
            )
    for key in ("steps", "eta"):
        if a.sampling.get(key) != b.sampling.get(key):
            found = f"{a.sampling.get(key)} and {b.sampling.get(key)}"
            reasons.append(f"{WARNING}sampler {key} {found}")
    schedulers = [(r.sampling.get("scheduler") or {}) for r in (a, b)]
    if schedulers[0].get("digest") != schedulers[1].get("digest"):
        reasons.append(
            f"{WARNING}schedulers {' and '.join(str(s.get('name')) for s in schedulers)}"
        )
    if shown == "size" and a.sampling["size"] == b.sampling["size"]:
        prepared = [r.sampling.get("preprocessing") for r in (a, b)]
        if prepared[0] != prepared[1]:
            reasons.append(f"{WARNING}images {' and '.join(map(str, prepared))}")
    if all(r.cost.get("images_per_second") for r in (a, b)):
        places = [{k: r.machine.get(k) for k in _SPEED} for r in (a, b)]
        if places[0] != places[1]:
            reasons.append(f"{WARNING}speeds on two machines")
        if a.sampling.get("batch") != b.sampling.get("batch"):
            found = f"{a.sampling.get('batch')} and {b.sampling.get('batch')}"
            reasons.append(f"{WARNING}speeds in batches of {found}")
    if a.tdquant != b.tdquant:
        reasons.append(f"{WARNING}tdquant {a.tdquant} and {b.tdquant}")
    return reasons


def _other_arguments(a: Record, b: Record) -> list[str]:
    """Arguments of a pipeline's call that differ. Numbers, such as a guidance scale, may be what
    is compared; all else decides what the images show.
    """
    one, other = (dict(r.sampling.get("call") or {}) for r in (a, b))
    reasons = []
    for key in sorted(set(one) | set(other)):
        values = one.get(key), other.get(key)
        if values[0] != values[1]:
            mild = all(v is None or isinstance(v, (int, float)) for v in values)
            reasons.append(f"{WARNING if mild else ''}{key} {values[0]} and {values[1]}")
    return reasons


def _other_networks(
    a: Mapping[str, Mapping[str, Any]], b: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """Metrics by networks of their own that differ, or of which one record does not tell."""
    reasons = []
    for name in sorted(set(a) & set(b)):
        found = [m[name].get("network") for m in (a, b)]
        if found[0] != found[1]:
            how = "an unknown network" if None in found else "two networks"
            reasons.append(f"{a[name].get('title', name)} by {how}")
    return reasons


def _network(record: Record) -> str:
    return f"{record.network.get('title')} ({record.network.get('digest')})"
