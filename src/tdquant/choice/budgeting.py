"""Budgets of size and time while a model is calibrated, and the record of what came of them."""

from __future__ import annotations

from torch import Tensor, nn

from tdquant.calibration.observe import Observations
from tdquant.calibration.record import RemedyRecord
from tdquant.calibration.report import Calibration, RemedyTrial
from tdquant.choice.budget import Budget
from tdquant.choice.dynamic import chosen_dynamic
from tdquant.choice.free_weights import Sizes
from tdquant.choice.size import correction_bytes, factor_bytes, float_bytes, saved_bytes
from tdquant.choice.time import layer_macs, spare_time, time_share
from tdquant.choice.trial import Trial
from tdquant.choice.widths import Choice, choose_widths, spend_rest
from tdquant.errors import RecipeError
from tdquant.layers import quantized_layers
from tdquant.layers.balance import BalancedLayer
from tdquant.layers.rotation import RotatedLayer
from tdquant.layers.structure import names_of
from tdquant.quantizers.rounding import DecidedWeight
from tdquant.recipe import Recipe
from tdquant.support.hooks import check_onloaded


def check_unlimited(budget: Budget) -> None:
    """Checks that there is no limit of size or time, which published quantizers cannot keep.

    Raises:
        RecipeError: There is.
    """
    if budget.size is not None or budget.time is not None:
        raise RecipeError(
            "a budget of size or time for the published quantizers",
            where="Budget",
            why="their bits are the same in all layers",
            fix="Recipe() in place of Recipe.published()",
        )


def check_budget(
    model: nn.Module, observations: Observations, recipe: Recipe, budget: Budget
) -> float:
    """Checks that a budget can be met, before anything is calibrated.

    Returns:
        Time that inputs in float may add to a call, as a share of the float model's.

    Raises:
        RecipeError: It cannot; the least that can be, and what stands in the way, is told.
        ConversionError: Weights, whose bits a size chooses, are offloaded.
    """
    if budget.size is not None:
        check_onloaded(model, "tdq.calibrate with a budget of size")
        Sizes(model, recipe, budget.size).check()
    return spare_time(model, observations.macs, recipe, budget.time)


class SizeBudget:
    """Keeps a model within a size while it is calibrated; without a size it does nothing.

    Arguments:
        model: A quantized model.
        recipe: Its recipe.
        size: Share of the float32 bytes that the file may have, or None.
        trial: Measures the whole model.
        targets: Outputs that a correction will be fitted to.
        span: The model's times.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: Recipe,
        size: float | None,
        trial: Trial,
        targets: list[Tensor],
        span: tuple[float, float],
    ) -> None:
        self._model, self._recipe, self._trial = model, recipe, trial
        self._size, self._targets, self._span = size, targets, span
        self._choice: Choice | None = None

    def choose(
        self, observations: Observations, seed: int = 0, progress: bool = True
    ) -> list[RemedyTrial]:
        """Gives weights the bits that the size allows, in place.

        Arguments:
            observations: Those of the model's activations, whose scales are calibrated: their
                tables are in the file, too.
            seed: Seed of the judge.
            progress: Draw bars.

        Raises:
            RecipeError: The size cannot be met.
        """
        if self._size is None:
            return []
        reserve = self._correction() + factor_bytes(self._model, self._recipe)
        self._choice = choose_widths(
            self._model,
            observations,
            self._recipe,
            Sizes(self._model, self._recipe, self._size, reserve),
            self._trial,
            seed=seed,
            progress=progress,
        )
        return [self._choice.trial]

    def spend_rest(self) -> list[RemedyTrial]:
        """Spends the bytes that channel factors did not need on more bits, in place."""
        if self._size is None or self._choice is None:
            return []
        sizes = Sizes(self._model, self._recipe, self._size, self._correction())
        return spend_rest(self._model, self._recipe, sizes, self._choice, self._trial)

    def _correction(self) -> int:
        return correction_bytes(self._targets, self._span)


def record_remedies(
    model: nn.Module, observations: Observations, report: Calibration
) -> RemedyRecord:
    """What became of the layers of a calibrated model, and what it costs."""
    protected = {one.path for one in report.protected}
    layers = {}
    for path, layer in quantized_layers(model):
        outer = names_of(model, path)
        behind = [model.get_submodule(name) for name in outer]
        found = {
            "protection": not protected.isdisjoint(outer),
            "rotation": any(isinstance(module, RotatedLayer) for module in behind),
            "dynamic": chosen_dynamic(layer.input_quantizer),
            "factors": any(isinstance(module, BalancedLayer) for module in behind),
            "rounding": isinstance(layer.weight_quantizer, DecidedWeight),
        }
        if any(found.values()):
            layers[path] = tuple(name for name, has in found.items() if has)
    macs = layer_macs(model, observations.macs)
    return RemedyRecord(
        basis=report.basis,
        trials=tuple(report.remedies),
        protected=tuple(report.protected),
        layers=layers,
        macs=macs,
        size=saved_bytes(model) / float_bytes(model),
        time=time_share(model, macs),
    )
