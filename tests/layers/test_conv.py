"""A model of three-dimensional convolutions through everything that takes two-dimensional ones."""

import pytest
import torch

import tdquant as tdq
from tdquant.layers import QuantConv3d, SplitLayer
from tests.contracts.test_backends import call, lowered
from tests.denoisers import Video, calls

SHAPE = (4, 3, 6, 6)


def calibrated(weights, **options):
    model = tdq.quantize(Video().eval(), tdq.Recipe(weights=weights, activations=8))
    return tdq.calibrate(model, calls(shape=SHAPE), progress=False, **options)


@pytest.fixture(scope="module")
def frozen():
    return tdq.freeze(calibrated(4, bias_correction=True))


@pytest.fixture
def x():
    return torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))


def test_inner_convolutions_are_quantized_and_those_over_concatenations_split(frozen):
    rows = {row.path: row.weight_bits for row in tdq.summary(frozen)}
    assert rows["conv_in"] == rows["conv_out"] == 32
    assert rows["frames"] == rows["both.parts.0"] == rows["both.parts.1"] == 4
    assert isinstance(frozen.frames, QuantConv3d)
    assert isinstance(frozen.both, SplitLayer)
    assert frozen.both.sizes == (6, 6)


@pytest.mark.parametrize(("weights", "bound"), [(8, 0.02), (4, 0.2)])
def test_the_output_is_near_that_of_the_float_model(weights, bound, x):
    exact, found = Video()(x, torch.tensor(500)), calibrated(weights)(x, torch.tensor(500))
    assert 0 < (found - exact).norm() < bound * exact.norm()


def test_learned_codes_are_nearer_than_rounded_ones(x):
    exact = Video()(x, torch.tensor(500))
    model = calibrated(3)
    before = (model(x, torch.tensor(500)) - exact).norm()
    tdq.reconstruct(model, calls(shape=SHAPE), method="gptq", scope="layer", progress=False)
    assert (model(x, torch.tensor(500)) - exact).norm() < before


@pytest.mark.parametrize("compact", [False, True])
def test_saved_and_loaded_it_is_the_same_to_the_bit(frozen, compact, x, tmp_path):
    saved = tdq.save(frozen, tmp_path / "saved")
    again = tdq.load(saved, model=Video(), compact=compact)
    for t in (torch.tensor(3), torch.tensor([0, 999])):
        assert torch.equal(again(x, t), frozen(x, t))


@pytest.mark.parametrize("backend", ["reference", "onednn", "openvino", "cuda"])
def test_every_engine_equals_the_frozen_model(frozen, backend, x):
    fast = lowered(frozen, backend)
    with torch.no_grad():
        for t in (torch.tensor(3), torch.tensor([0, 999])):
            error, largest = (call(fast, x, t) - frozen(x, t)).abs(), frozen(x, t).abs().max()
            assert error.median() <= 1e-5 * largest
            assert error.max() <= 0.05 * largest  # a value on the other side of a boundary
