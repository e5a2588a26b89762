"""The demonstration's picture: one noise through every model, and the scales that move most."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from tdquant.diffusion.pictures import to_uint8
from tdquant.files.writing import replacing
from tdquant.lab.data.cats import ATTRIBUTION
from tdquant.lab.demo.run import DemoResult
from tdquant.support.optional import require

ROWS = (
    ("float", ""),
    ("W8A5", "static"),
    ("W8A5", "default"),
    ("W4A4", "static"),
    ("W4A4", "input-dynamic"),
    ("W4A4", "temporal"),
    ("W4A4", "default"),
)
COLUMNS = 12


def draw(result: DemoResult, path: Path) -> None:
    """Writes the picture as PNG.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    figure_type = require("matplotlib.figure", "demo").Figure
    figure = figure_type(figsize=(10, 10), dpi=130, layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[len(ROWS), 4.2])
    top.suptitle("The same noise through every model (cats-ddpm, 32x32)", fontsize=11)
    for axis, (bits, scale) in zip(top.subplots(len(ROWS), 1), ROWS, strict=True):
        axis.imshow(strip(result.images[bits, scale]), interpolation="nearest", aspect="equal")
        axis.set(xticks=[], yticks=[], anchor="E")  # the labels are at the left
        axis.spines[:].set_visible(False)
        title = "\n".join(filter(None, (bits, *scale.split("-"))))
        axis.set_ylabel(title, rotation=0, ha="right", va="center", fontsize=9)
    axis = bottom.subplots()
    for name, (times, steps) in result.curves.items():
        axis.plot(times, steps / steps.log().mean().exp(), label=name, linewidth=1.6)
    axis.axhline(1, color="0.5", linewidth=1, linestyle="--", label="a static scale")
    axis.set_yscale("log")
    axis.set_xlabel("timestep t (0 is the image, 999 the noise)")
    axis.set_ylabel("s(t) over its geometric mean")
    axis.set_title("Activation scales that move most, W4A4 temporal", fontsize=11)
    axis.legend(fontsize=7.5, ncols=2, frameon=False)
    figure.text(0.995, 0.003, ATTRIBUTION, ha="right", va="bottom", fontsize=6.5, color="0.4")
    with replacing(path) as fresh:
        figure.savefig(fresh, format="png")


def strip(images: Tensor, columns: int = COLUMNS) -> Tensor:
    """The first images side by side, uint8 ``(H, columns * W, 3)``."""
    chosen = to_uint8(images[:columns])
    return torch.cat(list(chosen.permute(0, 2, 3, 1)), dim=1)
