"""``calibrate``: observes the float model, makes candidate scales, judges them at the output and
installs the best.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.calibration.bias import correct_biases
from tdquant.calibration.candidates import NAMES, Candidate, choose_grid, make_candidates
from tdquant.calibration.choose import is_static, list_choices
from tdquant.calibration.concatenations import Concatenation, splittable, with_parts
from tdquant.calibration.fitting import make_scales, wanted_kind
from tdquant.calibration.judge import judge
from tdquant.calibration.observe import Observations, observed
from tdquant.calibration.published import start_as_published
from tdquant.calibration.report import Calibration, SplitChoice
from tdquant.calls.call import Call, outputs
from tdquant.calls.observing import observing
from tdquant.clock import clock_of
from tdquant.errors import CalibrationError
from tdquant.layers import QuantLayer, SplitLayer, replace_module
from tdquant.layers.base import INPUT
from tdquant.layers.correction import drop_correction
from tdquant.numerics.fake_quantize import fake_quantize
from tdquant.numerics.grid import Grid
from tdquant.quantizers import ActivationQuantizer, activation_quantizers
from tdquant.scales import DynamicScale, Scale
from tdquant.state import note, recipe_of, state_of
from tdquant.support.devices import device_at
from tdquant.support.progress import track
from tdquant.support.restoring import changes_model

ESTIMATORS = ("auto", *NAMES)


@changes_model
def calibrate(
    model: nn.Module,
    batches: Iterable[Call] | Observations,
    *,
    estimator: str = "auto",
    margin: float = 0.1,
    split: bool = True,
    generate: Callable[[nn.Module], Tensor] | None = None,
    bias_correction: bool = False,
    time_range: tuple[float, float] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> nn.Module:
    """Estimates every activation scale of a quantized model from one pass over calls of it, in
    bounded memory. The model runs in float while it is observed.

    The data flow of the first call settles which layers are first and last and which depend on
    the timestep alone; where their names said otherwise, they get what the recipe has for them
    now. Layers that no call reaches become float layers. ``model.tdq.calibration`` names both.

    Arguments:
        model: What ``quantize`` returned.
        batches: Calls, tuples of positional or dictionaries of keyword arguments, as sampling
            makes them (``tdq.trajectories``); every time that matters should occur. Or what
            ``observe`` returned for the same architecture at any bits: a sweep over recipes
            observes once.
        estimator: ``"minmax"``, ``"percentile"``, ``"mse"``, ``"between"``, or ``"auto"``: for
            each layer the one with the least error at the model's output, confirmed on the whole
            model.
        margin: An ``"auto"`` scale is temporal where that lowers the layer's output error by more
            than this share.
        split: A layer whose input is a concatenation becomes one layer for each part of it, with
            separate scales, where that lowers its output error by more than ``margin``. Layers
            that were calibrated before stay as they are.
        generate: Samples with the model that it is given, from fixed noise. With ``"auto"``,
            whole-model choices are then confirmed on the samples instead of single calls: an
            error that is small in every call can add up over a trajectory.
        bias_correction: Correct each layer's bias by the mean output error that the rounding of
            its weights causes.
        time_range: The model's times; ``0 .. 999``, or the range of the batches if continuous,
            by default.
        seed: Seed of all draws.
        progress: Draw bars.

    Returns:
        The model. ``model.tdq.calibration`` is the report on each layer; ``tdq.summary(model)``
        has the table.

    Raises:
        CalibrationError: No batches, none that reached a layer, NaN or infinite activations, an
            unknown estimator, or calls at mixed times for a scale over time of a layer whose
            samples cannot be told apart. The model is then left as it was.
        ConversionError: The model is not quantized.

    A model that ``Recipe.published`` quantized gets the published initial scales instead, whatever
    the estimator (``tdquant.calibration.published``).
    """
    clock_of(model)
    drop_correction(model, "calibrate")
    recipe = recipe_of(model)
    if recipe is not None and recipe.grid == "published":
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
    batches = observed(model, batches, seed, progress)
    seen, calls = batches.seen, batches.calls
    span = time_range or batches.times.resolve()

    quantizers = dict(activation_quantizers(model))
    pending = {n: q for n, q in quantizers.items() if not isinstance(q.scale, DynamicScale)}
    parts = splittable(model, pending, batches.parts) if split else {}
    owners = with_parts(quantizers, parts)
    grids = {n: choose_grid(seen[n], q.grid, q.symmetric) for n, q in owners.items()}
    scales: dict[str, Scale] = {n: q.scale for n, q in quantizers.items()}
    report = Calibration([], roles=state_of(model).roles)
    if pending:
        wanted = {n: wanted_kind(n, q, seen[n], batches.roles) for n, q in pending.items()}
        kinds = {p: wanted[n] for n, c in parts.items() for p in c.names(n)} | wanted
        candidates = {
            n: make_candidates(seen[n], grids[n], estimator, is_static(kinds[n]))
            for n in with_parts(pending, parts)
        }
        shown = track(calls, "judging scales", show=progress)
        judgement = judge(model, pending, candidates, shown, seed, parts)
        judgement = judgement.balanced({n: candidates[n] for n in pending})
        choices = list_choices(wanted, candidates, judgement, margin, parts)
        trials: dict[str, float] = {}
        if len(choices) > 1:
            curves = {
                title: {n: candidates[n][i] for n, i in choice.items()}
                for title, choice in choices.items()
            }
            trials = _try_all(model, quantizers, grids, curves, parts, calls, generate, progress)
        name = min(trials, key=trials.__getitem__) if trials else next(iter(choices))
        choice = choices[name]
        made, layers = make_scales(owners, kinds, candidates, choice, judgement, span, seed)
        scales |= made
        splits = [
            SplitChoice(
                n.removesuffix(INPUT),
                c.sizes,
                judgement.together({p: choice[p] for p in c.names(n)}),
                float(judgement.mean(n).min()),
            )
            for n, c in parts.items()
            if n not in choice
        ]
        for each in splits:
            layer = model.get_submodule(each.path)
            assert isinstance(layer, QuantLayer)
            replace_module(model, layer, SplitLayer.from_quantized(layer, each.sizes))
        report = replace(
            report, layers=layers, trials=trials, chosen=name, splits=splits, local=judgement.local
        )
    for n, quantizer in activation_quantizers(model):
        scale = scales[n].to(device_at(model, n))
        quantizer.grid, quantizer.scale = grids[n], scale.train(quantizer.training)
    if bias_correction:
        correct_biases(model, calls)
    facts: dict[str, Any] = {
        "calls": batches.count,
        "times": [batches.times.low, batches.times.high],
        "scales": report.kinds(),
        "split layers": len(report.splits),
    }
    if report.trials:
        facts["error without rounded weights"] = report.trials[report.chosen]
    note(model, "calibrate", data=dict(batches.made_by), **facts)
    state_of(model).calibration = report
    return model


@torch.no_grad()
def _try_all(
    model: nn.Module,
    quantizers: Mapping[str, ActivationQuantizer],
    grids: Mapping[str, Grid],
    choices: Mapping[str, Mapping[str, Candidate]],
    parts: Mapping[str, Concatenation],
    calls: list[Call],
    generate: Callable[[nn.Module], Tensor] | None,
    progress: bool,
) -> dict[str, float]:
    """Error of outputs or generated samples under each choice, with activations quantized and
    weights in float.

    The mean over samples is geometric: the error of a sample that tips over into another image is
    a hundred times that of the rest, and a few such samples would decide by chance.
    """

    def result() -> list[Tensor]:
        return [generate(model)] if generate else outputs(model, calls)

    def round_by(
        choice: Mapping[str, Candidate], name: str, x: Tensor, timestep: Tensor
    ) -> Tensor:
        if name in choice:
            return choice[name].quantize(x, timestep, quantizers[name].batch)
        if name in parts:
            names, pieces = parts[name].names(name), parts[name].pieces(x)
            rounded = [
                choice[place].quantize(piece, timestep, quantizers[name].batch)
                for place, piece in zip(names, pieces, strict=True)
            ]
            return torch.cat(rounded, parts[name].dimension)
        grid = grids[name]
        return fake_quantize(x, quantizers[name].step(x), grid.low, grid.high)

    with observing(model, quantizers):
        exact = result()
    found = {}
    for title, choice in track(choices.items(), "trying choices", len(choices), progress):
        with observing(model, quantizers, partial(round_by, choice)):
            pairs = zip(result(), exact, strict=True)
            errors = [(y - e).square().flatten(1).mean(1) for y, e in pairs]
        found[title] = float(torch.cat(errors).clamp(min=1e-20).log().mean().exp())
    return found
