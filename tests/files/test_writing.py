import pytest
import torch
from safetensors import safe_open

from tdquant.files.writing import replacing, write_tensors


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


def test_tensors_may_be_read_by_whom_any_new_file_may(tmp_path):
    (tmp_path / "plain").write_text("")
    file = tmp_path / "a.safetensors"
    write_tensors({"a": torch.arange(3)}, file, {"made": "here"})
    assert file.stat().st_mode == (tmp_path / "plain").stat().st_mode
    with safe_open(file, framework="pt") as opened:
        assert opened.metadata() == {"made": "here"}
        assert torch.equal(opened.get_tensor("a"), torch.arange(3))
