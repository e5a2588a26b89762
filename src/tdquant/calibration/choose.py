"""Choosing among candidates: which may serve a layer, which is judged best, and how times are
weighted in a fit.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tdquant.calibration.candidates import HEADROOM, Candidate
from tdquant.calibration.concatenations import Concatenation
from tdquant.calibration.judge import Judgement
from tdquant.scales import SCALES
from tdquant.scales.table import wide_range

JUDGED = "judged layer by layer"
OTHER = "judged by other samples"
STATIC = "flat curves everywhere"
WHOLE = "no layer split"


def list_choices(
    wanted: Mapping[str, str],
    candidates: Mapping[str, list[Candidate]],
    judgement: Judgement,
    margin: float,
    parts: Mapping[str, Concatenation] | None = None,
    other: Judgement | None = None,
) -> dict[str, dict[str, int]]:
    """Choices for the whole model: the judge's own by the calls of calibration and by others, each
    estimator alone, static curves alone, and, where the judge splits layers, its own without
    splits. Curves with headroom have a chance by other calls alone.

    Arguments:
        wanted: Kind of scale that each layer is to get.
        candidates: Curves by path, the same estimators for every layer.
        judgement: Their output errors.
        margin: Share by which a temporal scale has to better a static one where the kind is
            ``"auto"``, and a split layer a whole one.
        parts: Concatenations by quantizer, of layers that can be split.
        other: Output errors of the candidates in calls that they were not made from.

    Returns:
        Title -> path -> index of the candidate; of a split layer, the paths are those of its
        parts.
    """
    parts = parts or {}
    found = dict.fromkeys(c.estimator for cs in candidates.values() for c in cs)
    estimators = [name for name in found if name != HEADROOM]

    def choose(
        allowed: set[str], kind: str | None = None, split: bool = True, by: Judgement = judgement
    ) -> dict[str, int]:
        choice: dict[str, int] = {}
        for n in wanted:
            places = [n, *(parts[n].names(n) if split and n in parts else ())]
            best = {
                p: best_candidate(kind or wanted[n], candidates[p], by.mean(p), margin, allowed)
                for p in places
            }
            whole = {n: best.pop(n)}
            better = bool(best) and by.together(best) < (1 - margin) * by.together(whole)
            choice |= best if better else whole
        return choice

    choices = {JUDGED: choose(set(estimators))}
    if other is not None:
        choices[OTHER] = choose(set(found), by=other)
    if len(estimators) > 1:
        choices |= {f"{name} everywhere": choose({name}) for name in estimators}
    if not all(map(is_static, wanted.values())):
        choices[STATIC] = choose(set(estimators), "static")
    if set(choices[JUDGED]) != set(wanted):
        choices[WHOLE] = choose(set(estimators), split=False)
    return choices


def is_static(kind: str) -> bool:
    """Whether scales of the kind are the same at every timestep."""
    return kind in SCALES and not SCALES[kind].timed


def best_candidate(
    wanted: str,
    candidates: list[Candidate],
    error: Tensor,
    margin: float,
    allowed: set[str] | None = None,
) -> int:
    """The index of the candidate with the least error.

    Arguments:
        wanted: Kind of scale that the layer is to get.
        candidates: Its curves.
        error: Their errors, ``(C,)``.
        margin: Share by which a temporal scale has to better a static one if ``"auto"`` is wanted.
        allowed: Estimators; None takes all.
    """

    def least(kind: str) -> int | None:
        indices = [
            i
            for i, c in enumerate(candidates)
            if c.kind == kind and (allowed is None or c.estimator in allowed)
        ]
        return min(indices, key=lambda i: float(error[i]), default=None)

    static, temporal = least("static"), least("temporal")
    assert static is not None
    if temporal is None or is_static(wanted):
        return static
    # A temporal scale can be flat, so that forcing the kind is never worse than a static one.
    needed = 1.0 - (margin if wanted == "auto" else 0.0)
    return temporal if error[temporal] < needed * error[static] else static


def static_error(candidates: list[Candidate], error: Tensor) -> float:
    """Output error of the layer's best static candidate."""
    return min(float(e) for c, e in zip(candidates, error, strict=True) if c.kind == "static")


def time_weights(
    judgement: Judgement, name: str, index: int, knots: Tensor, bins: int = 16
) -> Tensor:
    """How much the layer's error counts at each of ``knots`` (K,): its judged error, smoothed.

    A tenth of the mean is added, so that no time is free of its target.
    """
    times = judgement.times
    if wide_range(float(knots[0]), float(knots[-1])):
        knots, times = knots.log(), times.log()
    low, high = float(knots[0]), float(knots[-1])
    place = ((times - low) / (high - low) * bins).long().clamp(0, bins - 1)
    error = judgement.errors(name)[:, index]
    total = torch.zeros(bins, dtype=torch.float32).index_add_(0, place, error)
    count = torch.zeros(bins, dtype=torch.float32).index_add_(0, place, torch.ones_like(error))
    mean = torch.where(count > 0, total / count.clamp(min=1), total.sum() / count.sum())
    if not mean.any():
        return torch.ones_like(knots)
    centre = ((knots - low) / (high - low) * bins - 0.5).clamp(0, bins - 1)
    left = centre.floor().long().clamp(max=bins - 2)
    weight = torch.lerp(mean[left], mean[left + 1], centre - left)
    return weight + 0.1 * mean.mean()
