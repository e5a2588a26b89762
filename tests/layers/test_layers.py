import pytest
import torch
from torch import nn

from tdquant.layers import QUANTIZED, QuantLayer

LAYERS = {
    "linear": (lambda: nn.Linear(5, 7), (2, 3, 5)),
    "linear, no bias": (lambda: nn.Linear(5, 7, bias=False), (2, 5)),
    "conv2d": (lambda: nn.Conv2d(6, 4, 3, padding=1), (2, 6, 5, 7)),
    "conv2d 1x1 odd": (lambda: nn.Conv2d(5, 3, 1), (2, 5, 4, 4)),
    "conv2d strided grouped dilated": (
        lambda: nn.Conv2d(6, 9, 3, stride=2, padding=2, dilation=2, groups=3, bias=False),
        (2, 6, 9, 9),
    ),
    "conv2d reflect": (
        lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        (1, 4, 6, 6),
    ),
    "conv2d same": (lambda: nn.Conv2d(4, 4, 3, padding="same"), (1, 4, 6, 6)),
    "conv3d": (
        lambda: nn.Conv3d(6, 9, (3, 2, 1), stride=2, padding=(2, 1, 0), dilation=2, groups=3),
        (2, 6, 5, 7, 4),
    ),
    "conv3d replicate": (
        lambda: nn.Conv3d(4, 4, 3, padding=1, padding_mode="replicate"),
        (1, 4, 3, 5, 4),
    ),
    "conv1d": (lambda: nn.Conv1d(6, 4, 3, stride=2, padding=1, groups=2), (2, 6, 11)),
}


def test_every_registered_layer_is_here():
    assert {type(make()) for make, _ in LAYERS.values()} == set(QUANTIZED)


def test_classes_that_tracers_make_of_a_layer_are_not_registered():
    """torch.export mixes a class of its own into that of every module."""
    before = dict(QUANTIZED)
    for cls in before.values():
        type(cls.__name__, (type("Proxy", (), {}), cls), {})
    assert before == QUANTIZED


@pytest.mark.parametrize("name", LAYERS)
def test_without_quantizers_it_is_the_float_layer(name):
    make, shape = LAYERS[name]
    layer = make()
    quantized = QUANTIZED[type(layer)].from_float(layer)
    x = torch.randn(shape)
    assert type(quantized) is QUANTIZED[type(layer)]
    assert isinstance(quantized, QuantLayer)
    assert isinstance(quantized, type(layer))
    assert quantized.weight is layer.weight
    assert set(quantized.state_dict()) == set(layer.state_dict())
    assert torch.equal(quantized(x), layer(x))
    assert not any(p.is_meta for p in quantized.parameters())


@pytest.mark.parametrize("name", LAYERS)
def test_quantizers_act_on_the_operands(name):
    make, shape = LAYERS[name]
    layer = make()
    quantized = QUANTIZED[type(layer)].from_float(layer)

    class Double(nn.Module):
        def forward(self, v):
            return 2 * v

    quantized.input_quantizer = quantized.weight_quantizer = Double()
    x, bias = torch.randn(shape), layer.bias
    layer.bias = None
    expected = 4 * layer(x)
    if bias is not None:
        expected = expected + bias.reshape(-1, *[1] * (len(shape) - 2 if "conv" in name else 0))
    assert torch.allclose(quantized(x), expected, atol=1e-5)


def test_training_mode_is_kept():
    layer = nn.Linear(2, 2).eval()
    assert not QUANTIZED[nn.Linear].from_float(layer).training
