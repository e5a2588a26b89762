"""Quantizes a denoiser of one's own: a flow-matching network for points in the plane.

    python examples/quantize_any_denoiser.py --bits 4

The network learns a spiral in a few seconds. Its timestep is a continuous time in [0, 1] under a
name that no library knows, and a family of its own names its layers. It is quantized with one
step for each activation, and with steps that follow the time; saved, and loaded again.

Printed are the layers, and for each kind of scale the squared distance between points of the
quantized and of the float model from the same noise. The few that tip over to another arm of the
spiral decide the mean.
"""

import argparse
import copy
import functools

import torch
from torch import nn

import tdquant as tdq
from tdquant.families import FAMILIES, Family


class Points(nn.Module):
    """The velocity of points ``(B, 2)`` at noise levels in [0, 1], ``()`` or ``(B,)``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Linear(2, width)
        self.level_mlp = nn.Sequential(nn.Linear(16, width), nn.SiLU(), nn.Linear(width, width))
        self.body = nn.ModuleList(nn.Linear(width, width) for _ in range(4))
        self.head = nn.Linear(width, 2)

    def forward(self, x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        angles = torch.as_tensor(level).reshape(-1, 1) * 2.0 ** torch.arange(8)
        h = self.stem(x) + self.level_mlp(torch.cat([angles.sin(), angles.cos()], 1))
        for layer in self.body:
            h = h + layer(nn.functional.silu(h))
        return self.head(h)


FAMILIES.append(Family("points", ("Points",), ("stem",), ("head",), ("level_mlp.*",)))


def spiral(count: int) -> torch.Tensor:
    """Points of the data ``(count, 2)``."""
    angle = 3 * torch.pi * torch.rand(count, 1).sqrt()
    return torch.cat([angle.cos(), angle.sin()], 1) * angle / 6 + 0.03 * torch.randn(count, 2)


def train(model: nn.Module, steps: int) -> None:
    """Flow matching: at level u the point is ``(1 - u) data + u noise``."""
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for _ in range(steps):
        data, noise, u = spiral(512), torch.randn(512, 2), torch.rand(512)
        loss = (model(data + u[:, None] * (noise - data), u) - (noise - data)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def draw(model: nn.Module, x: torch.Tensor, calls: list | None = None, steps: int = 40):
    """Points from noise x, by Euler's method; every call ``(x, level)`` is added to ``calls``."""
    for level in torch.linspace(1, 0, steps + 1)[:-1]:
        if calls is not None:
            calls.append((x, level))
        x = x - model(x, level) / steps
    return x


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--bits", type=int, default=5, help="of activations (default: 5)")
    parser.add_argument("--out", default="points-quantized", help="folder to save in")
    parser.add_argument("--tiny", action="store_true", help="hardly any training: to see it run")
    args = parser.parse_args()
    torch.manual_seed(0)
    exact, calls = Points(16 if args.tiny else 96), []
    train(exact, 20 if args.tiny else 2000)
    first, noise = torch.randn(2, 512, 2)
    draw(exact, first, calls)
    generate = functools.partial(draw, x=first)
    for scale in ("static", "auto"):
        recipe = tdq.Recipe(weights=8, activations=args.bits, scale=scale)
        model = copy.deepcopy(exact)
        tdq.quantize(model, recipe, timestep="level")
        tdq.calibrate(model, calls, time_range=(0, 1), generate=generate, progress=False)
        tdq.save(tdq.freeze(model), args.out)
        frozen = tdq.load(args.out, model=Points(len(exact.stem.weight)))
        error = (draw(frozen, noise) - draw(exact, noise)).square().sum(1)
        print(f"{scale:>7}: median {error.median():.1e}, mean {error.mean():.1e}")
    print(tdq.summary(frozen))


if __name__ == "__main__":
    main()
