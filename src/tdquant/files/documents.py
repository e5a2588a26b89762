"""JSON documents: files with a format, a version and a schema, written whole and read with all
their mistakes named.

    class Index(Document):
        FORMAT: ClassVar = "tdquant-index"
        VERSION: ClassVar = 2
        model: dict[str, Any]
        layers: list[Layer] = []

    Index(model={}).write(path)
    index = Index.read(path, "the index", fix="save the model again")

What a newer tdquant wrote is refused by its version; keys that this one does not know are ignored.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import ErrorDetails

from tdquant.errors import StorageError, TDQError
from tdquant.files.writing import replacing

MOST_SHOWN = 8
"""Mistakes that an error lists; of the others it gives the count."""

_DEEPEST = 64
"""Levels of JSON that are read."""

_WORDS = {
    "string": "text", "int": "a whole number", "float": "a number", "bool": "true or false",
    "dict": "an object", "mapping": "an object", "model": "an object", "list": "a list",
    "tuple": "a list", "none": "null", "finite": "a number",
}  # fmt: skip


def _finite_or_none(value: Any) -> Any:
    """JSON has no NaN and no infinity; Python writes and reads them all the same."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_file_name(name: str) -> str:
    if name in ("", "..") or name != Path(name).name or not name.isprintable():
        raise ValueError("is not the name of a file in the folder")
    return name


FileName = Annotated[str, AfterValidator(_is_file_name)]
"""The name of a file in the document's own folder."""

Gap = Annotated[float | None, BeforeValidator(_finite_or_none)]
"""A number, or a gap where there is none: null, NaN or an infinity in the file."""


class Section(BaseModel):
    """An object inside a document. Types are taken as they are: ``"3"`` and ``true`` are no
    numbers, a whole number is one, NaN and infinities are none.
    """

    model_config = ConfigDict(
        extra="ignore", strict=True, frozen=True, allow_inf_nan=False, protected_namespaces=()
    )


D = TypeVar("D", bound="Document")


class Document(Section):
    """A JSON file. Subclasses give its format, its version and its keys.

    Attributes:
        FORMAT: What its key ``format`` says.
        VERSION: Newest version that is read, and the one that is written.
    """

    FORMAT: ClassVar[str]
    VERSION: ClassVar[int]

    def to_dict(self) -> dict[str, Any]:
        """The content, JSON-safe: numbers that are not finite become None."""
        own = self.model_dump(by_alias=True)
        return json_safe({"format": self.FORMAT, "version": self.VERSION, **own})

    @classmethod
    def from_dict(
        cls: type[D], content: Any, what: str, where: str, fix: str = "",
        error: type[TDQError] = StorageError,
    ) -> D:  # fmt: skip
        """Checks what ``to_dict`` gave.

        Arguments:
            content: What JSON gave.
            what: What is damaged if it does not fit, such as ``"the record"``.
            where: The file.
            fix: What to do then.
            error: What to raise.

        Raises:
            StorageError: The content is of another format, newer, or does not fit the schema; all
                mistakes are listed with their places. Or what ``error`` says.
        """
        if not isinstance(content, dict) or content.get("format") != cls.FORMAT:
            raise error(f"a foreign format, not {cls.FORMAT}", where=where, fix=fix)
        check_version(content.get("version"), cls.VERSION, where, error)
        return checked(cls, content, what, where, fix, error)

    @classmethod
    def read(cls: type[D], path: str | os.PathLike[str], what: str, fix: str = "") -> D:
        """Reads the file.

        Raises:
            StorageError: It is missing, no JSON, or what ``from_dict`` refuses.
        """
        return cls.from_dict(read_json(path, what, fix), what, str(path), fix)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the file, whole or not at all.

        Raises:
            StorageError: The disk is full, or the place is read-only.
        """
        write_json(path, self.to_dict())


def _whole(text: str) -> int:
    """A whole number of at most 64 bits, as libraries take them."""
    number = int(text)
    if not -(1 << 63) <= number < 1 << 64:
        raise ValueError(f"a number of {number.bit_length()} bits, {text:.20}...")
    return number


def read_json(path: str | os.PathLike[str], what: str, fix: str = "") -> Any:
    """The content of a JSON file.

    Raises:
        StorageError: It is missing, no JSON, has a whole number of more than 64 bits, or is nested
            deeper than anything that tdquant writes.
    """
    try:
        content = json.loads(Path(path).read_text("utf-8"), parse_int=_whole)
        level = [content]
        for _ in range(_DEEPEST):
            level = [
                child
                for node in level
                if isinstance(node, (dict, list))
                for child in (node.values() if isinstance(node, dict) else node)
            ]
        if level:
            raise RecursionError(f"nested deeper than {_DEEPEST}")  # so does copying it
        return content
    except FileNotFoundError as error:
        raise StorageError(f"{what} is missing", where=str(path), fix=fix) from error
    except (OSError, ValueError, RecursionError) as error:
        raise StorageError(
            f"{what} is damaged", where=str(path), why=str(error), fix=fix
        ) from error


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Writes a JSON file, whole or not at all; numbers that are not finite become null.

    Raises:
        StorageError: The disk is full, or the place is read-only.
    """
    with replacing(Path(path)) as fresh:
        text = json.dumps(json_safe(content), indent=1, allow_nan=False)
        fresh.write_text(text + "\n", "utf-8")


T = TypeVar("T")


def checked(
    schema: type[T], content: Any, what: str, where: str, fix: str = "",
    error: type[TDQError] = StorageError,
) -> T:  # fmt: skip
    """The content as an instance of a schema: a ``Section``, or a type such as ``list[Row]``.

    Raises:
        StorageError: It does not fit; all mistakes are listed. Or what ``error`` says.
    """
    try:
        return TypeAdapter(schema).validate_python(content)
    except ValidationError as wrong:
        listed = _listed(mistakes_of(wrong))
        raise error(f"{what} is damaged:{listed}", where=where, fix=fix) from wrong


def mistakes_of(error: ValidationError) -> list[str]:
    """Every mistake, with its place: ``sampling.size[1] is not a whole number``."""
    found: dict[str, list[str]] = {}
    for detail in error.errors(include_url=False, include_input=False):
        place, word = _place(detail), _word(detail)
        if word not in found.setdefault(place, []):  # a union has one for each of its members
            found[place].append(word)
    return [
        f"{place or 'the file'} " + " or ".join([words[0], *(w[7:] for w in words[1:])])
        for place, words in found.items()
    ]


def _place(detail: ErrorDetails) -> str:
    place = ""
    for part in detail["loc"]:
        if isinstance(part, int):
            place += f"[{part}]"
        elif part not in _TAGS and not part.startswith(("function-", "constrained-")):
            place += f".{part}" if place else part
    return place


_TAGS = {"float", "int", "str", "bool", "none"}
"""Parts of a place that name a member of a union."""


def _word(detail: ErrorDetails) -> str:
    kind = detail["type"]
    if kind == "missing":
        return "is missing"
    stem = kind.split("_")[0]
    if stem in _WORDS and kind.endswith(("_type", "_number", "_required")):
        return f"is not {_WORDS[stem]}"
    return detail["msg"][:1].lower() + detail["msg"][1:]


def _listed(mistakes: list[str]) -> str:
    more = [f"and {len(mistakes) - MOST_SHOWN} more"] if len(mistakes) > MOST_SHOWN else []
    return "".join(f"\n  - {line}" for line in [*mistakes[:MOST_SHOWN], *more])


def check_version(
    found: Any, known: int, where: str, error: type[TDQError] = StorageError
) -> None:
    """Refuses what a newer tdquant wrote, and what is no version.

    Arguments:
        found: Version that the file says.
        known: Newest version that this tdquant reads.
        where: The file.
        error: What to raise.

    Raises:
        StorageError: The file is newer, or its version no whole number from 1; or what ``error``
            says.
    """
    if type(found) is not int or found < 1:  # true is an int
        raise error(f"format version {found!r}", where=where, why="it is 1 or more")
    if found > known:
        raise error(
            f"format version {found}, newer than {known}", where=where, fix="update tdquant"
        )


def json_safe(value: Any) -> Any:
    """The value with plain dictionaries and lists, and None for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {str(k): json_safe(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_safe(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
