"""What every rewritten layer has in common."""

import copy

import pytest
import torch

import tdquant as tdq
from tdquant.errors import StorageError
from tdquant.layers import STRUCTURES, quantized_layers, structured_layers
from tdquant.layers.structure import names_of, structure_named
from tdquant.training.structure import describe, joined, restore
from tests.rewritten import CASES, FEW, inputs, plain, rewritten

TIMES = torch.tensor([3, 600, 999])


@pytest.mark.parametrize("case", CASES)
def test_the_frozen_model_is_the_live_one_and_saved_to_the_bit(case, tmp_path):
    model = rewritten(case)
    frozen = tdq.freeze(model)
    (x,) = inputs(case, seed=1)
    with torch.no_grad():
        y = frozen(x, TIMES)
        live = model(x, TIMES)
        assert (y - live).abs().median() < 1e-6 * live.abs().max()
        tdq.save(frozen, tmp_path / "saved")
        for loaded in (tdq.load(tmp_path / "saved", model=plain(case)), copy.deepcopy(frozen)):
            assert torch.equal(loaded(x, TIMES), y)
    assert [row.path for row in tdq.summary(frozen)] == [r.path for r in tdq.summary(model)]
    assert not any(row.input_codes is None for row in tdq.summary(frozen))


@pytest.mark.parametrize("case", CASES)
def test_scales_over_time_stay_what_they_are(case):
    model = rewritten(case)
    kinds = {row.scale for row in tdq.summary(model)}
    assert kinds <= {"temporal", "static"}
    assert "temporal" in kinds


@pytest.mark.parametrize("case", CASES)
def test_a_checkpoint_of_training_finds_its_way_back(case):
    trained = rewritten(case)
    structure, tensors = describe(trained), trained.state_dict()
    again = plain(case)
    known = again.state_dict()
    found = {k: v for k, v in joined(tensors, structure).items() if k in known}
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in known.items()}
    again.load_state_dict(found)
    tdq.quantize(again, trained.tdq.recipe)
    restore(again, structure)
    again.load_state_dict(tensors)
    (x,) = inputs(case, seed=1)
    with torch.no_grad():
        assert torch.equal(again(x, TIMES), trained(x, TIMES))


@pytest.mark.parametrize("case", FEW)
def test_it_is_trained_and_reconstructed(case):
    model = rewritten(case)
    calls = list(zip(inputs(case, 2), (100, 800), strict=True))
    with torch.no_grad():
        before = tdq.freeze(model)(*calls[0])
    tdq.reconstruct(model, calls, iterations=4, progress=False)
    with torch.no_grad():
        assert tdq.freeze(model)(*calls[0]).shape == before.shape
    x, t = calls[0]
    model.train()
    model(x, torch.tensor(t)).square().mean().backward()
    for path, layer in quantized_layers(model):
        assert layer.weight.grad is not None, path


@pytest.mark.parametrize("case", FEW)
def test_sensitivity_knows_the_layer_by_its_name(case):
    model = rewritten(case, calibrated=False)
    calls = list(zip(inputs(case, 2), (100, 800), strict=True))
    measured = tdq.sensitivity(model, calls, bits=(4, 8), progress=False)
    assert set(measured.layers) == {"layer"}
    assert measured.layers["layer"].weights == sum(
        layer.weight.numel() for _, layer in quantized_layers(model)
    )


@pytest.mark.parametrize("case", FEW)
def test_half_precision(case):
    exact, (x,) = tdq.freeze(rewritten(case)), inputs(case, seed=1)
    half = copy.deepcopy(exact).bfloat16()
    with torch.no_grad():
        y = half(x.bfloat16(), TIMES)
        assert y.dtype == torch.bfloat16
        assert (y.float() - exact(x, TIMES)).norm() < 0.05 * y.norm()


def test_names():
    model = rewritten("linear: balance, low rank", calibrated=False)
    assert names_of(model, "layer.layer.down") == ["layer", "layer.layer", "layer.layer.down"]
    assert names_of(model, "layer") == ["layer"]
    assert [path for path, _ in structured_layers(model)] == ["layer", "layer.layer"]
    assert set(STRUCTURES) >= {"balance", "rotation", "low_rank", "split"}
    with pytest.raises(StorageError, match="no structure 'twist'"):
        structure_named("twist")
