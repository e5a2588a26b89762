"""Layers of a quantized model: the heat map, curves s(t) of chosen ones, and what each loses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tdquant.lab.report.heatmap import heat_map, relative_steps
from tdquant.lab.report.marks import MARKS
from tdquant.lab.report.markup import Markup, data, tag
from tdquant.lab.report.numerals import is_number, numeral
from tdquant.lab.report.plots import Line, plot
from tdquant.lab.report.tables import Column, cell, head

CHOSEN = 4
"""Layers whose curves are drawn at first."""

STILL = 1e-4
"""Range of log steps below which nothing moves."""

COLUMNS = (
    Column("path", "Layer"),
    Column("type", "Type"),
    Column("bits", "Bits"),
    Column("scale", "Scale"),
    Column("error", "Input error", digits=2, unit="%"),
    Column("error_static", "with a static step", digits=2, unit="%"),
    Column("saved", "Saved", digits=0, unit="%"),
    Column("range", "Range of s", digits=2, unit="max / min"),
    Column("correlation", "Correlation with t", digits=2),
    Column("weight_error", "Weight error", digits=2, unit="%"),
    Column("parameters", "Parameters"),
)
_PERCENT = ("error", "error_static", "saved", "weight_error")


def explorer(content: dict[str, Any], name: str) -> Markup:
    """Everything about the layers of one model.

    Arguments:
        content: ``times`` and ``layers`` of ``layers.json``.
        name: Start of the ids that are used inside.
    """
    layers, times = content["layers"], content["times"]
    if not layers:
        return tag("p", "No quantized layer was recorded.")
    drawn = curved(content)
    if not moves(content):
        words = f"The steps of all {len(layers)} layers are the same at every timestep."
        return tag("div", tag("p", words), _table(layers, {}, name), class_="layers")
    relative = relative_steps(drawn)
    order = np.argsort(-np.ptp(relative, axis=1), kind="stable")
    first = [int(i) for i in order[:CHOSEN]]
    lines = [
        Line(drawn[i]["path"], times, [round(v, 4) for v in np.exp(relative[i]).tolist()])
        for i in first
    ]
    curves = plot(
        "Steps of the chosen layers over time", "timestep", "s(t) over its geometric mean", lines,
        y_log=True, name="curves",
    )  # fmt: skip
    kept = {
        "times": times,
        "paths": [layer["path"] for layer in drawn],
        "steps": [[float(f"{s:.4g}") for s in layer["steps"]] for layer in drawn],
        "chosen": first,
        "marks": MARKS,
    }
    places = {layer["path"]: i for i, layer in enumerate(drawn)}
    picture = heat_map({"times": times, "layers": drawn})
    left = tag("div", tag("h4", "How the step of every layer moves"), picture)
    return tag("div", tag("div", left, curves, class_="pair"),
               _table(layers, places, name, first), data(kept), class_="layers")  # fmt: skip


def curved(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The layers that have a step at every time: not those with float inputs, or seldom called."""
    return [each for each in content["layers"] if len(each["steps"]) == len(content["times"])]


def _table(
    layers: list[dict[str, Any]], places: dict[str, int], name: str, chosen: Sequence[int] = ()
) -> Markup:
    """All layers; those with a place in the heat map can be ticked."""
    order = sorted(layers, key=lambda layer: -(layer.get("error") or 0))
    box = tag(
        "div",
        tag("label", "Filter layers", for_=f"{name}-filter"),
        tag("input", type="search", id=f"{name}-filter", placeholder="such as conv1",
            autocomplete="off"),
        tag("output", f"{len(layers)} layers"),
        class_="filter", hidden=True,
    )  # fmt: skip
    heads = [head(column, "descending" if column.key == "error" else None) for column in COLUMNS]
    rows = [_row(layer, places.get(layer["path"]), chosen) for layer in order]
    caption = tag(
        "caption", tag("span", "What each layer loses", class_="title"),
        tag("span", "Errors are squared errors over squared values. Saved is what a temporal "
            "scale takes off the error of the best static step."
            + (" Ticked layers are drawn above." if chosen else "")),
    )  # fmt: skip
    whole = tag("table", caption, tag("thead", tag("tr", *heads)), tag("tbody", *rows),
                class_="sortable")  # fmt: skip
    region = tag("div", whole, class_="scroller tall", tabindex=0, role="region",
                 aria_label="What each layer loses")  # fmt: skip
    return tag("div", box, region, class_="tabular")


def _row(layer: dict[str, Any], place: int | None, chosen: Sequence[int]) -> Markup:
    shown = dict(layer)
    for key in _PERCENT:
        if is_number(layer.get(key)):
            shown[key] = 100 * layer[key]
    bits = [f"{letter}{layer[key]}" for letter, key in (("W", "weight_bits"), ("A", "input_bits"))
            if layer.get(key)]  # fmt: skip
    shown["bits"] = "".join(bits)
    tick = None
    if place is not None:
        tick = tag("input", type="checkbox", checked=place in chosen, hidden=True,
                   data_layer=place)  # fmt: skip
    shown["type"] = layer["type"].removeprefix("Quant")
    first = tag("th", tag("label", tick, tag("span", layer["path"])), scope="row")
    return tag("tr", first, *(cell(shown, column) for column in COLUMNS[1:]))


def moves(content: dict[str, Any]) -> bool:
    """Whether the step of any layer changes over time."""
    drawn = curved(content)
    return bool(drawn) and float(np.ptp(relative_steps(drawn), axis=1).max()) > STILL


def brief(content: dict[str, Any]) -> str:
    """The layers in one line: how many, and how far their steps move."""
    words = f"{len(content['layers'])} layers"
    if not moves(content):
        return words
    factors = np.exp(np.ptp(relative_steps(curved(content)), axis=1))
    middle, most = numeral(float(np.median(factors)), 1), numeral(float(factors.max()), 1)
    return f"{words}, steps that move by a factor of {middle} in the median and {most} at most"
