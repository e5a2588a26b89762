import pytest
import torch
from torch import nn

from tdquant.errors import ConversionError
from tdquant.layers import QUANTIZED, RotatedLayer
from tdquant.layers.rotation import HadamardRotation
from tdquant.numerics.grid import Grid
from tdquant.quantizers import FrozenWeight, WeightQuantizer
from tdquant.quantizers.steps import mse_step


@pytest.mark.parametrize("width", [16, 32, 48, 320, 512, 1536])
def test_the_rotation_is_orthogonal_and_undone(width):
    block = min(width & -width, 512)
    rotation = HadamardRotation(width, block, seed=3)
    matrix = rotation(torch.eye(width).double()).T
    assert torch.allclose(matrix @ matrix.T, torch.eye(width).double(), atol=1e-6)
    weight = torch.randn(5, width).double()
    assert torch.allclose(rotation.undone(weight) @ matrix, weight, atol=1e-13)
    assert ((matrix.abs() - block**-0.5).abs() < 1e-6).sum() == width * block  # all else is zero
    assert torch.equal(rotation.diagonal, HadamardRotation(width, block, 3).diagonal)
    assert not torch.equal(rotation.diagonal, HadamardRotation(width, block, 4).diagonal)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(2, 5, 96), (7, 96), (96,)])
def test_a_rotated_layer_is_the_float_layer(shape, bias):
    torch.manual_seed(0)
    layer, x = nn.Linear(96, 10, bias=bias).double(), torch.randn(shape).double()
    with torch.no_grad():
        y = layer(x)
        new = RotatedLayer.from_float(layer, seed=1)
        assert type(new.layer) is nn.Linear
        assert (new(x) - y).abs().max() < 1e-13 * y.abs().max()
        again = RotatedLayer.from_float(nn.Linear(96, 10, bias=bias), **new.specification())
        again.double().load_state_dict(new.state_dict())
        assert torch.equal(again(x), new(x))
        assert torch.equal(layer(x), y)


def test_outliers_are_spread_and_steps_found_anew():
    torch.manual_seed(0)
    layer, x = nn.Linear(128, 64), torch.randn(256, 128)
    x[:, 5] *= 100
    live = QUANTIZED[nn.Linear].from_float(layer)
    grid = Grid.signed(8, narrow=True)
    live.weight_quantizer = WeightQuantizer(grid, mse_step(layer.weight, grid, True))
    new = RotatedLayer.from_quantized(live, seed=2)
    assert new.rotation(x).abs().max() < 0.2 * x.abs().max()
    steps = mse_step(new.layer.weight, grid, True)
    assert torch.equal(new.layer.weight_quantizer.step, steps)
    assert torch.equal(new.layer.bias, layer.bias)
    with torch.no_grad():
        assert (new(x) - layer(x)).norm() < 0.02 * layer(x).norm()


def test_it_can_be_built_without_memory_and_cast():
    with torch.device("meta"):
        blank = RotatedLayer.from_float(nn.Linear(32, 4), seed=1)
    source = RotatedLayer.from_float(nn.Linear(32, 4), seed=1)
    blank.load_state_dict(source.state_dict(), assign=True)
    x = torch.randn(3, 32)
    assert torch.equal(blank(x), source(x))
    half = source.bfloat16()
    assert half.rotation.diagonal.dtype == half.rotation.left.dtype == torch.float32
    assert half(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_constant_and_tiny_inputs_in_half_precision(dtype):
    torch.manual_seed(0)
    layer = nn.Linear(64, 8, bias=False)
    for x in (torch.ones(2, 64), torch.full((2, 64), 1e-4), torch.zeros(2, 64)):
        exact = layer(x)
        y = RotatedLayer.from_float(layer).to(dtype)(x.to(dtype)).float()
        assert (y - exact).norm() <= 8 * torch.finfo(dtype).eps * exact.norm()


@pytest.mark.parametrize("width", [8, 24, 33])
def test_widths_without_a_power_of_two(width):
    with pytest.raises(ConversionError, match=f"{width} channels"):
        RotatedLayer.from_float(nn.Linear(width, 4))


def test_what_cannot_be_rotated():
    for layer in (nn.Conv2d(16, 4, 1), nn.Embedding(16, 16)):
        with pytest.raises(ConversionError, match="cannot be rotated"):
            RotatedLayer.from_float(layer)
    live = QUANTIZED[nn.Linear].from_float(nn.Linear(16, 4))
    live.weight_quantizer = FrozenWeight(Grid.signed(4, narrow=True), torch.ones(4))
    with pytest.raises(ConversionError, match="frozen"):
        RotatedLayer.from_quantized(live)
    with pytest.raises(ConversionError, match="blocks of 24"):
        RotatedLayer.from_float(nn.Linear(48, 4), block=24)
