"""``calibrate``: scales for all activations, and the remedies beside them that help."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from torch import Tensor, nn

from tdquant.calibration.bias import correct_biases
from tdquant.calibration.observe import Observations, observed
from tdquant.calibration.placing import ESTIMATORS, place_scales
from tdquant.calibration.protection import ProtectedInput, choose_protected, put_bits
from tdquant.calibration.published import start_as_published
from tdquant.calibration.report import RemedyTrial
from tdquant.calibration.sample_error import LEAST
from tdquant.calls.call import Call
from tdquant.choice.budget import Budget
from tdquant.choice.budgeting import (
    SizeBudget,
    check_budget,
    check_unlimited,
    record_remedies,
)
from tdquant.choice.dynamic import drop_dynamic, try_dynamic
from tdquant.choice.factors import try_factors
from tdquant.choice.output import predictions, try_correction
from tdquant.choice.rotation import try_rotation
from tdquant.choice.rounding import try_rounding
from tdquant.choice.time_path import try_wide_time_path
from tdquant.choice.trial import SAMPLES, Trial
from tdquant.choice.trial_log import TrialLog, check_log
from tdquant.clock import clock_of
from tdquant.errors import CalibrationError, RecipeError
from tdquant.layers.correction import drop_correction
from tdquant.layers.float_bias import drop_bias_correction
from tdquant.recipe import Recipe
from tdquant.state import note, recipe_of, state_of
from tdquant.support.adapters import refuse_peft
from tdquant.support.restoring import changes_model

M = TypeVar("M", bound=nn.Module)

TRIED = ("rotation", "factors", "rounding", "dynamic", "correction")
"""Remedies that a trial of the whole model confirms."""


@changes_model
def calibrate(
    model: M,
    batches: Iterable[Call] | Observations,
    *,
    budget: Budget | None = None,
    estimator: str = "auto",
    margin: float = 0.1,
    split: bool = True,
    generate: Callable[[nn.Module], Tensor] | None = None,
    bias_correction: bool = False,
    time_range: tuple[float, float] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> M:
    """Estimates every activation scale of a quantized model from one pass over calls of it, in
    bounded memory, and applies the remedies that the recipe allows, each where it helps. The model
    runs in float while it is observed.

    A remedy for the whole model stays if it lowers the error of the model as a whole: of samples
    that ``generate`` draws, else at the end of the trajectories that are found in the calls
    (``tdquant.calls.rollout``), else of single calls, which is weaker, since errors cannot add up
    there. ``model.tdq.calibration`` says which it was.

    The data flow of the first call settles which layers are first and last and which depend on
    the timestep alone; where their names said otherwise, they get what the recipe has for them
    now. Layers that no call reaches become float layers. ``model.tdq.calibration`` names both.

    Arguments:
        model: What ``quantize`` returned.
        batches: Calls, tuples of positional or dictionaries of keyword arguments, as sampling
            makes them (``tdq.trajectories``); every time that matters should occur. Or what
            ``observe`` returned for the same architecture at any bits: a sweep over recipes
            observes once.
        budget: What remedies may cost, and what the model may; ``Budget()`` by default.
        estimator: ``"minmax"``, ``"percentile"``, ``"mse"``, ``"between"``, or ``"auto"``: for
            each layer the one with the least error at the model's output, confirmed on the whole
            model.
        margin: An ``"auto"`` scale is temporal where that lowers the layer's output error by more
            than this share.
        split: A layer whose input is a concatenation becomes one layer for each part of it, with
            separate scales, where that lowers its output error by more than ``margin``. Layers
            that were calibrated before stay as they are.
        generate: Samples ``(N, *)`` with the model that it is given, from fixed noise: torch's
            global generator is seeded for it, a generator of its own it has to make anew.
            Whole-model choices are then confirmed on these samples.
        bias_correction: Correct each layer's bias by the mean output error that the rounding of
            its weights causes.
        time_range: The model's times; ``0 .. 999``, or the range of the batches if continuous,
            by default.
        checkpoint: File of the errors of trials, which take most of the time of large models. The
            same calibration, run again after it was killed, tries nothing twice and ends in the
            same bits. The file stays when it ends.
        seed: Seed of all draws.
        progress: Draw bars.

    Returns:
        The model. ``model.tdq.calibration`` is the report on each layer; ``tdq.summary(model)``
        has the table.

    Raises:
        StorageError: ``checkpoint`` cannot be written, or is a file of something else.
        CalibrationError: No batches, none that reached a layer, NaN or infinite activations, an
            unknown estimator, ``generate`` that gives no samples or such of the float model that
            are not finite, or calls at mixed times for a scale over time of a layer whose
            samples cannot be told apart. The model is then left as it was.
        ConversionError: The model is not quantized, or has adapters of peft.
        RecipeError: No ``Budget``, or one that cannot be met: the least that can be, and the
            layers that keep it from less, are told. The model is then left as it was.

    Warns if scales are to follow the timestep and fewer than four distinct times were seen, and if
    ``generate`` gives the same whatever the model rounds.

    A model that ``Recipe.published`` quantized gets the published initial scales instead, whatever
    the estimator (``tdquant.calibration.published``).
    """
    clock_of(model)
    if checkpoint is not None:
        check_log(checkpoint)
    refuse_peft(model, "recipes and reports name its layers as they are without", "tdq.calibrate")
    drop_correction(model, "calibrate")
    drop_bias_correction(model)
    drop_dynamic(model)
    recipe, budget = recipe_of(model) or Recipe(remedies=()), budget or Budget()
    if recipe.grid == "published":
        check_unlimited(budget)
        if isinstance(batches, Observations):
            batches = batches.calls
        state_of(model).calibration = start_as_published(
            model, batches, time_range=time_range, seed=seed, progress=progress
        )
        return model
    if estimator not in ESTIMATORS:
        raise CalibrationError(
            f"no estimator {estimator!r}", where="calibrate", fix=f"one of {', '.join(ESTIMATORS)}"
        )
    if not isinstance(budget, Budget):
        raise RecipeError(
            f"a budget of type {type(budget).__name__}",
            where="calibrate",
            fix="tdq.Budget(size=0.2), a share of each kind by its name",
        )
    if time_range is not None and not (isinstance(time_range, Sequence) and len(time_range) == 2):
        raise RecipeError(
            f"time_range={time_range!r}", where="calibrate", fix="the lowest and the highest time"
        )
    batches = observed(model, batches, seed, progress)
    spare = check_budget(model, batches, recipe, budget)
    common: dict[str, Any] = {"estimator": estimator, "split": split, "seed": seed}
    key = f"{recipe} {budget} {margin} {bias_correction} {time_range} {common}"
    common["progress"] = progress
    trial = Trial(batches, generate, TrialLog(checkpoint), progress)
    tried = budget.size is not None or any(recipe.uses(name) for name in TRIED)
    if tried or checkpoint is not None:
        trial.record(model, key)
    targets = predictions(model, batches.calls) if recipe.uses("correction") else []
    protected: list[ProtectedInput] = []
    if recipe.uses("protection"):
        protected = choose_protected(model, batches, recipe, budget.protection, spare, **common)
        put_bits(model, protected)
    report = place_scales(
        model,
        batches,
        margin=margin,
        generate=trial.generate,
        exact=trial.exact,
        fresh=trial.fresh,
        measure=trial.log.measure,
        time_range=time_range,
        **common,
    )
    if trial.basis == SAMPLES and report.trials:
        _check_samples(list(report.trials.values()))
    size = SizeBudget(
        model, recipe, budget.size, trial, targets, time_range or batches.times.resolve()
    )
    remedies = size.choose(batches, seed, progress)
    if recipe.uses("rotation"):
        remedies += try_rotation(
            model, batches, trial, budget.rotation, margin=margin, span=time_range, seed=seed,
            progress=progress,
        )  # fmt: skip
    if recipe.uses("factors"):
        remedies += try_factors(model, batches, trial, seed=seed, progress=progress)
    remedies += size.spend_rest()
    remedies += _try_codes_and_steps(model, batches, recipe, budget, trial, margin, seed, progress)
    if recipe.uses("rounding") and budget.size is None:
        remedies += try_wide_time_path(model, recipe, trial)
    if bias_correction:
        correct_biases(model, batches.calls)
    if recipe.uses("correction"):
        remedies += try_correction(model, batches.calls, targets, trial, seed, progress)
    report = replace(report, basis=trial.basis, protected=protected, remedies=remedies)
    facts: dict[str, Any] = {
        "calls": batches.count,
        "times": [batches.times.low, batches.times.high],
        "scales": report.kinds(),
        "split layers": len(report.splits),
    }
    if time_range is not None:
        facts["time range"] = list(time_range)
    if report.trials:
        facts["error without rounded weights"] = report.trials[report.chosen]
    if protected:
        facts["protected inputs"] = len(protected)
    if remedies:
        facts["remedies"] = [one.name for one in remedies if one.kept]
    note(model, "calibrate", data=dict(batches.made_by), **facts)
    state = state_of(model)
    state.calibration, state.remedies = report, record_remedies(model, batches, report)
    return model


def _check_samples(errors: list[float]) -> None:
    """Warns of samples that do not depend on what is rounded, by the errors of trials.

    Raises:
        CalibrationError: None of them is a number.
    """
    if not any(map(math.isfinite, errors)):
        raise CalibrationError(
            "generate gives NaN or infinite samples",
            where="calibrate(generate=)",
            fix="look at what it gives for the float model",
        )
    if max(errors) <= 2 * LEAST:
        warnings.warn(
            "generate gives the float model's samples whatever is rounded, so that choices rest "
            "on nothing: it has to call the model that it is given",
            stacklevel=4,
        )


def _try_codes_and_steps(
    model: nn.Module,
    batches: Observations,
    recipe: Recipe,
    budget: Budget,
    trial: Trial,
    margin: float,
    seed: int,
    progress: bool,
) -> list[RemedyTrial]:
    """Tries codes of weights, then dynamic steps of inputs. If the steps stay and the codes did
    not, tries the codes again: what they gain may have been hidden by the rounding of inputs.
    """
    codes: list[RemedyTrial] = []
    steps: list[RemedyTrial] = []
    if recipe.uses("rounding"):
        codes = try_rounding(model, batches.calls, trial, progress=progress)
    if recipe.uses("dynamic"):
        steps = try_dynamic(
            model, batches, trial, budget.dynamic, margin=margin, seed=seed, progress=progress
        )
    if codes and not codes[0].kept and steps and steps[0].kept:
        codes = try_rounding(model, batches.calls, trial, progress=progress)
    return [*codes, *steps]
