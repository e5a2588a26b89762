"""Layers of a quantized model: a heat map of their steps, curves s(t), and what each loses.

The heat map shows, for layers by timesteps,

    log s_l(t) - mean_t log s_l(t),

blue below the layer's geometric mean and orange above, once for each theme.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tdquant.lab.report.formats import Layer, Layers
from tdquant.lab.report.lines import Line
from tdquant.lab.report.numerals import numeral
from tdquant.lab.report.pictures import Picture, coloured
from tdquant.lab.report.plots import plot
from tdquant.lab.report.tables import Column, cell
from tdquant.lab.report.templating import EXTRA, render
from tdquant.support.optional import require

if TYPE_CHECKING:
    from markupsafe import Markup

CHOSEN = 4
"""Layers whose curves are drawn at first."""

STILL = 1e-4
"""Range of log steps below which nothing moves."""

LEVELS = 127
"""Colours of the heat map on either side of the middle."""

SMALLEST_LIMIT = 1.25
"""Least factor of the geometric mean at which the colours end."""

THEMES = {
    "light": ("#1a5490", "#86b1d6", "#f3f0e9", "#eaa079", "#ae3f17"),
    "dark": ("#7ab8f5", "#2f5f8f", "#22262d", "#9a5230", "#f8a173"),
}

COLUMNS = (
    Column(key="path", label="Layer"),
    Column(key="type", label="Type"),
    Column(key="bits", label="Bits"),
    Column(key="scale", label="Scale"),
    Column(key="error", label="Input error", digits=2, unit="%"),
    Column(key="error_static", label="with a static step", digits=2, unit="%"),
    Column(key="saved", label="Saved", digits=0, unit="%"),
    Column(key="range", label="Range of s", digits=2, unit="max / min"),
    Column(key="correlation", label="Correlation with t", digits=2),
    Column(key="weight_error", label="Weight error", digits=2, unit="%"),
    Column(key="parameters", label="Parameters"),
)


def explorer(content: Layers, name: str) -> Markup:
    """Everything about the layers of one model.

    Arguments:
        content: Times and layers.
        name: Start of the ids inside.
    """
    drawn = curved(content) if moves(content) else []
    first: list[int] = []
    moving: dict[str, Any] = {}
    if drawn:
        relative = relative_steps(drawn)
        order = np.argsort(-np.ptp(relative, axis=1), kind="stable").tolist()
        first = order[:CHOSEN]
        curves = np.exp(relative).round(4)
        lines = [
            Line(name=drawn[i].path, x=content.times, y=curves[i].tolist(), shown=i in first)
            for i in order
        ]
        moving = {
            "curves": plot(
                "Steps of the chosen layers over time", "timestep", "s(t) over its geometric mean",
                lines, y_log=True, name="curves",
            ),
            "paths": [layer.path for layer in drawn],
            **_heat(relative, content.times),
            "data": {
                "times": content.times,
                "paths": [layer.path for layer in drawn],
                "steps": [[float(f"{s:.4g}") for s in layer.steps] for layer in drawn],
                "chosen": first,
                "order": order,
            },
        }  # fmt: skip
    places = {layer.path: i for i, layer in enumerate(drawn)}
    listed = sorted(content.layers, key=lambda layer: -(layer.error or 0))
    return render(
        "layers",
        name=name,
        columns=COLUMNS,
        rows=[(layer.path, places.get(layer.path), _cells(layer)) for layer in listed],
        chosen=first,
        moving=moving,
    )


def _heat(relative: np.ndarray, times: Sequence[float]) -> dict[str, Any]:
    """Pictures and scale of the heat map."""
    limit = max(float(np.quantile(np.abs(relative), 0.995)), float(np.log(SMALLEST_LIMIT)))
    codes = LEVELS + np.rint(np.clip(relative / limit, -1, 1) * LEVELS).astype(np.int64)
    return {
        "cells": _in_themes(codes),
        "ramp": _in_themes(np.arange(2 * LEVELS + 1)[None]),
        "factor": round(float(np.exp(limit)), 2),
        "ticks": [times[round(q * (len(times) - 1))] for q in (0, 0.25, 0.5, 0.75, 1)],
        "timesteps": len(times),
    }


def _in_themes(codes: np.ndarray) -> dict[str, Picture]:
    """A picture of codes in the colours of each theme; the style sheet shows one of them."""
    colours = require("matplotlib.colors", EXTRA).LinearSegmentedColormap
    every = range(2 * LEVELS + 1)
    return {
        theme: coloured(codes, colours.from_list(theme, stops, len(every))(every, bytes=True))
        for theme, stops in THEMES.items()
    }


def relative_steps(layers: Sequence[Layer]) -> np.ndarray:
    """Log steps of each layer less their mean over the timesteps, ``(layers, timesteps)``."""
    logs = np.log(np.asarray([layer.steps for layer in layers], dtype=np.float64))
    return logs - logs.mean(axis=1, keepdims=True)


def curved(content: Layers) -> list[Layer]:
    """The layers that have a step at every time: not those with float inputs, or seldom called."""
    return [each for each in content.layers if len(each.steps) == len(content.times)]


def _cells(layer: Layer) -> list[Any]:
    """Cells of a layer's row after its name."""
    values = {k: v for k, v in layer.model_dump().items() if v is not None}
    for key in {"error", "error_static", "saved", "weight_error"} & values.keys():
        values[key] *= 100
    bits = (("W", layer.weight_bits), ("A", layer.input_bits))
    values["bits"] = "".join(f"{letter}{count}" for letter, count in bits if count)
    values["type"] = layer.type.removeprefix("Quant")
    return [cell(values, column) for column in COLUMNS[1:]]


def moves(content: Layers) -> bool:
    """Whether the step of any layer changes over time."""
    drawn = curved(content)
    return bool(drawn) and float(np.ptp(relative_steps(drawn), axis=1).max()) > STILL


def brief(content: Layers) -> str:
    """The layers in one line: how many, and how far their steps move."""
    words = f"{len(content.layers)} layers"
    if not moves(content):
        return words
    factors = np.exp(np.ptp(relative_steps(curved(content)), axis=1))
    middle, most = numeral(float(np.median(factors)), 1), numeral(float(factors.max()), 1)
    return f"{words}, steps that move by a factor of {middle} in the median and {most} at most"
