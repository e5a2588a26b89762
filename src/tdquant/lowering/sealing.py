"""The description inside an exported file, and a digest over everything that belongs to it.

    digest = SHA-256 of the file with zeros in the digest's place, then of the files beside it

Engines check little of what they read: a changed byte among the weights is just another weight.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from tdquant.errors import ExportError
from tdquant.files.documents import Document, Section

KEY = "tdquant"
"""Key of the description in a file's own metadata."""

CONSTANTS = ".data"
"""Appended to the name of a graph that is too large for one file: the file of its constants."""

BLANK = "0" * 64

_SEAL = re.compile(rb'(?:"|&quot;)digest(?:"|&quot;): (?:"|&quot;)([0-9a-f]{64})(?:"|&quot;)')


class Port(Section):
    """An input of the graph; a size of its shape is None where it is free."""

    name: str
    dtype: Literal["bool", "uint8", "int8", "int16", "int32", "int64", "float32", "float64"]
    shape: list[int | None]


class Result(Section):
    """How the graph's outputs become what the model returns."""

    kind: Literal["tensor", "tuple", "mapping"]
    keys: list[str] = Field(default_factory=list)


class Description(Document):
    """What a session needs to know of a file: ``Call.description``. Other keys that ``export``
    wrote are not checked.
    """

    FORMAT: ClassVar = "tdquant"
    VERSION: ClassVar = 1
    parameters: list[str]
    timestep: str
    sample: str
    inputs: list[Port]
    constants: dict[str, bool | int | float | str]
    output: Result
    rows: list[dict[str, Any]] = Field(default_factory=list)
    digest: str


def description_text(about: dict[str, Any]) -> str:
    """The description as text, for a file that is to be sealed."""
    known = {"format": Description.FORMAT, "version": Description.VERSION, "digest": BLANK}
    return json.dumps({**about, **known})


def seal(file: Path, others: Sequence[Path] = ()) -> None:
    """Enters the digest of an exported file, and of those beside it, into its description.

    Raises:
        ExportError: The file does not hold the description.
    """
    data, blank = file.read_bytes(), BLANK.encode()
    if data.count(blank) != 1:
        raise ExportError("the engine did not keep the description", where=str(file))
    file.write_bytes(data.replace(blank, _digest(data, others).encode()))


def check_seal(file: Path, others: Sequence[Path] = ()) -> None:
    """Compares a file, and those beside it, with the digest in its description.

    Raises:
        ExportError: They are not what was written, or something else than an exported file.
    """
    try:
        data = file.read_bytes()
        found = _SEAL.findall(data)
        if len(found) != 1:
            raise _foreign(file, "it has no digest, which is at the end of .onnx and .xml files")
        digest = _digest(data.replace(found[0], BLANK.encode()), others)
    except OSError as error:
        raise ExportError("the file cannot be read", where=str(file), why=str(error)) from error
    if digest != found[0].decode():
        raise ExportError(
            "the file is not what was exported",
            where=", ".join(str(path) for path in (file, *others)),
            why="its digest differs: it is damaged, was changed, or is beside another's constants",
            fix="copy it again, or export again",
        )


def read_description(text: str | None, file: Path) -> dict[str, Any]:
    """The description that a file holds.

    Raises:
        ExportError: There is none, it is damaged, or of a newer format.
    """
    try:
        about = json.loads(text or "")
    except json.JSONDecodeError:
        about = None
    if not isinstance(about, dict) or about.get("format") != Description.FORMAT:
        raise _foreign(file, "it has no description of the model's call")
    Description.from_dict(about, "the description", str(file), "export again", ExportError)
    return about


def _foreign(file: Path, why: str) -> ExportError:
    return ExportError(
        "not a file that tdq.export wrote, or a part of one",
        where=str(file),
        why=why,
        fix="tdq.export(frozen, path, example=(x, t))",
    )


def _digest(data: bytes, others: Sequence[Path]) -> str:
    found = hashlib.sha256(data)
    for path in others:
        with path.open("rb") as file:
            while part := file.read(2**20):
                found.update(part)
    return found.hexdigest()
