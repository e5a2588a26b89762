import copy

import pytest
import torch
from torch import nn

import tdquant as tdq
from tdquant.errors import ConversionError
from tdquant.layers import STRUCTURES, QuantConv2d, quantized_layers
from tdquant.layers.split import SplitLayer

LAYERS = {
    "conv2d": (lambda: nn.Conv2d(7, 5, (3, 2), stride=2, padding=1, dilation=2), (2, 7, 9, 8)),
    "reflect": (
        lambda: nn.Conv2d(7, 5, 3, padding=1, padding_mode="reflect", bias=False),
        (2, 7, 6, 6),
    ),
    "unbatched": (lambda: nn.Conv2d(7, 5, 1), (7, 4, 4)),
    "conv1d": (lambda: nn.Conv1d(7, 4, 3, padding="same"), (2, 7, 10)),
    "conv3d": (lambda: nn.Conv3d(7, 4, (3, 1, 2), padding=1, stride=2), (2, 7, 3, 5, 4)),
    "conv3d unbatched": (lambda: nn.Conv3d(7, 4, 1), (7, 3, 5, 4)),
    "linear": (lambda: nn.Linear(7, 3), (2, 5, 7)),
    "linear without bias": (lambda: nn.Linear(7, 3, bias=False), (2, 7)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("sizes", [(3, 4), (1, 2, 4)])
def test_a_split_layer_is_the_float_layer(name, sizes):
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    layer, x = make(), torch.randn(shape)
    split = SplitLayer.from_float(layer, sizes=sizes)
    assert torch.allclose(split(x), layer(x), atol=1e-5)
    assert split.specification() == {"sizes": list(sizes)}
    again = STRUCTURES["split"].from_float(make(), **split.specification())
    again.load_state_dict(split.state_dict())
    assert torch.equal(again(x), split(x))


def test_float_weights_load_into_the_parts():
    torch.manual_seed(0)
    parent = nn.Sequential(nn.Conv2d(6, 4, 3), nn.SiLU())
    split = nn.Sequential(SplitLayer.from_float(nn.Conv2d(6, 4, 3), sizes=[2, 4]), nn.SiLU())
    assert str(split.load_state_dict(parent.state_dict())) == "<All keys matched successfully>"
    x = torch.randn(2, 6, 5, 5)
    assert torch.allclose(split(x), parent(x), atol=1e-6)
    with pytest.raises(RuntimeError, match=r"parts\.1\.weight"):
        split.load_state_dict({"0.bias": torch.zeros(4)})


def test_parts_share_no_memory_with_the_layer_or_each_other():
    layer = nn.Conv2d(6, 1, 1)  # a slice of one output channel is contiguous as it is
    split = SplitLayer.from_float(layer, sizes=[2, 4])
    storages = {p.untyped_storage().data_ptr() for p in (*split.parameters(), layer.weight)}
    assert len(storages) == 4
    assert all(p.is_contiguous() for p in split.parameters())
    loaded = SplitLayer.from_float(nn.Conv2d(6, 1, 1, device="meta"), sizes=[2, 4])
    assert loaded.parts[1].weight.is_meta
    loaded.load_state_dict(layer.state_dict(), assign=True)
    assert loaded.parts[1].weight.untyped_storage().data_ptr() not in storages


@pytest.mark.parametrize("sizes", [(6,), (3, 4), (0, 6), (), (-1, 7)])
def test_sizes_have_to_add_up(sizes):
    with pytest.raises(ConversionError, match="6 input channels"):
        SplitLayer.from_float(nn.Conv2d(6, 4, 3), sizes=sizes)


def test_what_does_not_sum_over_all_channels_cannot_be_split():
    with pytest.raises(ConversionError, match="one group"):
        SplitLayer.from_float(nn.Conv2d(6, 6, 3, groups=2), sizes=[3, 3])
    with pytest.raises(ConversionError, match="ConvTranspose2d cannot be split"):
        SplitLayer.from_float(nn.ConvTranspose2d(6, 6, 3), sizes=[3, 3])


def test_a_split_model_is_quantized_like_any_other():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(2, 4, 1)
            self.both = nn.Conv2d(6, 4, 3)
            self.last = nn.Conv2d(4, 2, 1)

        def forward(self, x, t):
            return self.last(self.both(torch.cat([self.first(x), x], 1)))

    model = Model()
    model.both = SplitLayer.from_float(model.both, sizes=[4, 2])
    tdq.quantize(model, tdq.Recipe(weights=4, activations=32))
    assert [n for n, _ in quantized_layers(model)] == ["both.parts.0", "both.parts.1"]
    assert isinstance(copy.deepcopy(model).both.parts[0], QuantConv2d)
    assert model(torch.ones(1, 2, 5, 5), torch.tensor(3)).isfinite().all()
