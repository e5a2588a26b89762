"""``calibrate``: observe the float model, make candidate scales, judge them at the output, install
the best.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from tdquant.calibration.bias import correct_biases
from tdquant.calibration.candidates import NAMES, Candidate, choose_grid, make_candidates
from tdquant.calibration.choose import list_choices, static_error, time_weights
from tdquant.calibration.concatenations import SUFFIX, Concatenation, splittable, with_parts
from tdquant.calibration.judge import Judgement, judge
from tdquant.calibration.observe import Observations, observed
from tdquant.calibration.published import start_as_published
from tdquant.calibration.report import Calibration, LayerChoice, SplitChoice
from tdquant.calls.call import Call, outputs
from tdquant.calls.observing import observing
from tdquant.clock import clock_of
from tdquant.errors import CalibrationError
from tdquant.layers import QuantLayer, SplitLayer, replace_module
from tdquant.numerics.fake_quantize import expand_scale, fake_quantize
from tdquant.numerics.grid import Grid
from tdquant.quantizers import ActivationQuantizer, activation_quantizers
from tdquant.scales import SCALES, Curves, DynamicScale, Scale, StaticScale, TemporalScale
from tdquant.scales.base import steps_at
from tdquant.scales.table import training_timesteps
from tdquant.state import note, recipe_of, state_of
from tdquant.support.progress import track

ESTIMATORS = ("auto", *NAMES)


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
    """Estimates every activation scale of a quantized model from one pass over calls of it.

    The model runs in float while it is observed. Memory does not grow with the number of batches.

    Arguments:
        model: What ``quantize`` returned.
        batches: Calls, tuples of positional or dictionaries of keyword arguments, as sampling
            makes them: see ``tdquant.calls.from_denoiser``. Every time that matters should
            occur. Or what ``observe`` returned for the same architecture, whatever its bits: a
            sweep over recipes observes once.
        estimator: ``"minmax"``, ``"percentile"``, ``"mse"``, or ``"auto"``: for each layer the one
            whose errors do least at the model's output, confirmed on the whole model.
        margin: An ``"auto"`` scale is temporal where that lowers the layer's output error by more
            than this share.
        split: A layer that is handed a concatenation may become one layer for each part of it,
            with scales of their own; it does where that lowers its output error by more than
            ``margin``. Layers that were calibrated before stay as they are.
        generate: Samples with the model that it is given, from fixed noise. With ``"auto"``,
            whole-model choices are then confirmed on what it returns and not on single calls: an
            error that is small in every call can add up over a trajectory.
        bias_correction: Move each layer's bias by the mean output error that its weights' rounding
            causes.
        time_range: The model's times, if they are not ``0 .. 999`` and not the continuous range of
            the batches.
        seed: Seed of all draws.
        progress: Draw bars.

    Returns:
        The model. What each layer got and why is ``model.tdq.calibration``; ``tdq.summary(model)``
        has the table.

    Raises:
        CalibrationError: No batches, layers that no batch reached, NaN, infinite or all-zero
            activations, or an unknown estimator. The model is then left as it was.
        ConversionError: The model is not quantized.

    A model that ``Recipe.published`` quantized gets the published start instead, whatever the
    estimator (``tdquant.calibration.published``).
    """
    clock_of(model)
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
    quantizers = dict(activation_quantizers(model))
    batches = observed(model, batches, seed, progress)
    seen, calls = batches.seen, batches.calls
    span = time_range or batches.times.resolve()

    pending = {n: q for n, q in quantizers.items() if not isinstance(q.scale, DynamicScale)}
    parts = splittable(model, pending, batches.parts) if split else {}
    owners = with_parts(quantizers, parts)
    grids = {n: choose_grid(seen[n], q.grid, q.symmetric) for n, q in owners.items()}
    scales: dict[str, Scale] = {n: q.scale for n, q in quantizers.items()}
    report = Calibration([])
    if pending:
        candidates = {
            n: make_candidates(seen[n], grids[n], estimator)
            for n in owners
            if n in pending or n not in quantizers
        }
        shown = track(calls, "judging scales", len(calls), progress)
        judgement = judge(model, pending, grids, candidates, shown, seed, parts)
        judgement = judgement.balanced({n: candidates[n] for n in pending})
        wanted = {n: q.wanted for n, q in pending.items()}
        choices = list_choices(wanted, candidates, judgement, margin, parts)
        trials = {}
        if len(choices) > 1:

            def result(net: nn.Module) -> list[Tensor]:
                return [generate(net)] if generate else outputs(net, calls)

            trials = _try_all(
                model, quantizers, grids, candidates, choices, parts, result, progress
            )
        name = min(trials, key=trials.__getitem__) if trials else next(iter(choices))
        choice = choices[name]
        curves = {n: candidates[n][i] for n, i in choice.items()}
        chosen = {n: owners[n] for n in choice}
        made, misfits = _make_scales(chosen, grids, curves, choice, judgement, span, seed)
        scales |= made
        layers = [
            LayerChoice(
                n,
                made[n].kind,
                curves[n].estimator,
                float(judgement.mean(n)[i]),
                static_error(candidates[n], judgement.mean(n)),
                float(curves[n].curve.table.max() / curves[n].curve.table.min()),
                misfits.get(n, 0.0),
            )
            for n, i in choice.items()
        ]
        splits = [
            SplitChoice(
                n.removesuffix(SUFFIX),
                c.sizes,
                judgement.together({p: choice[p] for p in c.names(n)}),
                float(judgement.mean(n).min()),
            )
            for n, c in parts.items()
            if n not in choice
        ]
        _install_splits(model, splits)
        report = Calibration(layers, trials, name, splits)
    for n, quantizer in activation_quantizers(model):
        scale = scales[n].to(_device(model)).train(quantizer.training)
        quantizer.grid, quantizer.scale = grids[n], scale
    if bias_correction:
        correct_biases(model, calls)
    _note(model, batches, report)
    state_of(model).calibration = report
    return model


def _note(model: nn.Module, seen: Observations, report: Calibration) -> None:
    kinds = sorted({choice.kind for choice in report.layers})
    low, high = seen.times.low, seen.times.high
    facts = {
        "calls": seen.count,
        "times": [low, high],
        "scales": {kind: sum(c.kind == kind for c in report.layers) for kind in kinds},
        "split layers": len(report.splits),
    }
    if report.trials:
        facts["error without rounded weights"] = report.trials[report.chosen]
    note(model, "calibrate", data=dict(seen.made_by), **facts)


def _install_splits(model: nn.Module, splits: list[SplitChoice]) -> None:
    for choice in splits:
        layer = model.get_submodule(choice.path)
        assert isinstance(layer, QuantLayer)
        replace_module(model, layer, SplitLayer.from_quantized(layer, choice.sizes))


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


@torch.no_grad()
def _try_all(
    model: nn.Module,
    quantizers: dict[str, ActivationQuantizer],
    grids: dict[str, Grid],
    candidates: dict[str, list[Candidate]],
    choices: dict[str, dict[str, int]],
    parts: dict[str, Concatenation],
    result: Callable[[nn.Module], list[Tensor]],
    progress: bool,
) -> dict[str, float]:
    """Error of ``result(model)`` under each choice: activations quantized, weights in float.

    The mean over samples is geometric: where a generated sample tips over into another picture its
    error is a hundred times that of the rest, and a few such would decide by chance.
    """
    with observing(model, quantizers, lambda name, x, t: x):
        exact = result(model)
    found = {}
    for title, choice in track(choices.items(), "trying choices", len(choices), progress):

        def look(
            name: str, x: Tensor, timestep: Tensor, choice: dict[str, int] = choice
        ) -> Tensor:
            if name in parts and name not in choice:
                together = parts[name]
                pieces = zip(together.names(name), together.pieces(x), strict=True)
                rounded = [look(place, piece, timestep, choice) for place, piece in pieces]
                return torch.cat(rounded, together.dimension)
            grid = grids[name]
            scale = (
                candidates[name][choice[name]].curve if name in choice else quantizers[name].scale
            )
            return fake_quantize(x, expand_scale(scale(timestep, x, grid), x), grid.low, grid.high)

        with observing(model, quantizers, look):
            errors = [
                (y - e).square().flatten(1).mean(1)
                for y, e in zip(result(model), exact, strict=True)
            ]
        found[title] = float(torch.cat(errors).clamp(min=1e-20).log().mean().exp())
    return found


def _make_scales(
    quantizers: dict[str, ActivationQuantizer],
    grids: dict[str, Grid],
    curves: dict[str, Candidate],
    choice: dict[str, int],
    judgement: Judgement,
    span: tuple[float, float],
    seed: int,
) -> tuple[dict[str, Scale], dict[str, float]]:
    """The scales that the chosen curves become, and how far those over time stay from them."""
    knots = training_timesteps(*span)
    groups: dict[tuple[type[Scale], str], list[str]] = {}
    for n, q in quantizers.items():
        alone = StaticScale if curves[n].curve.static else TemporalScale
        law = alone if q.wanted == "auto" else SCALES[q.wanted]
        groups.setdefault((law, repr(sorted(q.options.items()))), []).append(n)
    made: dict[str, Scale] = {}
    misfits: dict[str, float] = {}
    for (law, _), names in groups.items():
        steps = [curves[n].curve(knots, knots, grids[n]).expand(len(knots)) for n in names]
        weights = [time_weights(judgement, n, choice[n], knots) for n in names]
        codes = [grids[n] for n in names]
        wanted = Curves(knots, torch.stack(steps), torch.stack(weights), codes, span, seed)
        scales = law.from_curves(wanted, quantizers[names[0]].options)
        made |= zip(names, scales, strict=True)
        if law.timed:
            with torch.no_grad():
                reached = torch.stack(steps_at(scales, knots, codes))
            worst = (reached.log() - wanted.steps.log()).abs().amax(1)
            misfits |= zip(names, worst.tolist(), strict=True)
    return made, misfits
