"""Models of one layer that is rewritten by structures, alone and inside of each other."""

import copy

import torch
from torch import nn

import tdquant as tdq
from tdquant.layers import (
    BalancedLayer,
    LowRankLayer,
    RotatedLayer,
    SplitLayer,
    quantized_layers,
    replace_module,
)

FACTORS = torch.tensor([1.0, 0.03, 40.0, 2.5]).repeat(8)


def balance(layer):
    return BalancedLayer.from_quantized(layer, FACTORS[: layer.weight.shape[1]])


def rotate(layer):
    return RotatedLayer.from_quantized(layer, seed=1)


def branch(layer):
    return LowRankLayer.from_quantized(layer, 3, torch.rand(layer.weight.shape[1]) + 0.5)


def split(layer):
    return SplitLayer.from_quantized(layer, [16, 16])


def inside(outer, **changes):
    """The rewrite ``outer`` with layers in it rewritten again; ``_`` stands for a dot."""

    def rewrite(layer):
        new = outer(layer)
        for name, change in changes.items():
            old = new.get_submodule(name.replace("_", "."))
            replace_module(new, old, change(old))
        return new

    return rewrite


LAYERS = {
    "linear": (lambda: nn.Linear(32, 12), (3, 6, 32)),
    "conv1d": (lambda: nn.Conv1d(32, 12, 3, padding=1), (3, 32, 9)),
    "conv2d": (lambda: nn.Conv2d(32, 12, 3, stride=2, padding=1, bias=False), (3, 32, 6, 8)),
    "conv3d": (lambda: nn.Conv3d(32, 12, (1, 3, 2), padding=1), (3, 32, 2, 4, 4)),
}
REWRITES = {
    "balance": balance,
    "rotation": rotate,
    "low rank": branch,
    "split": split,
    "balance, low rank": inside(balance, layer=branch),
    "rotation, balance": inside(rotate, layer=balance),
    "split, balance and low rank": inside(split, parts_0=balance, parts_1=branch),
    "split, rotation and low rank": inside(split, parts_0=rotate, parts_1=branch),
}
CASES = [
    *(f"linear: {name}" for name in REWRITES),
    *(f"conv2d: {name}" for name in REWRITES if "rotation" not in name),
    "conv1d: balance, low rank",
    "conv3d: balance, low rank",
]
FEW = ["linear: split, rotation and low rank", "conv2d: balance, low rank"]
"""For what is slow: every structure, and a structure in another."""


class One(nn.Module):
    """A layer, and a few numbers that follow time."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, t):
        level = 1 + 2 * torch.as_tensor(t).float() / 1000
        return self.layer(x * level.reshape(-1, *[1] * (x.ndim - 1)))


def plain(case):
    """The float model."""
    torch.manual_seed(0)
    return One(LAYERS[case.split(": ")[0]][0]()).eval()


def inputs(case, count=1, seed=0):
    shape = LAYERS[case.split(": ")[0]][1]
    rng = torch.Generator().manual_seed(seed)
    sizes = FACTORS.reshape(-1, *[1] * (len(shape) - 2)) if len(shape) > 3 else FACTORS
    if case.startswith("conv1d"):
        sizes = FACTORS[:, None]
    return [torch.randn(shape, generator=rng) * sizes for _ in range(count)]


_REWRITTEN = {}


def rewritten(case, scale="temporal", calibrated=True, **bits):
    """A quantized model whose layer is rewritten; each is made once, and callers get copies."""
    bits = {"weights": 4, "activations": 8, **bits}
    key = case, scale, calibrated, *sorted(bits.items())
    if key not in _REWRITTEN:
        _REWRITTEN[key] = _made(case, scale, calibrated, bits)
    torch.manual_seed(0)  # as making it does
    return copy.deepcopy(_REWRITTEN[key])


def _made(case, scale, calibrated, bits):
    model = plain(case)
    tdq.quantize(model, tdq.Recipe(**bits, scale=scale, overrides={"layer": bits}))
    for _, layer in list(quantized_layers(model)):
        replace_module(model, layer, REWRITES[case.partition(": ")[2]](layer))
    if calibrated:
        times = torch.linspace(0, 999, 6).long()
        calls = list(zip(inputs(case, 6), times, strict=True))
        tdq.calibrate(model, calls, split=False, progress=False)
    return model
