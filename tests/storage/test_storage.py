import contextlib
import copy
import errno
import json
import os
import pickle
import re
import resource
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import tdquant as tdq
from tdquant import storage
from tdquant.errors import FreezeError, ModelError, StorageError
from tdquant.models import build
from tdquant.storage.inspecting import inspect_saved
from tests.conftest import quantized
from tests.denoisers import Mixed, Plain, Wide, calls
from tests.live import LiveBytes

INDEX, TENSORS = storage.INDEX, storage.TENSORS


@pytest.fixture
def saved(frozen, tmp_path):
    return tdq.save(frozen, tmp_path / "model")


@pytest.mark.parametrize("weights", [2, 3, 4, 8, 12, 32])
@pytest.mark.parametrize("scale", ["temporal", "dynamic"])
def test_bit_equal(weights, scale, tmp_path, x):
    frozen = tdq.freeze(quantized(weights=weights, activations=5, scale=scale))
    again = tdq.load(tdq.save(frozen, tmp_path / "m"), model=Mixed(seed=7))
    for t in (torch.tensor(3), torch.tensor([0, 500, 999])):
        assert torch.equal(again(x, t), frozen(x, t))
    assert tdq.is_frozen(again)
    assert tdq.summary(again) == tdq.summary(frozen)
    assert again.tdq.recipe == frozen.tdq.recipe


def test_the_correction_of_the_output_is_saved(frozen, tmp_path, x):
    plain = copy.deepcopy(frozen)
    frozen = tdq.correct(frozen, lambda x, t: 1.25 * plain(x, t) + 0.5, calls(), progress=False)
    back = tdq.load(tdq.save(frozen, tmp_path / "m"), model=Mixed())
    with torch.no_grad():
        for t in (torch.tensor(3), torch.tensor([0, 431, 999]), torch.tensor(10.5)):
            assert torch.equal(back(x, t), frozen(x, t))
        assert not torch.allclose(back(x, 3), plain(x, 3), rtol=0.1)
    said = inspect_saved(tmp_path / "m")
    assert "correct: gain 1.25" in said
    assert ", bias 0.5" in said
    assert "gain of the output over time: " in said
    assert "largest bias of the output over time: " in said
    assert "over time" not in inspect_saved(tdq.save(plain, tmp_path / "plain"))


def test_a_gain_that_0_1_saved(frozen, tmp_path, x):
    plain = copy.deepcopy(frozen)
    frozen = tdq.correct(
        frozen, lambda x, t: 1.25 * plain(x, t), calls(), bias=False, progress=False
    )
    folder = tdq.save(frozen, tmp_path / "m")
    tensors = {
        name.replace("tdq_correction.", "tdq_gain."): tensor
        for name, tensor in load_file(folder / TENSORS).items()
    }
    save_file(tensors, folder / TENSORS)
    index = json.loads((folder / INDEX).read_text())
    settings = index.pop("correction")
    index |= {"gain": {"knots": settings["knots"], "channels": None}, "digest": None}
    (folder / INDEX).write_text(json.dumps({**index, "tensors": sorted(tensors)}))
    with torch.no_grad():
        assert torch.equal(tdq.load(folder, model=Mixed())(x, 3), frozen(x, 3))
        assert not torch.equal(frozen(x, 3), plain(x, 3))
    assert "gain of the output over time: 1.25" in inspect_saved(folder)


def test_static_and_half_precision(tmp_path, x):
    frozen = tdq.freeze(quantized(scale="static", weights=4)).bfloat16()
    again = tdq.load(tdq.save(frozen, tmp_path / "m"), model=Mixed().bfloat16())
    assert torch.equal(again(x.bfloat16(), 5), frozen(x.bfloat16(), 5))
    assert again.conv_in.input_quantizer.scale.table.dtype == torch.float32


def test_rebuilt_from_its_configuration(tmp_path):
    pipe = tdq.models.load_embedded("tiny")
    model = tdq.quantize(pipe.unet, tdq.Recipe(scale="dynamic"))
    frozen = tdq.freeze(model)
    again = tdq.load(tdq.save(frozen, tmp_path / "m"))
    x = torch.randn(2, *pipe.shape)
    assert torch.equal(again(x, 5), frozen(x, 5))


def test_a_diffusers_model_is_rebuilt_too(tmp_path):
    unet = tdq.models.load_embedded("tiny").unet.unet
    frozen = tdq.freeze(tdq.quantize(unet, tdq.Recipe(scale="dynamic")))
    again = tdq.load(tdq.save(frozen, tmp_path / "m"))
    x = torch.randn(1, 12, 8, 8)
    assert torch.equal(again(x, 5).sample, frozen(x, 5).sample)


def test_only_json_and_safetensors(saved):
    assert {p.name for p in saved.iterdir()} == {TENSORS, INDEX}
    with pytest.raises(pickle.UnpicklingError):
        pickle.loads((saved / TENSORS).read_bytes())


def test_coverage_survives(saved):
    again = tdq.load(saved, model=Mixed())
    with pytest.warns(UserWarning, match="lies outside"):
        again(torch.ones(1, 6, 8, 8), 4000)


def test_model_that_cannot_be_rebuilt(saved):
    with pytest.raises(ModelError, match=r"load\(directory, model=\.\.\.\)"):
        tdq.load(saved)


def test_unfrozen(calibrated, tmp_path):
    with pytest.raises(FreezeError, match="frozen"):
        tdq.save(calibrated, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_saving_again_replaces(saved, frozen, x):
    other = tdq.freeze(quantized(weights=8))
    tdq.save(other, saved)
    assert torch.equal(tdq.load(saved, model=Mixed())(x, 3), other(x, 3))
    assert [p.name for p in saved.parent.iterdir()] == ["model"]


def test_files_of_the_user_stay_in_a_folder_that_is_saved_again(saved, frozen, x):
    (saved / "notes.txt").write_text("which run was it")
    other = tdq.freeze(quantized(weights=8))
    tdq.save(other, saved)
    assert torch.equal(tdq.load(saved, model=Mixed())(x, 3), other(x, 3))
    assert (saved / "notes.txt").read_text() == "which run was it"
    assert {p.name for p in saved.iterdir()} == {TENSORS, INDEX, "notes.txt"}


def test_a_save_that_died_between_two_renames_is_read(saved, frozen, x):
    left = saved.with_name(".model.tdquant-0")
    left.mkdir()
    saved.rename(left / "old")
    assert torch.equal(tdq.load(saved, model=Mixed())(x, 3), frozen(x, 3))
    assert [p.name for p in saved.parent.iterdir()] == ["model"]


def test_a_foreign_folder_is_not_overwritten(frozen, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(StorageError, match="something else"):
        tdq.save(frozen, tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
@pytest.mark.parametrize(
    ("where", "step"),
    [(os, "mkdir"), (os, "fsync"), (os, "replace"), (Path, "open"), (Path, "write_text")],
)
def test_a_disk_that_refuses_leaves_the_old_save(saved, frozen, x, monkeypatch, code, where, step):
    def refuse(path, *args, **kwargs):
        raise OSError(code, os.strerror(code), str(path))

    other = tdq.freeze(quantized(weights=8))
    with monkeypatch.context() as patch:
        patch.setattr(where, step, refuse)
        with pytest.raises(StorageError, match=re.escape(os.strerror(code))) as info:
            tdq.save(other, saved)
    assert info.value.where == str(saved)
    assert torch.equal(tdq.load(saved, model=Mixed())(x, 3), frozen(x, 3))
    assert [p.name for p in saved.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("limit", [100, 5000])  # within the header, and within the tensors
def test_a_disk_that_is_full_in_the_middle(saved, frozen, x, limit):
    other = tdq.freeze(quantized(weights=8))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(StorageError, match="cannot be written"):
            tdq.save(other, saved)
        with pytest.raises(StorageError, match="cannot be written"):
            tdq.save(other, saved.parent / "new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert torch.equal(tdq.load(saved, model=Mixed())(x, 3), frozen(x, 3))
    assert [p.name for p in saved.parent.iterdir()] == ["model"]


def test_a_path_through_a_file(frozen, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        tdq.save(frozen, tmp_path / "file" / "model")


def test_other_errors_pass_through(frozen, tmp_path, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", stop)
    with pytest.raises(KeyboardInterrupt):
        tdq.save(frozen, tmp_path / "m")
    assert not list(tmp_path.iterdir())


def test_saving_and_loading_hold_one_tensor_at_a_time(tmp_path):
    wide, x, t = Wide(width=256, depth=32), torch.randn(2, 256), torch.tensor(3)
    weight = 256 * 256 * 4
    recipe = tdq.Recipe(weights=4, activations=32, edges=4)
    frozen = tdq.freeze(tdq.quantize(wide, recipe))
    with LiveBytes() as live:
        tdq.save(frozen, tmp_path / "m")
    assert live.peak < 3 * weight  # of 32
    empty = Wide(width=256, depth=32)
    with LiveBytes() as live:
        compact = tdq.load(tmp_path / "m", model=empty, compact=True)
    assert 8 * weight < live.peak < 10 * weight  # codes take a quarter
    assert torch.equal(compact(x, t), frozen(x, t))
    with LiveBytes() as live:
        again = tdq.freeze(compact)
    assert live.peak < weight  # codes are shared
    assert torch.equal(again(x, t), frozen(x, t))
    with LiveBytes() as live:
        tdq.save(compact, tmp_path / "m")
    assert live.peak < 3 * weight


def test_a_weight_changed_after_freezing_is_not_saved(frozen, tmp_path):
    frozen.linear.weight.add_(0.01)
    with pytest.raises(FreezeError, match="linear"):
        tdq.save(frozen, tmp_path / "m")
    assert not list(tmp_path.iterdir())


def edit(saved, **changes):
    index = json.loads((saved / INDEX).read_text())
    index.update(changes)
    (saved / INDEX).write_text(json.dumps(index))


DAMAGE = {
    "missing folder": (lambda s: shutil.rmtree(s), "no tdquant.json"),
    "missing tensors": (lambda s: os.remove(s / TENSORS), "no model.safetensors"),
    "missing index": (lambda s: os.remove(s / INDEX), "no tdquant.json"),
    "truncated tensors": (
        lambda s: (s / TENSORS).write_bytes((s / TENSORS).read_bytes()[:-100]),
        "cannot be read",
    ),
    "empty tensors": (lambda s: (s / TENSORS).write_bytes(b""), "cannot be read"),
    "truncated index": (
        lambda s: (s / INDEX).write_text((s / INDEX).read_text()[:-100]),
        "the index is damaged",
    ),
    "binary index": (lambda s: (s / INDEX).write_bytes(b"\xff\xfe\x00"), "index is damaged"),
    "foreign": (lambda s: edit(s, format="onnx"), "foreign format"),
    "foreign list": (lambda s: (s / INDEX).write_text("[]"), "foreign format"),
    "newer": (lambda s: edit(s, version=99), "version 99, newer than"),
    "no version": (lambda s: edit(s, version=None), "format version None"),
    "incomplete": (
        lambda s: (s / INDEX).write_text('{"format": "tdquant", "version": 1}'),
        r"(?s)model is missing.*timestep is missing.*layers is missing.*attention is missing",
    ),
    "tensors of another save": (lambda s: edit(s, tensors=["a"]), "disagree"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_folders(saved, damage):
    harm, match = DAMAGE[damage]
    harm(saved)
    with pytest.raises(StorageError, match=match) as error:
        tdq.load(saved, model=Mixed())
    assert str(saved) in str(error.value)


@pytest.mark.parametrize("other", [Plain, lambda: nn.Linear(3, 3)])
def test_a_model_of_another_architecture(saved, other):
    with pytest.raises((StorageError, tdq.errors.ConversionError)):
        tdq.load(saved, model=other())


def test_wider_model(saved):
    wide = Mixed()
    wide.linear = nn.Linear(24, 12)
    with pytest.raises(StorageError, match="do not fit"):
        tdq.load(saved, model=wide)


def numbers(tree, path=()):
    """The places of all whole numbers in a document."""
    if isinstance(tree, int) and not isinstance(tree, bool):
        yield path
    elif isinstance(tree, (dict, list)):
        for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from numbers(value, (*path, key))


def test_whole_numbers_of_any_size(saved):
    text, seen = (saved / INDEX).read_text(), set()
    for *way, last in numbers(json.loads(text)):
        kind = tuple(key for key in (*way, last) if isinstance(key, str))[-2:]
        if kind in seen:
            continue
        seen.add(kind)
        for number in (-(2**70), -1, 2**40, 2**70):
            index = json.loads(text)
            place = index
            for key in way:
                place = place[key]
            place[last] = number
            (saved / INDEX).write_text(json.dumps(index))
            with contextlib.suppress(tdq.errors.TDQError):  # or it is a number that nobody reads
                tdq.load(saved, model=Mixed())
    assert {("input", "knots"), ("weight", "bits")} <= seen


def test_codes_that_do_not_fit_their_shape(saved):
    index = json.loads((saved / INDEX).read_text())
    index["layers"]["linear"]["weight"]["shape"] = [3, 3]
    (saved / INDEX).write_text(json.dumps(index))
    with pytest.raises(StorageError, match="codes of 4 bits"):
        tdq.load(saved, model=Mixed())


def test_compact_weights_are_codes_and_give_the_same_bits(frozen, saved, x):
    compact = tdq.load(saved, model=Mixed(), compact=True)
    assert compact.grouped.codes.dtype == torch.int8
    assert compact.grouped.weight.dtype == torch.float32
    t = torch.tensor([3, 500, 999])
    with torch.no_grad():
        assert torch.equal(compact(x, t), tdq.load(saved, model=Mixed())(x, t))
        for backend in ("reference", "onednn"):
            a = tdq.compile(compact, backend)(x, t)
            b = tdq.compile(tdq.load(saved, model=Mixed()), backend)(x, t)
            assert torch.allclose(a, b, atol=1e-6)


def test_a_compact_model_is_saved_as_it_came(saved, tmp_path):
    tdq.save(tdq.load(saved, model=Mixed(), compact=True), tmp_path / "again")
    assert (tmp_path / "again" / TENSORS).read_bytes() == (saved / TENSORS).read_bytes()


class Twice(Mixed):
    """A layer under two names, the second of which the state dict has too."""

    def __init__(self, seed=0):
        super().__init__(seed)
        self.alias = self.reflect


def test_a_layer_in_two_places_is_saved_once(tmp_path, x):
    model = tdq.quantize(Twice(), tdq.Recipe(4, 4))
    tdq.calibrate(model, calls(), progress=False)
    frozen = tdq.freeze(model)
    for compact in (False, True):
        folder = tdq.save(frozen, tmp_path / "m")
        again = tdq.load(folder, model=Twice(seed=3), compact=compact)
        assert again.alias is again.reflect
        assert torch.equal(again(x, torch.tensor(3)), frozen(x, torch.tensor(3)))
    assert not [name for name in load_file(folder / TENSORS) if name.startswith("alias")]


def test_what_only_looks_frozen_replaces_no_save(frozen, tmp_path):
    folder = tdq.save(frozen, tmp_path / "m")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    for backend in ("reference", "onednn"):
        with pytest.raises(FreezeError, match="compiled"):
            tdq.save(tdq.compile(frozen, backend), folder)
    with pytest.raises(FreezeError, match=r"torch\.compile"):
        tdq.save(torch.compile(frozen), folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_changed_byte_is_found(saved):
    file = saved / TENSORS
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    with pytest.raises(StorageError, match="not those that were saved"):
        tdq.load(saved, model=Mixed())


def test_a_link_stays_one(frozen, tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    tdq.save(frozen, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "real"]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    tdq.save(frozen, ".")
    assert tdq.load(tmp_path / "here", model=Mixed()) is not None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": "2"}, "format version"),
        ({"layers": []}, "layers is not an object"),
        ({"model": "x"}, "model is not an object"),
        ({"coverage": [1]}, "coverage list should have at least 2 items"),
        ({"tensors": "x"}, "tensors is not a list"),
        ({"attention": {"a": 3}}, r"attention\.a is not an object"),
        ({"layers": 1, "model": 2}, r"(?s)model is not an object.*layers is not an object"),
    ],
)
def test_an_index_of_other_types_is_damaged(saved, change, words):
    index = json.loads((saved / INDEX).read_text())
    (saved / INDEX).write_text(json.dumps(index | change))
    for read in (lambda: tdq.load(saved, model=Mixed()), lambda: inspect_saved(saved)):
        with pytest.raises(StorageError, match=words):
            read()


def test_numbers_and_types_within_layers(saved):
    index = json.loads((saved / INDEX).read_text())
    index["layers"]["linear"]["weight"]["bits"] = "4"
    (saved / INDEX).write_text(json.dumps(index))
    with pytest.raises(StorageError, match=r"layers\.linear\.weight\.bits is not a whole"):
        tdq.load(saved, model=Mixed())
    index["layers"]["linear"]["weight"]["bits"] = 4
    highest = index["layers"]["linear"]["input"]["qmax"]
    index["layers"]["linear"]["input"]["qmax"] = highest * 1000
    (saved / INDEX).write_text(json.dumps(index))
    with pytest.raises(StorageError, match=r"layers\.linear\.input.* has codes"):
        tdq.load(saved, model=Mixed())
    index["layers"]["linear"]["input"]["qmax"] = highest
    index["layers"]["linear"]["weight"] |= {"dtype": "load"}
    (saved / INDEX).write_text(json.dumps(index))
    with pytest.raises(StorageError, match=r"weight\.dtype .*no dtype of torch: load"):
        tdq.load(saved, model=Mixed())


def test_a_configuration_is_no_name_to_look_up():
    with pytest.raises(ModelError, match="configuration is damaged"):
        build.from_description(
            {"source": "diffusers", "class": "UNet2DModel", "config": "somebody/model"}
        )
