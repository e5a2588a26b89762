"""From observations to scales: makes candidates, judges them at the output, confirms choices on
the whole model and installs the best.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from tdquant.calibration.candidates import NAMES, Candidate, choose_grid, make_candidates
from tdquant.calibration.choose import is_static, list_choices
from tdquant.calibration.concatenations import Concatenation, splittable, with_parts
from tdquant.calibration.few_times import warn_of_few_times
from tdquant.calibration.fitting import make_scales, wanted_kind
from tdquant.calibration.judge import Judgement, judge
from tdquant.calibration.observe import Observations
from tdquant.calibration.report import Calibration, SplitChoice
from tdquant.calibration.sample_error import sample_error
from tdquant.calls.call import Call, outputs
from tdquant.calls.observing import observing
from tdquant.layers import QuantLayer, SplitLayer, replace_module
from tdquant.layers.base import INPUT
from tdquant.numerics.fake_quantize import fake_quantize
from tdquant.numerics.grid import Grid
from tdquant.quantizers import ActivationQuantizer, activation_quantizers
from tdquant.scales import DynamicScale, Scale
from tdquant.state import state_of
from tdquant.support.devices import device_at
from tdquant.support.progress import track

Measure = Callable[[str, Callable[[], float]], float]

ESTIMATORS = ("auto", *NAMES)


def place_scales(
    model: nn.Module,
    observations: Observations,
    *,
    estimator: str = "auto",
    margin: float = 0.1,
    split: bool = True,
    generate: Callable[[nn.Module], Tensor] | None = None,
    exact: Sequence[Tensor] = (),
    fresh: Sequence[Call] = (),
    measure: Measure,
    time_range: tuple[float, float] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Calibration:
    """Puts a scale in the place of every activation scale but dynamic ones, and splits layers, in
    place. Arguments that are not named here are those of ``calibrate``.

    Arguments:
        model: A quantized model.
        observations: Those of its activations.
        generate: Samples with the model that it is given, from fixed noise; choices for the whole
            model are confirmed on them, otherwise on single calls.
        exact: What they give for the float model, which is run if this is empty.
        fresh: Calls along trajectories that nothing was fitted to. Scales are judged by them too,
            among them some with room beyond all that was seen, if the estimator is ``"auto"``.
        measure: Gives the error of what is tried, by its name and by what measures it.

    Returns:
        The report on each layer.
    """
    seen, calls = observations.seen, observations.calls
    span = time_range or observations.times.resolve()

    quantizers = dict(activation_quantizers(model))
    pending = {n: q for n, q in quantizers.items() if not isinstance(q.scale, DynamicScale)}
    parts = splittable(model, pending, observations.parts) if split else {}
    owners = with_parts(quantizers, parts)
    grids = {n: choose_grid(seen[n], q.grid, q.symmetric) for n, q in owners.items()}
    scales: dict[str, Scale] = {n: q.scale for n, q in quantizers.items()}
    report = Calibration([], roles=state_of(model).roles)
    if pending:
        wanted = {n: wanted_kind(n, q, seen[n], observations.roles) for n, q in pending.items()}
        warn_of_few_times(wanted.values(), observations.times, stacklevel=4)
        kinds = {p: wanted[n] for n, c in parts.items() for p in c.names(n)} | wanted
        candidates = {
            n: make_candidates(seen[n], grids[n], estimator, is_static(kinds[n]), bool(fresh))
            for n in with_parts(pending, parts)
        }

        def judged(by: Sequence[Call]) -> Judgement:
            shown = track(by, "judging scales", len(by), progress)
            found = judge(model, pending, candidates, shown, seed, parts)
            return found.balanced({n: candidates[n] for n in pending})

        judgement = judged(calls)
        other = judged(fresh) if fresh and estimator == "auto" else None
        choices = list_choices(wanted, candidates, judgement, margin, parts, other)
        trials: dict[str, float] = {}
        if len(choices) > 1:
            curves = {
                title: {n: candidates[n][i] for n, i in choice.items()}
                for title, choice in choices.items()
            }
            trials = _try_all(
                model, quantizers, grids, curves, parts, calls, generate, exact, measure, progress
            )
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
    return report


@torch.no_grad()
def _try_all(
    model: nn.Module,
    quantizers: Mapping[str, ActivationQuantizer],
    grids: Mapping[str, Grid],
    choices: Mapping[str, Mapping[str, Candidate]],
    parts: Mapping[str, Concatenation],
    calls: list[Call],
    generate: Callable[[nn.Module], Tensor] | None,
    exact: Sequence[Tensor],
    measure: Measure,
    progress: bool,
) -> dict[str, float]:
    """Error of outputs or generated samples under each choice, with activations quantized and
    weights in float.
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

    if not exact:
        with observing(model, quantizers):
            exact = result()

    def error(choice: Mapping[str, Candidate]) -> float:
        with observing(model, quantizers, partial(round_by, choice)):
            return sample_error(result(), exact)

    shown = track(choices.items(), "trying choices", len(choices), progress)
    return {title: measure(title, partial(error, choice)) for title, choice in shown}
