import pytest

from tdquant.writing import replacing


def test_the_new_file_takes_the_place_of_the_old(tmp_path):
    file = tmp_path / "folder" / "a.txt"
    for text in ("first", "second"):
        with replacing(file) as fresh:
            fresh.write_text(text)
            assert fresh.parent == file.parent
        assert file.read_text() == text
    assert [p.name for p in file.parent.iterdir()] == ["a.txt"]


def test_a_failure_leaves_what_was_there(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("old")

    def fail():
        with replacing(file) as fresh:
            fresh.write_text("half")
            raise OSError("No space left on device")

    with pytest.raises(OSError, match="space"):
        fail()
    assert file.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
