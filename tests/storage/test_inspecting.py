import json
import pickle

import pytest
import torch
from safetensors.torch import save_file

import tdquant as tdq
from tdquant.cli import main
from tdquant.errors import StorageError
from tdquant.storage import inspect_saved
from tdquant.storage.sparkline import BARS, sparkline
from tests.denoisers import Mixed, calls


class Trap:
    """A pickle of it would raise when it is opened."""

    def __reduce__(self):
        return (exec, ("raise AssertionError('the pickle was opened')",))


@pytest.fixture
def saved(frozen, tmp_path):
    return tdq.save(frozen, tmp_path / "model")


def line_of(text, word):
    return next(line for line in text.splitlines() if line.startswith(word))


def test_a_model_layer_by_layer(saved, frozen):
    text = inspect_saved(saved)
    row = line_of(text, "linear")
    assert "4 bits" in row
    assert "6 bits" in row
    assert "1000 knots" in row
    assert sum(letter in BARS for letter in row) == 24
    assert "weights 4, activations 6, scale temporal" in text
    assert "calibrate: calls" in text
    stored = sum(t.numel() * t.element_size() for t in read(saved).values())
    assert f"{stored / 1e6:.2f} MB of tensors" in text


def read(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_static_and_dynamic_scales_are_said_so(tmp_path):
    for scale, words in (("static", r"6 bits"), ("dynamic", "dynamic: from each input")):
        model = Mixed().eval()
        tdq.quantize(model, tdq.Recipe(4, 6, scale=scale))
        tdq.calibrate(model, calls(), progress=False)
        text = inspect_saved(tdq.save(tdq.freeze(model), tmp_path / scale))
        assert words in text
        assert not any(bar in text for bar in BARS)


def test_a_training_run_and_a_checkpoint(tmp_path, calibrated):
    data = torch.randn(8, 6, 8, 8)
    schedulers = pytest.importorskip("diffusers")
    done = tdq.train(
        calibrated,
        list(data),
        schedulers.DDIMScheduler(),
        steps=2,
        batch=4,
        out=tmp_path,
        progress=False,
    ).tdq.training
    text = inspect_saved(tmp_path)
    assert "step-00000002: step 2" in text
    assert "temporal at 6 bits" in text
    tdq.save(tdq.freeze(done.average), tmp_path / "frozen")
    assert "frozen: the caller's" in inspect_saved(tmp_path)
    state = tmp_path / "checkpoints" / "step-00000002" / "state.json"
    state.write_text(json.dumps({"step": 2}))
    with pytest.raises(StorageError, match="damaged"):
        inspect_saved(tmp_path)


def test_a_file_of_tensors(tmp_path):
    file = tmp_path / "weights.safetensors"
    save_file({"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.bfloat16)}, file)
    text = inspect_saved(file)
    assert "2x3" in text
    assert "bfloat16" in text
    assert "2 tensors, 0.00 MB" in text
    save_file({"a" * 60: torch.zeros(2, 3)}, file)
    assert inspect_saved(file).endswith("1 tensor, 0.00 MB")
    line = inspect_saved(file, 40).splitlines()[0]
    assert len(line) == 40
    assert line.endswith("a  float32  2x3")


@pytest.mark.parametrize("width", [200, 110, 90, 60, 20])
def test_tables_are_cut_to_the_terminal(saved, width):
    whole = inspect_saved(saved).splitlines()
    lines = inspect_saved(saved, width).splitlines()
    first = lines.index("") + 1
    assert len(lines) == len(whole)
    assert lines[:first] == whole[:first]
    assert all(len(line) <= width for line in lines[first:-1])
    if width >= max(map(len, whole)):
        assert lines == whole
    if width == 90:
        assert sum(letter in BARS for letter in line_of("\n".join(lines), "linear")) >= 8


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("a.json", '{"format": "tdquant-study"}', "JSON of the format tdquant-study"),
        ("b.json", "[1, 2]", "JSON of no known format"),
        ("c.json", '{"a": ', "damaged JSON"),
        ("d.yaml", "a: 3", "no file of torch.save"),
    ],
)
def test_other_files_are_no_files_of_tensors(tmp_path, name, text, why):
    (tmp_path / name).write_text(text)
    with pytest.raises(StorageError, match="not a file of tensors") as caught:
        inspect_saved(tmp_path / name)
    assert why in caught.value.why
    assert "cut" not in caught.value.fix


def test_pickles_are_listed_without_running_them(tmp_path):
    file = tmp_path / "model.ckpt"
    torch.save({"state_dict": {"a": torch.zeros(1000), "b.c": torch.zeros(3).half()}}, file)
    text = inspect_saved(file)
    assert "a    float32  1000" in text
    assert "b.c  float16  3" in text
    assert "2 tensors" in text
    torch.save({"a": torch.zeros(2), "trap": Trap()}, file)
    with pytest.raises(StorageError, match=r"it names \w+\.exec"):
        inspect_saved(file)
    (tmp_path / "old.pt").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(StorageError, match=r"no file of torch\.save"):
        inspect_saved(tmp_path / "old.pt")


@pytest.mark.parametrize("name", ["nothing", "text.safetensors", "folder"])
def test_what_cannot_be_told(tmp_path, name, capsys):
    (tmp_path / "text.safetensors").write_text("no tensors")
    (tmp_path / "folder").mkdir()
    assert main(["inspect", str(tmp_path / name)]) == 1
    assert str(tmp_path / name) in capsys.readouterr().err


def test_a_model_whose_tensors_were_cut(saved):
    whole = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(StorageError, match="tensors cannot be read") as error:
        inspect_saved(saved)
    assert str(saved / "model.safetensors") in str(error.value)


def test_sparkline_follows_the_curve_in_log_scale():
    rising = sparkline(torch.logspace(0, 3, 64), 8)
    assert rising == BARS
    assert sparkline(torch.logspace(3, 0, 64), 8) == BARS[::-1]
    assert sparkline(torch.full((50,), 0.3)) == BARS[0] * 24
    assert sparkline([0.1, 0.2]) == BARS[0] + BARS[-1]
