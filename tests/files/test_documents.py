import json
from typing import ClassVar

import pytest

from tdquant.errors import DataError, ExportError, StorageError
from tdquant.files.documents import (
    Document,
    Gap,
    Section,
    check_version,
    checked,
    json_safe,
    read_json,
    write_json,
)


class Row(Section):
    width: int
    error: float | None = None


class Example(Document):
    FORMAT: ClassVar = "example"
    VERSION: ClassVar = 2

    rows: list[Row]
    curve: list[Gap] | None = None
    values: list[str | int | float] | None = None
    size: list[int] | None = None


def told(content):
    with pytest.raises(StorageError) as caught:
        Example.from_dict(content, "the example", "here")
    return str(caught.value)


def test_a_document_comes_back(tmp_path):
    path = tmp_path / "example.json"
    written = Example(rows=[Row(width=3, error=0.5)], values=["a", 1, 2.5], size=[2, 3])
    written.write(path)
    assert Example.read(path, "the example") == written
    assert json.loads(path.read_text())["version"] == 2


def test_every_mistake_is_listed_with_its_place():
    text = told(
        {
            "format": "example", "version": 1, "rows": [{"width": True}, {"error": "big"}, 3],
            "curve": "flat", "values": [{}],
        }
    )  # fmt: skip
    assert "rows[0].width is not a whole number" in text
    assert "rows[1].width is missing" in text
    assert "rows[1].error is not a number" in text
    assert "rows[2] is not an object" in text
    assert "curve is not a list" in text
    assert "values[0] is not text or a whole number or a number" in text


def test_more_mistakes_than_anybody_reads_are_counted():
    text = told({"format": "example", "version": 1, "rows": [{}] * 20})
    assert text.count("is missing") == 8
    assert "and 12 more" in text


def test_numbers_that_are_not_finite_are_gaps_where_gaps_may_be():
    spec = {"format": "example", "version": 1, "rows": [], "curve": [1.0, float("nan"), None]}
    assert Example.from_dict(spec, "the example", "").curve == [1.0, None, None]
    assert "error" in told({**spec, "rows": [{"width": 1, "error": float("inf")}]})


def test_a_newer_document_and_a_foreign_one_are_refused():
    assert "newer than 2" in told({"format": "example", "version": 3, "rows": []})
    assert "a foreign format" in told({"format": "other", "version": 1})
    assert "a foreign format" in told([1])
    for version in (0, True, "1", None):
        assert "format version" in told({"format": "example", "version": version})


def test_unknown_keys_are_ignored():
    spec = {"format": "example", "version": 1, "rows": [], "new": 1}
    assert Example.from_dict(spec, "the example", "").rows == []


def test_the_error_is_the_callers():
    with pytest.raises(DataError, match="the list is damaged"):
        checked(list[int], ["a"], "the list", "here", error=DataError)


def test_missing_and_damaged_files(tmp_path):
    path = tmp_path / "example.json"
    with pytest.raises(StorageError, match="the example is missing"):
        Example.read(path, "the example")
    path.write_bytes(b'{"format": "\xff')
    with pytest.raises(StorageError, match="the example is damaged"):
        Example.read(path, "the example")
    path.write_text("[" * 100_000)
    with pytest.raises(StorageError, match="the example is damaged"):
        read_json(path, "the example")


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "example.json"
    write_json(path, {"a": float("inf")})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": None}
    assert [p.name for p in tmp_path.iterdir()] == ["example.json"]


@pytest.mark.parametrize("version", [None, 0, -1, True, 1.0, "1", [1]])
def test_what_is_no_version(version):
    with pytest.raises(StorageError, match="format version"):
        check_version(version, 3, "file")


def test_a_newer_file_says_what_to_do():
    check_version(3, 3, "file")
    with pytest.raises(ExportError, match=r"version 4, newer than 3(?s:.)*update tdquant"):
        check_version(4, 3, "file", ExportError)


def test_json_has_no_infinity():
    found = json_safe({1: (float("nan"), 2.0), "b": [float("inf")], "c": {"d": -0.5}})
    assert found == {"1": [None, 2.0], "b": [None], "c": {"d": -0.5}}


@pytest.mark.parametrize("number", [2**64, -(2**63) - 1, 10**400])
def test_whole_numbers_that_no_library_takes(tmp_path, number):
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"seed": 2**64 - 1, "low": -(2**63)}))
    assert read_json(file, "a") == {"seed": 2**64 - 1, "low": -(2**63)}
    file.write_text(json.dumps({"n": [number]}))
    with pytest.raises(StorageError, match="a number of"):
        read_json(file, "a")


def test_json_nested_deeper_than_anything(tmp_path):
    file = tmp_path / "x.json"
    for depth in (65, 900, 100_000):
        file.write_text("[" * depth + "]" * depth)
        with pytest.raises(StorageError, match="the file is damaged"):
            read_json(file, "the file")
