"""From chosen curves to scales: which kind an activation gets, and scales fitted to the curves."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from tdquant.calibration.candidates import Candidate
from tdquant.calibration.choose import is_static, static_error, time_weights
from tdquant.calibration.judge import Judgement
from tdquant.calibration.report import LayerChoice
from tdquant.calibration.time_histograms import TimeHistograms
from tdquant.errors import CalibrationError
from tdquant.families.roles import Roles
from tdquant.layers.base import INPUT
from tdquant.quantizers import ActivationQuantizer
from tdquant.scales import SCALES, Curves, Scale, StaticScale, TemporalScale
from tdquant.scales.base import steps_at
from tdquant.scales.table import training_timesteps


def wanted_kind(
    name: str, quantizer: ActivationQuantizer, seen: TimeHistograms, roles: Roles | None
) -> str:
    """The kind of scale that an activation gets: static if it is the same in every call, or if its
    samples were at different times and cannot be told apart.

    Raises:
        CalibrationError: They cannot, and the recipe wants a scale that follows time.
    """
    kind = quantizer.wanted
    if roles is not None and name.removesuffix(INPUT) in roles.constant:
        return kind if is_static(kind) else StaticScale.kind
    if seen.mixed and kind != "auto" and not is_static(kind):
        raise CalibrationError(
            "calls at mixed times for a layer whose samples cannot be told apart",
            where=name,
            why=f"its scale is to follow time ({kind}), and which of its rows were at which time "
            "is not known",
            fix="calls whose samples share their time, or a static scale for this layer: "
            "Recipe(overrides=...)",
        )
    return StaticScale.kind if seen.mixed else kind


def make_scales(
    quantizers: Mapping[str, ActivationQuantizer],
    kinds: Mapping[str, str],
    candidates: Mapping[str, list[Candidate]],
    choice: Mapping[str, int],
    judgement: Judgement,
    span: tuple[float, float],
    seed: int,
) -> tuple[dict[str, Scale], list[LayerChoice]]:
    """Scales for the chosen curves, and the report on them. Those of one type and options are
    fitted together.
    """
    knots = training_timesteps(*span)
    curves = {n: candidates[n][i] for n, i in choice.items()}
    groups: dict[tuple[type[Scale], str], list[str]] = {}
    for n, curve in curves.items():
        q = quantizers[n]
        auto = StaticScale if curve.kind == "static" else TemporalScale
        kind = auto if kinds[n] == "auto" else SCALES[kinds[n]]
        groups.setdefault((kind, repr(sorted(q.options.items()))), []).append(n)
    made: dict[str, Scale] = {}
    misfits: dict[str, float] = {}
    for (kind, _), names in groups.items():
        codes = [curves[n].grid for n in names]
        steps = [curves[n].curve(knots, knots, curves[n].grid).expand(len(knots)) for n in names]
        weights = [time_weights(judgement, n, choice[n], knots) for n in names]
        wanted = Curves(knots, torch.stack(steps), torch.stack(weights), codes, span, seed)
        scales = kind.from_curves(wanted, quantizers[names[0]].options)
        made |= zip(names, scales, strict=True)
        if kind.timed:
            with torch.no_grad():
                reached = torch.stack(steps_at(scales, knots, codes))
            worst = (reached.log() - wanted.steps.log()).abs().amax(1)
            misfits |= zip(names, worst.tolist(), strict=True)
    layers = []
    for n, curve in curves.items():
        errors, table = judgement.mean(n), curve.curve.table
        layers.append(
            LayerChoice(
                path=n,
                kind=made[n].kind,
                estimator=curve.estimator,
                error=float(errors[choice[n]]),
                static_error=static_error(candidates[n], errors),
                spread=float(table.max() / table.min()),
                fit_error=misfits.get(n, 0.0),
            )
        )
    return made, layers
