"""Weights on the time path: few bits, or 8 where those would be felt.

The inputs of a layer that sees the timestep alone lie on a curve, along which codes chosen by its
outputs (``tdquant.choice.rounding``) lose little. What else may reach it, such as a class or a
pooled text, does not lie on a curve, so the error of the whole model decides.
"""

from __future__ import annotations

from torch import nn

from tdquant.calibration.report import RemedyTrial
from tdquant.choice.apart import Apart
from tdquant.choice.trial import Trial
from tdquant.quantizers import WeightQuantizer
from tdquant.recipe import WIDE_TIME, Recipe
from tdquant.refine.search.measure import rounding_at

WORTH = 0.5
"""Share by which 8 bits have to lower the error of the whole model. Their bytes, spent on all
weights, would lower it more.
"""


def try_wide_time_path(model: nn.Module, recipe: Recipe, trial: Trial) -> list[RemedyTrial]:
    """Gives weights on the time path, if the recipe does not say their bits, 8 where that lowers
    the whole model's error to less than half, in place.

    Arguments:
        model: A quantized and calibrated model.
        recipe: Its recipe.
        trial: Measures the whole model.
    """
    few = {
        path: layer
        for path, layer in Apart(model, recipe).time_path().items()
        if isinstance(layer.weight_quantizer, WeightQuantizer)
        and layer.weight_quantizer.grid.bits < WIDE_TIME
    }
    if recipe.time_weights is not None or not few:
        return []
    own = {path: layer.weight_quantizer for path, layer in few.items()}
    wide = {
        path: rounding_at(layer.weight, own[path], WIDE_TIME, recipe, path).train(layer.training)
        for path, layer in few.items()
    }

    def change(apply: bool) -> None:
        for path, layer in few.items():
            layer.weight_quantizer = (wide if apply else own)[path]

    what = f"{WIDE_TIME} bits for {len(few)} weights on the time path"
    return [trial.confirm(model, "time path", what, change, WORTH)]
