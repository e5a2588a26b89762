import copy

import pytest
import torch
from torch import nn

import tdquant as tdq
from tdquant.errors import ConversionError
from tdquant.layers import QUANTIZED, LowRankLayer, quantized_layers
from tdquant.numerics.grid import Grid
from tdquant.quantizers import FrozenWeight, WeightQuantizer
from tdquant.quantizers.steps import mse_step

LAYERS = {
    "linear": (lambda: nn.Linear(40, 24), (2, 5, 40)),
    "tall": (lambda: nn.Linear(12, 24, bias=False), (3, 12)),
    "conv2d": (lambda: nn.Conv2d(6, 30, (3, 2), stride=2, padding=1, dilation=2), (2, 6, 9, 8)),
    "reflect": (lambda: nn.Conv2d(6, 8, 3, padding=1, padding_mode="reflect"), (2, 6, 5, 5)),
    "conv1d": (lambda: nn.Conv1d(6, 12, 3, padding="same"), (6, 9)),
    "conv3d": (lambda: nn.Conv3d(6, 10, (3, 1, 2)), (2, 6, 4, 5, 4)),
}


def live(layer, bits=4):
    """The layer with a quantized weight and float inputs."""
    new, grid = QUANTIZED[type(layer)].from_float(layer), Grid.signed(bits, narrow=True)
    new.weight_quantizer = WeightQuantizer(grid, mse_step(layer.weight, grid, True))
    return new


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("rank", [1, 5])
def test_a_layer_with_a_branch_is_the_float_layer(name, rank):
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer, x = make().double(), torch.randn(shape).double()
    with torch.no_grad():
        y = layer(x)
        start = LowRankLayer.from_float(copy.deepcopy(layer), rank=rank)
        assert torch.equal(start(x), y)
        new = LowRankLayer.decomposed(copy.deepcopy(layer), rank)
        assert (new(x) - y).abs().max() < 1e-13 * y.abs().max()
        start.load_state_dict(new.state_dict())
        assert torch.equal(start(x), new(x))
        assert new.specification() == {"rank": rank}


@pytest.mark.parametrize("name", LAYERS)
def test_the_branch_is_the_best_of_its_rank(name):
    torch.manual_seed(0)
    layer = LAYERS[name][0]()
    matrix = layer.weight.detach().flatten(1).double()
    values = torch.linalg.svdvals(matrix)
    new = LowRankLayer.decomposed(layer, 3)
    rest = new.layer.weight.detach().flatten(1).double()
    assert torch.allclose(rest.norm(), values[3:].norm(), rtol=1e-5)
    importance = torch.rand(6 if "conv" in name or name == "reflect" else matrix.shape[1]) + 0.1
    scale = importance.repeat_interleave(matrix.shape[1] // len(importance)).double()
    values = torch.linalg.svdvals(matrix * scale)
    weighted = LowRankLayer.decomposed(_again(layer, matrix), 3, importance)
    rest = weighted.layer.weight.detach().flatten(1).double() * scale
    assert torch.allclose(rest.norm(), values[3:].norm(), rtol=1e-5)


def _again(layer, matrix):
    layer = copy.deepcopy(layer)
    with torch.no_grad():
        layer.weight.copy_(matrix.reshape(layer.weight.shape))
    return layer


@pytest.mark.parametrize("name", ["linear", "conv2d"])
def test_few_bits_are_finer_beside_a_branch(name):
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer, x = make(), torch.randn(shape)
    with torch.no_grad():
        matrix = layer.weight.flatten(1)
        strong = torch.randn(len(matrix), 2) @ torch.randn(2, matrix.shape[1])
        layer.weight += strong.reshape(layer.weight.shape)
        whole = live(layer)
        before = whole.weight.clone()
        new = LowRankLayer.from_quantized(whole, 4)
        assert torch.equal(whole.weight, before)
        y = layer(x)
        assert (new(x) - y).norm() < 0.2 * (whole(x) - y).norm()
        # What rounding does to the factors is in the rest.
        exact = copy.deepcopy(new)
        exact.layer.weight_quantizer = nn.Identity()
        assert torch.allclose(exact(x), y, atol=1e-4)


def test_unused_channels_and_zero_importance():
    torch.manual_seed(0)
    layer = nn.Linear(40, 24)
    layer.weight.data[:, :3] = 0
    exact = layer.weight.detach().clone()
    importance = torch.rand(40)
    importance[5:9] = 0
    for m in (importance, torch.zeros(40), None):
        new = LowRankLayer.decomposed(_again(layer, exact), 4, m)
        found = new.layer.weight + new.up.weight @ new.down.weight
        assert torch.allclose(found, exact, atol=1e-5)
    for bad in (torch.ones(39), -torch.ones(40), torch.full((40,), torch.nan)):
        with pytest.raises(ConversionError, match="importance"):
            LowRankLayer.decomposed(layer, 4, bad)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 8)

    def forward(self, x, t):
        return self.c(torch.tanh(self.b(torch.relu(self.a(x)))))


def test_a_recipe_leaves_the_branch_8_bits():
    model = Two()
    model.b = LowRankLayer.decomposed(model.b, 4)
    tdq.quantize(model, tdq.Recipe(weights=3, activations=4))
    bits = {
        path: (layer.weight_quantizer.grid.bits, layer.input_quantizer.grid.bits)
        for path, layer in quantized_layers(model)
        if path.startswith("b.")
    }
    assert bits == {"b.layer": (3, 4), "b.down": (8, 4), "b.up": (8, 8)}


@pytest.mark.parametrize("scale", ["temporal", "dynamic"])
def test_quantizers_of_the_branch(scale):
    model = tdq.quantize(Two(), tdq.Recipe(weights=4, activations=4, scale=scale))
    kept = model.b.input_quantizer
    model.b = LowRankLayer.from_quantized(model.b, 4)
    assert model.b.layer.input_quantizer is kept
    down, up = model.b.down.input_quantizer, model.b.up.input_quantizer
    assert down is not kept
    assert (down.grid.bits, up.grid.bits) == (4, 8)
    kind = "dynamic" if scale == "dynamic" else "pending"
    assert down.scale.kind == up.scale.kind == kind
    assert up.wanted == scale


def test_what_takes_no_branch():
    for layer in (nn.Conv2d(16, 16, 1, groups=2), nn.ConvTranspose2d(16, 4, 1)):
        with pytest.raises(ConversionError, match="no branch"):
            LowRankLayer.from_float(layer, rank=2)
    for rank in (0, 8, 20):
        with pytest.raises(ConversionError, match="has rank 8"):
            LowRankLayer.from_float(nn.Linear(8, 20), rank=rank)
    frozen = live(nn.Linear(16, 20))
    frozen.weight_quantizer = FrozenWeight(Grid.signed(4, narrow=True), torch.ones(20))
    with pytest.raises(ConversionError, match="frozen"):
        LowRankLayer.from_quantized(frozen, 2)
