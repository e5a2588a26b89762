"""Trials: the error of the whole model, by which choices are confirmed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tdquant.calibration.observe import Observations
from tdquant.calibration.report import RemedyTrial
from tdquant.calibration.sample_error import sample_error
from tdquant.calls.call import outputs
from tdquant.calls.observing import in_float
from tdquant.support.restoring import evaluating

MARGIN = 0.05
"""Share by which a remedy has to lower the error: what a few samples show by chance is less."""

Generate = Callable[[nn.Module], Tensor]

SAMPLES, TRAJECTORIES, CALLS = "generated samples", "recorded trajectories", "single calls"


class Trial:
    """Compares a model with what it was in float: by samples that ``generate`` draws, else at the
    end of trajectories of the samplers that were found in the calls, from noise that nothing was
    fitted to (``tdquant.calls.rollout``), else by the outputs of single calls, where errors cannot
    add up over the steps.

    Arguments:
        observations: Calls and trajectories.
        generate: Samples with the model that it is given, from fixed noise.
        progress: Draw bars.

    Attributes:
        basis: Which of the three it is.
        generate: What draws the samples of the first two; None of the third.
    """

    def __init__(
        self, observations: Observations, generate: Generate | None, progress: bool = False
    ) -> None:
        self._calls = observations.calls
        self._rollouts = [rollout.redrawn(i) for i, rollout in enumerate(observations.rollouts)]
        self.generate: Generate | None = None
        if generate is not None:
            self.basis, self.generate = SAMPLES, generate
        elif self._rollouts:
            self.basis, self.generate = TRAJECTORIES, self._follow
        else:
            self.basis = CALLS
        self._progress, self._label = progress, ""
        self._exact: list[Tensor] = []
        self._last: float | None = None  # error of the model as it is

    def record(self, model: nn.Module) -> None:
        """Keeps what the model gives in float, as long as its weights are the float ones."""
        with in_float(model), self._under("following the float model"):
            self._exact = self._results(model)

    @property
    def samples(self) -> Tensor | None:
        """What ``generate`` gives for the float model."""
        return self._exact[0] if self.generate is not None and self._exact else None

    def error(self, model: nn.Module) -> float:
        """The error of a model as it is (``tdquant.calibration.sample_error``)."""
        return sample_error(self._results(model), self._exact)

    def confirm(
        self,
        model: nn.Module,
        name: str,
        what: str,
        change: Callable[[bool], None],
        margin: float = MARGIN,
    ) -> RemedyTrial:
        """Applies a remedy, and takes it back unless the error falls.

        Arguments:
            model: The model.
            name: The remedy's name.
            what: Where it is applied, in a few words.
            change: Applies it, with True, or takes it back.
            margin: Share by which the error has to fall.
        """
        with self._under(f"trying {name}"):
            before = self.error(model) if self._last is None else self._last
            change(True)
            after = self.error(model)
        kept = after < (1 - margin) * before
        if not kept:
            change(False)
        self._last = after if kept else before
        return RemedyTrial(name, kept, before, after, what)

    @contextmanager
    def _under(self, label: str) -> Iterator[None]:
        """Labels the bars of what is run in the context."""
        self._label = label if self._progress else ""
        try:
            yield
        finally:
            self._label = ""

    def _follow(self, model: nn.Module) -> Tensor:
        ends = [rollout.run(model, self._label).flatten(1) for rollout in self._rollouts]
        return torch.cat([end for end in ends if end.shape[1] == ends[0].shape[1]])

    def _results(self, model: nn.Module) -> list[Tensor]:
        with torch.no_grad(), evaluating(model):
            return outputs(model, self._calls) if self.generate is None else [self.generate(model)]
