"""Weights in groups through freezing, files, copies and half precision, to the bit."""

import copy
import json
import pickle

import pytest
import torch

import tdquant as tdq
from tdquant.errors import StorageError
from tdquant.freezing import requantize
from tdquant.layers import SplitLayer, quantized_layers, replace_module
from tdquant.quantizers import CodedWeight
from tdquant.quantizers.groups import MULTIPLIER_BITS
from tdquant.storage import inspect_saved
from tdquant.storage.files import INDEX, TENSORS
from tests.conftest import quantized
from tests.denoisers import Mixed, calls


def grouped(bits=4, scale="static", **recipe):
    return quantized(weights=bits, remedies=("groups",), group=16, scale=scale, **recipe)


@pytest.mark.parametrize("bits", sorted(MULTIPLIER_BITS))
def test_saved_and_loaded(bits, x, tmp_path):
    live = grouped(bits).eval()
    frozen, t = tdq.freeze(live), torch.tensor([3, 600, 999])
    with torch.no_grad():
        y = frozen(x, t)
        assert torch.equal(live(x, t), y)
    tdq.save(frozen, tmp_path / "m")
    for compact in (False, True):
        back = tdq.load(tmp_path / "m", model=Mixed(seed=7), compact=compact)
        coded = [m for m in back.modules() if isinstance(m, CodedWeight)]
        assert bool(coded) == compact
        for model in (back, copy.deepcopy(back), pickle.loads(pickle.dumps(back))):
            assert torch.equal(model(x, t), y)
        assert list(tdq.summary(back)) == list(tdq.summary(frozen))
        tdq.save(back, tmp_path / "again")
        for name in (TENSORS, INDEX):
            again, first = (tmp_path / folder / name for folder in ("again", "m"))
            assert again.read_bytes() == first.read_bytes()


def test_inspect_shows_groups(tmp_path):
    tdq.save(tdq.freeze(grouped()), tmp_path)
    assert " groups " in inspect_saved(tmp_path)


def test_bytes(tmp_path):
    plain, own = (tdq.freeze(quantized(weights=4, remedies=r)) for r in ((), ("groups",)))
    sizes = [(tdq.save(m, tmp_path / "m") / TENSORS).stat().st_size for m in (plain, own)]
    groups = sum(
        layer.weight_quantizer.multipliers.numel()
        for _, layer in quantized_layers(own)
        if layer.weight_quantizer.group
    )
    assert groups
    assert sizes[1] - sizes[0] < groups / 2 + 1200  # and names


@pytest.mark.parametrize("group", [0, 8, 400, -1])
def test_groups_that_do_not_fit(group, tmp_path):
    tdq.save(tdq.freeze(grouped()), tmp_path)
    index = json.loads((tmp_path / INDEX).read_text())
    index["layers"]["reflect"]["weight"]["group"] = group
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(StorageError):
        tdq.load(tmp_path, model=Mixed())


def test_half_precision(x, tmp_path):
    frozen = tdq.freeze(grouped()).to(torch.bfloat16)
    back = tdq.load(tdq.save(frozen, tmp_path), model=Mixed(seed=7).to(torch.bfloat16))
    with torch.no_grad():
        y = frozen(x.bfloat16(), torch.tensor(3))
        assert torch.equal(back(x.bfloat16(), torch.tensor(3)), y)


def test_changed_weights_get_new_groups():
    frozen = tdq.freeze(grouped())
    layer = frozen.reflect
    before = layer.weight_quantizer.multipliers.clone()
    changed = layer.weight.detach().clone()
    changed[:, 3] *= 4
    layer.weight = torch.nn.Parameter(changed, requires_grad=False)
    requantize(layer)
    assert layer.weight_quantizer.group == 16
    assert not torch.equal(layer.weight_quantizer.multipliers, before)
    assert torch.equal(layer.weight_codes() * layer.weight_quantizer.scale(changed), layer.weight)


def test_parts_have_groups_of_their_own():
    model = tdq.quantize(Mixed().eval(), tdq.Recipe(4, 8, remedies=("groups",), group=16))
    whole = model.reflect
    replace_module(model, whole, SplitLayer.from_quantized(whole, (5, 7)))
    counts = [part.weight_quantizer.multipliers.shape[1] for part in model.reflect.parts]
    assert counts == [-(-5 * 9 // 16), -(-7 * 9 // 16)]


@pytest.mark.parametrize("method", ["gptq", "adaround"])
def test_reconstruction_keeps_multipliers(method, x):
    model = grouped()
    before = {n: b.clone() for n, b in model.named_buffers() if n.endswith("multipliers")}
    weight = model.reflect.weight.detach().clone()
    tdq.reconstruct(
        model, list(calls()), method=method, scope="layer", iterations=5, progress=False
    )
    assert not torch.equal(model.reflect.weight, weight)
    assert all(torch.equal(b, dict(model.named_buffers())[n]) for n, b in before.items())
    quantizer = model.reflect.weight_quantizer
    on_grid = model.reflect.weight.detach()
    assert torch.equal(quantizer(on_grid), on_grid)
    frozen = tdq.freeze(model)
    with torch.no_grad():
        assert torch.equal(frozen(x, torch.tensor(3)), model.eval()(x, torch.tensor(3)))


def test_recipes_without_groups_are_as_ever():
    model = tdq.quantize(Mixed(), tdq.Recipe(4, 8, remedies=()))
    assert not [n for n in model.state_dict() if n.endswith("multipliers")]
    for options in (
        {"granularity": "tensor"},
        {"scale": "nipq", "remedies": ("groups",)},
        {"weights": 7},
        {"scale": "static"},
    ):
        model = tdq.quantize(Mixed(), tdq.Recipe(**{"weights": 4, **options}))
        assert not [n for n in model.state_dict() if n.endswith("multipliers")]
