"""Denoisers whose layers are awkward for other engines, frozen without calibration."""

import torch
from torch import nn

from tdquant.clock import Clock
from tdquant.layers import QUANTIZED, replace_module
from tdquant.numerics.grid import Grid
from tdquant.quantizers import ActivationQuantizer, FrozenWeight, OffsetQuantizer
from tdquant.quantizers.groups import most, no_multipliers
from tdquant.scales import TableScale

LAYERS = {
    "1x1": lambda: nn.Conv2d(5, 7, 1),
    "3x3": lambda: nn.Conv2d(5, 7, 3, padding=1, bias=False),
    "strided": lambda: nn.Conv2d(5, 7, 3, stride=2, padding=1),
    "dilated": lambda: nn.Conv2d(5, 7, 3, dilation=2, padding=2),
    "grouped": lambda: nn.Conv2d(6, 9, 3, padding=1, groups=3),
    "depthwise": lambda: nn.Conv2d(5, 5, 3, padding=1, groups=5, bias=False),
    "uneven": lambda: nn.Conv2d(5, 7, (1, 4), padding="same"),
    "unpadded": lambda: nn.Conv2d(5, 7, (2, 3), stride=(1, 2)),
    "circular": lambda: nn.Conv2d(5, 7, 3, padding=1, padding_mode="circular"),
    "replicate": lambda: nn.Conv2d(5, 7, 3, padding=1, padding_mode="replicate"),
    "conv1d": lambda: nn.Conv1d(5, 7, 3, stride=2, padding=1),
    "conv3d": lambda: nn.Conv3d(5, 7, 3, padding=1),
    "conv3d strided": lambda: nn.Conv3d(5, 7, (2, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
    "conv3d grouped": lambda: nn.Conv3d(6, 9, (3, 1, 1), padding=(1, 0, 0), groups=3),
    "conv3d uneven": lambda: nn.Conv3d(5, 7, (2, 3, 1), padding="same", bias=False),
    "conv3d replicate": lambda: nn.Conv3d(5, 7, 3, padding=1, padding_mode="replicate"),
    "conv3d 1x1x1": lambda: nn.Conv3d(5, 7, 1),
    "linear": lambda: nn.Linear(5, 7),
    "linear without bias": lambda: nn.Linear(33, 3, bias=False),
}


class One(nn.Module):
    """One layer as a denoiser."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, t):
        return self.layer(x)


class All(nn.Module):
    """Every layer of a dictionary on parts of x ``(B, 6, 8, 8)``, an output each."""

    def __init__(self, layers):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(make() for make in layers.values())
        self.widths = [
            layer.weight.shape[1] * getattr(layer, "groups", 1) for layer in self.layers
        ]
        self.kinds = [type(layer) for layer in self.layers]

    def forward(self, x, t):
        flat, video = x.flatten(2), torch.stack((x, -x, x / 2), 2)
        takes = {
            nn.Linear: lambda width: flat[..., :width],
            nn.Conv1d: lambda width: flat[:, :width],
            nn.Conv2d: lambda width: x[:, :width],
            nn.Conv3d: lambda width: video[:, :width],
        }
        parts = (takes[kind](width) for kind, width in zip(self.kinds, self.widths, strict=True))
        return tuple(layer(part) for layer, part in zip(self.layers, parts, strict=True))


def frozen(model, weights=8, grid=None, offset=None, seed=0, group=0):
    """``model`` with random frozen quantizers on all its layers, and steps that follow t; with
    ``group``, weights have random multipliers.
    """
    rng = torch.Generator().manual_seed(seed)
    grid = grid or Grid.signed(8)
    clock = Clock(model)
    knots = torch.arange(1000.0)
    for layer in list(model.modules()):
        if type(layer) not in QUANTIZED:
            continue
        new = QUANTIZED[type(layer)].from_float(layer)
        codes = Grid.signed(weights, narrow=True)
        step = torch.rand(layer.weight.shape[0], generator=rng) * 0.1 + 0.01
        found = torch.randint(codes.qmin, codes.qmax + 1, layer.weight.shape, generator=rng)
        groups = no_multipliers(found.shape, group)
        if groups is not None:
            groups.multipliers.random_(1, most(codes) + 1, generator=rng)
            found *= groups.spread(found)
        new.weight_quantizer = FrozenWeight(codes, step, groups)
        with torch.no_grad():
            new.weight.copy_(found * new.weight_quantizer.scale(found))
        table = TableScale(knots, 4 / max(grid.high, -grid.low) * (1 + knots / 500))
        table.requires_grad_(False)
        new.input_quantizer = (
            ActivationQuantizer(grid, table, clock)
            if offset is None
            else OffsetQuantizer(grid, table, clock, offset)
        )
        replace_module(model, layer, new)
    clock.coverage = (0.0, 999.0)
    return model.eval().requires_grad_(False)
