r"""Judging scales by their error at the model's output, every candidate of every layer at once.

Local squared error does not distinguish clipping, whose errors agree in sign and add up, from
rounding, whose errors cancel; the error of a projection of the output does: see
``tdquant.calibration.projections``. Errors of different times are added by the weights of
``tdquant.calibration.timing``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from tdquant.calibration.candidates import Candidate
from tdquant.calibration.concatenations import Concatenation
from tdquant.calibration.projections import Changes, Effects, Projection, project
from tdquant.calibration.timing import TimeBins
from tdquant.calls.call import Call
from tdquant.quantizers import ActivationQuantizer


@dataclass(frozen=True)
class Judgement:
    """Effects of the candidates on the output, by layer.

    Attributes:
        times: Time of every sample that was judged, ``(S,)``.
        effects: path -> ``r^T J dx / sqrt(elements of the output)`` of each of its C candidates
            alone, ``(S, C)``: their squares are squared output errors per element, and those of
            simultaneous roundings add up before they are squared.
        weights: How much each sample counts, ``(S,)``; all alike if None.
        local: Why the effects are those on the layer's own input, or empty.
    """

    times: Tensor
    effects: dict[str, Tensor]
    weights: Tensor | None = None
    local: str = ""

    def balanced(self, candidates: dict[str, list[Candidate]]) -> Judgement:
        """The judgement with every time weighted by the joint error of the best static scales
        there. That error as a whole stays the same.

        Arguments:
            candidates: The candidates that were judged, of the layers that count.
        """
        total = torch.zeros(len(self.times), dtype=torch.float32)
        for name, found in candidates.items():
            static = [i for i, c in enumerate(found) if c.kind == "static"]
            errors = self.effects[name][:, static].square()
            total += errors[:, errors.mean(0).argmin()]
        return self.balanced_by(total)

    def balanced_by(self, total: Tensor) -> Judgement:
        """The judgement with every time weighted by the mean there of an error of each sample,
        ``(S,)``.
        """
        bins = TimeBins(self.times)
        bins.balance(bins.sums(self.times, total))
        mean = float(total.mean())
        return replace(self, weights=bins.weight(self.times) * mean if mean else None)

    def balanced_by_first(self) -> Judgement:
        """The judgement with every time weighted by the joint error there of each layer's first
        candidate, which stands for the layer as it is.
        """
        errors = (effects[:, 0].square() for effects in self.effects.values())
        return self.balanced_by(sum(errors))  # type: ignore[arg-type]

    def only(self, columns: Mapping[str, slice]) -> Judgement:
        """The judgement of some of the candidates of some layers."""
        effects = {name: self.effects[name][:, part] for name, part in columns.items()}
        return replace(self, effects=effects)

    def errors(self, name: str) -> Tensor:
        """Weighted squared output error of each candidate of a layer by sample, ``(S, C)``."""
        squares = self.effects[name].square()
        return squares if self.weights is None else squares * self.weights[:, None]

    def mean(self, name: str) -> Tensor:
        """Mean error of each candidate of a layer, ``(C,)``."""
        return self.errors(name).mean(0)

    def together(self, choice: dict[str, int]) -> float:
        """Mean error of one candidate of each of several quantizers at once."""
        added: Tensor = sum(self.effects[n][:, i] for n, i in choice.items())  # type: ignore[assignment]
        squares = added.square()
        return float((squares if self.weights is None else squares * self.weights).mean())


def judge(
    model: nn.Module,
    quantizers: Mapping[str, ActivationQuantizer],
    candidates: Mapping[str, list[Candidate]],
    calls: Iterable[Call],
    seed: int = 0,
    parts: Mapping[str, Concatenation] | None = None,
) -> Judgement:
    """Measures what each candidate of each layer does to the output alone.

    Arguments:
        model: The quantized model; it runs in float.
        quantizers: Its activation quantizers by path.
        candidates: Curves by path.
        calls: Calls of the model.
        seed: Seed of the projections.
        parts: Concatenations by the quantizer that they reach; their parts are judged too, under
            their names.

    Raises:
        CalibrationError: There are no calls.
    """
    counts = {name: len(found) for name, found in candidates.items()}

    def changes(projection: Projection) -> Iterable[Changes]:
        return projection.input_changes(candidates, parts or {})

    return judge_changes(model, quantizers, counts, changes, calls, seed)


def judge_changes(
    model: nn.Module,
    quantizers: Mapping[str, ActivationQuantizer],
    counts: Mapping[str, int],
    changes: Callable[[Projection], Iterable[Changes]],
    calls: Iterable[Call],
    seed: int = 0,
) -> Judgement:
    """Measures what changes of inputs do to the output, each alone.

    Arguments:
        model: The quantized model; it runs in float.
        quantizers: Those of its activation quantizers whose inputs are changed, by path.
        counts: Place -> number of changes there.
        changes: Gives the changes of a call.
        calls: Calls of the model.
        seed: Seed of the projections.

    Raises:
        CalibrationError: There are no calls.
    """
    times, local = list[Tensor](), ""
    effects = Effects(counts)
    for projection in project(model, quantizers, calls, seed):
        effects.add(projection, changes(projection))
        times.append(projection.times)
        local = projection.local
    return Judgement(torch.cat(times), effects.table(), local=local)
