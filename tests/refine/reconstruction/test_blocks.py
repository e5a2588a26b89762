import pytest
import torch
from torch import nn

import tdquant as tdq
from tdquant.layers.balance import BalancedLayer
from tdquant.refine.reconstruction.blocks import find_blocks
from tests.conftest import quantized
from tests.denoisers import calls


@pytest.fixture(scope="module")
def unet():
    model = tdq.models.load_embedded("tiny").unet
    return tdq.quantize(model, tdq.Recipe(weights=4, activations=32))


CALL = (torch.zeros(1, 3, 16, 16), torch.tensor(5))


def test_residual_blocks_and_lone_layers(unet):
    blocks = find_blocks(unet, CALL)
    assert "unet.down_blocks.0.resnets.0" in blocks
    assert "unet.down_blocks.0.downsamplers.0" not in blocks  # one layer is a block by itself
    assert "unet.down_blocks.0.downsamplers.0.conv" in blocks
    # What the model calls first comes first, and every layer is in one block.
    down, up = (blocks.index(f"unet.{side}_blocks.0.resnets.0") for side in ("down", "up"))
    assert down < up
    layers = find_blocks(unet, CALL, "layer")
    for layer in layers:
        assert sum(layer == b or layer.startswith(f"{b}.") for b in blocks) == 1
    assert find_blocks(unet, CALL, "model") == [""]


def test_layers_without_weights_to_round_are_left_out():
    model = quantized(4, 8, calibrated=False, overrides={"linear": {"weights": 32}})
    with torch.no_grad():
        tdq.calibrate(model, calls(), estimator="minmax", progress=False)
    blocks = find_blocks(model, next(calls()))
    assert "linear" not in blocks
    assert "sequence" in blocks


class Feed(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.ModuleList([nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4)])
        self.never = nn.Linear(4, 4)

    def forward(self, x, t):
        for layer in self.inner:
            x = layer(x)
        return x


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.feed = Feed()
        self.idle = nn.Linear(4, 4)
        self.head = BalancedLayer.from_float(nn.Linear(4, 4))

    def forward(self, x, t):
        return self.head(self.feed(x, t))


def test_lists_are_not_called_and_rewritten_layers_are_one():
    recipe = tdq.Recipe(activations=32, edges=8)
    model = tdq.quantize(Model(), recipe)
    assert find_blocks(model, (torch.zeros(2, 4), torch.tensor(1))) == ["feed", "head.layer"]


def test_layers_that_no_call_reaches_keep_rounding_to_nearest():
    recipe = tdq.Recipe(weights=3, activations=32, edges=8)
    model = tdq.quantize(Model().eval(), recipe)
    batches = [(torch.randn(4, 4), torch.tensor(1))]
    expected = model.feed.never.weight_quantizer(model.feed.never.weight).detach()
    done = tdq.reconstruct(model, batches, method="gptq", progress=False).tdq.reconstruction
    assert [block.path for block in done.blocks] == ["feed", "head.layer"]
    assert torch.equal(tdq.freeze(model).feed.never.weight, expected)
