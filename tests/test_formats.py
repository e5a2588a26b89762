import pytest

from tdquant.errors import ExportError, StorageError
from tdquant.formats import check_version, json_safe


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
