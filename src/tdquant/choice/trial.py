"""Trials: the error of the whole model, by which choices are confirmed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.calibration.observe import Observations
from tdquant.calibration.report import RemedyTrial
from tdquant.calibration.sample_error import sample_error
from tdquant.calls.call import Call, outputs, tensors_in
from tdquant.calls.observing import in_float
from tdquant.calls.rollout import Rollout
from tdquant.choice.trial_log import TrialLog
from tdquant.errors import CalibrationError
from tdquant.files.digests import hash_tensors
from tdquant.support.restoring import evaluating, keeping_random_state

MARGIN = 0.05
"""Share by which a remedy has to lower the error: what a few samples show by chance is less."""

WORK = {"cpu": 3e12}
"""Multiply-accumulates of a trial by the type of the device: a minute or two of two cores. Models
whose trajectories take more are tried on fewer samples.
"""
MORE_WORK = 1e15
"""Those of other devices."""

LEAST_SAMPLES = 2

FRESH = 16
"""Calls along trajectories that nothing was fitted to, to judge by."""

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
        log: Knows errors that were measured before.
        progress: Draw bars.

    Attributes:
        basis: Which of the three it is.
        exact: What the float model gives; empty until it was recorded.
        fresh: Some calls of it along trajectories that nothing was fitted to, evenly over them;
            empty where there are none.
        log: The errors.
        generate: What draws the samples of the first two; None of the third.
    """

    def __init__(
        self,
        observations: Observations,
        generate: Generate | None,
        log: TrialLog | None = None,
        progress: bool = False,
    ) -> None:
        self._calls = observations.calls
        self._rollouts: list[Rollout] = []
        self.generate: Generate | None = None
        if generate is not None:
            self.basis, self.generate = SAMPLES, partial(_draw, generate)
        elif observations.rollouts:
            self.basis, self.generate = TRAJECTORIES, self._follow
            redrawn = [rollout.redrawn(i) for i, rollout in enumerate(observations.rollouts)]
            self._rollouts = _affordable(redrawn, sum(observations.macs.values()))
        else:
            self.basis = CALLS
        self._progress, self._label = progress, ""
        self.log = log or TrialLog(None)
        self.exact: list[Tensor] = []
        self.fresh: list[Call] = []
        self._last: float | None = None  # error of the model as it is

    def record(self, model: nn.Module, key: str = "") -> None:
        """Keeps what the model gives in float, as long as its weights are the float ones.

        Arguments:
            model: The model.
            key: Everything else that the errors to be measured depend on.
        """
        seen = list[Call]()
        with in_float(model), self._under("following the float model"):
            self.exact = self._results(model, seen.append)
        self.fresh = thinned(seen, FRESH)
        told = [*self.exact, *tensors_in(self._calls)]
        digest = hash_tensors({str(i): tensor for i, tensor in enumerate(told)})
        digest.update(key.encode())
        self.log.open(digest.hexdigest())

    @property
    def samples(self) -> Tensor | None:
        """What ``generate`` gives for the float model."""
        return self.exact[0] if self.generate is not None and self.exact else None

    def error(self, model: nn.Module, what: str) -> float:
        """The error of a model as it is (``tdquant.calibration.sample_error``).

        Arguments:
            model: The model.
            what: What is tried, in a few words.
        """
        with self._under(f"trying {what}"):
            return self.log.measure(what, lambda: sample_error(self._results(model), self.exact))

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
        before = self.error(model, f"no {name}") if self._last is None else self._last
        change(True)
        after = self.error(model, name)
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

    def _follow(self, model: nn.Module, see: Callable[[Call], None] | None = None) -> Tensor:
        ends = [rollout.run(model, self._label, see).flatten(1) for rollout in self._rollouts]
        return torch.cat([end for end in ends if end.shape[1] == ends[0].shape[1]])

    def _results(
        self, model: nn.Module, see: Callable[[Call], None] | None = None
    ) -> list[Tensor]:
        with torch.no_grad(), evaluating(model):
            if self._rollouts:
                return [self._follow(model, see)]
            return outputs(model, self._calls) if self.generate is None else [self.generate(model)]


def _draw(generate: Generate, model: nn.Module) -> Tensor:
    """What ``generate`` gives for a model. What it draws without a generator is the same in every
    trial, which would otherwise compare noise; the caller's random state stays as it is.
    """
    with keeping_random_state():
        torch.manual_seed(0)
        samples: Any = generate(model)
    if not isinstance(samples, Tensor) or samples.ndim < 2:
        raise CalibrationError(
            f"generate gives {_told(samples)}",
            where="calibrate(generate=)",
            fix="return a tensor of samples (N, ...); a pipeline makes one with "
            'output_type="pt", its images[0] is one sample',
        )
    return samples


def _told(samples: Any) -> str:
    if isinstance(samples, Tensor):
        return f"a tensor of shape {tuple(samples.shape)}"
    return f"a value of type {type(samples).__name__}"


def _affordable(rollouts: list[Rollout], macs: int) -> list[Rollout]:
    """The trajectories of as many samples as a trial has time for.

    Arguments:
        rollouts: All that were found, at least one.
        macs: Multiply-accumulates of a call for one sample.
    """
    work = WORK.get(rollouts[0].start.device.type, MORE_WORK)
    left = max(int(work / max(macs * max(len(r.steps) for r in rollouts), 1)), LEAST_SAMPLES)
    kept = []
    for rollout in rollouts:
        if left > 0:
            kept.append(rollout.first(left))
            left -= rollout.samples
    return kept


def thinned(calls: list[Call], count: int) -> list[Call]:
    """At most so many of the calls, evenly."""
    count = min(count, len(calls))
    return [calls[i * len(calls) // count] for i in range(count)]
