"""How every layer's step moves: a picture of layers by timesteps,

    log s_l(t) - mean_t log s_l(t),

blue below the layer's geometric mean and orange above, once for each theme.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tdquant.lab.report.markup import Markup, tag
from tdquant.lab.report.numerals import numeral
from tdquant.lab.report.pictures import element_of

LEVELS = 127
SMALLEST_LIMIT = 1.25

_STOPS = {
    "light": ("#1a5490", "#86b1d6", "#f3f0e9", "#eaa079", "#ae3f17"),
    "dark": ("#7ab8f5", "#2f5f8f", "#22262d", "#9a5230", "#f8a173"),
}


def relative_steps(layers: Sequence[dict[str, Any]]) -> np.ndarray:
    """Log steps of each layer less their mean over the timesteps, ``(layers, timesteps)``."""
    logs = np.log(np.asarray([layer["steps"] for layer in layers], dtype=np.float64))
    return logs - logs.mean(axis=1, keepdims=True)


def heat_map(content: dict[str, Any]) -> Markup:
    """The picture with names, times and a legend.

    Arguments:
        content: ``times`` and ``layers``, at least one of each.
    """
    relative, layers = relative_steps(content["layers"]), content["layers"]
    limit = max(float(np.quantile(np.abs(relative), 0.995)), float(np.log(SMALLEST_LIMIT)))
    codes = LEVELS + np.rint(np.clip(relative / limit, -1, 1) * LEVELS).astype(np.int64)
    names = [tag("li", tag("bdi", layer["path"]), title=layer["path"]) for layer in layers]
    times = content["times"]
    ticks = [times[round(q * (len(times) - 1))] for q in (0, 0.25, 0.5, 0.75, 1)]
    field = tag(
        "div", *_both(codes.astype(np.uint8), class_="cells"), tag("div", class_="cross"),
        _reader("Layer", len(layers), "row"),
        _reader("Timestep", len(times), "column"),
        class_="field",
    )  # fmt: skip
    factor = numeral(round(float(np.exp(limit)), 2))
    legend = tag(
        "div", tag("span", f"÷ {factor}"),
        *_both(np.arange(2 * LEVELS + 1, dtype=np.uint8)[None], class_="ramp"),
        tag("span", f"× {factor}"), tag("span", "of the layer's geometric mean"),
        class_="key",
    )  # fmt: skip
    return tag(
        "div",
        legend,
        tag(
            "div",
            tag("ol", *names, class_="names", aria_hidden="true"),
            field,
            class_="rows",
        ),
        tag("div", *(tag("span", numeral(t)) for t in ticks), class_="times"),
        tag("p", "timestep", class_="under"),
        tag("div", "", class_="readout", aria_hidden="true"),
        class_="heat",
        role="group",
        aria_label=f"Heat map of the steps of {len(layers)} layers over time; "
        "the table of layers has their ranges",
    )


def _reader(label: str, count: int, which: str) -> Markup:
    return tag(
        "input", type="range", class_=f"reader {which}", min=0, max=count - 1, value=0,
        aria_label=f"{label} of the heat map. Arrow keys move, Enter draws the layer or takes "
        "it away", aria_valuetext="", hidden=True,
    )  # fmt: skip


def _both(codes: np.ndarray, class_: str) -> list[Markup]:
    """The picture in the colours of both themes, of which the style sheet shows one."""
    return [element_of(codes, _palette(stops), class_=f"{class_} only-{theme}")
            for theme, stops in _STOPS.items()]  # fmt: skip


def _palette(stops: Sequence[str]) -> list[tuple[int, int, int]]:
    corners = np.array([[int(s[i : i + 2], 16) for i in (1, 3, 5)] for s in stops], dtype=float)
    place = np.linspace(0, len(stops) - 1, 2 * LEVELS + 1)
    parts = [np.interp(place, range(len(stops)), corners[:, k]) for k in range(3)]
    return [(int(r), int(g), int(b)) for r, g, b in np.rint(np.stack(parts, axis=1))]
