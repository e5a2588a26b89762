"""Laws of scales that are trained alike: their arms, and models at the start of each.

Every law has the same starts: steps of LSQ's own rule, ``2 E|x| / sqrt(Q)`` with Q the highest
code, equal at all times, or what calibration judges best at the model's output. Weights start at
the least squared error and learn at the network's rate in every arm.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import nn

import tdquant as tdq
from halving import beside
from ledger import grid
from protocol import Remembered, Subject, last_losses
from tdquant.calibration import Observations
from tdquant.calibration.histogram import pooled
from tdquant.quantizers import ActivationQuantizer, activation_quantizers
from tdquant.scales import StaticLogScale, StaticScale, TableScale, TemporalScale
from tdquant.training import Optimization

LAWS = {"LSQ": ("raw", "log"), "TDQ": ("network",), "S1000": ("table",)}
"""What learns, by law, and forms of its step."""

KINDS = {"LSQ": "static", "TDQ": "temporal", "S1000": "table"}
"""Kinds of scale, as recipes have them; a static step becomes one by its logarithm later."""

FLAT, FITTED = "LSQ's own start", "judged start"
WHOLE, SPLIT = "whole", "split"
STARTS, LAYERS = (FLAT, FITTED), (WHOLE, SPLIT)
RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
STEP_RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1e3, 3e3, 1e4)
"""Ladders: rates of the network, and those of the scales over them."""

FIRST_RATE, FIRST_STEP_RATES = 1e-3, (1.0, 3.0, 10.0, 30.0)
MOST = 1200
"""Answers that a teacher keeps: those of longer runs are few runs' and large."""


@dataclass(frozen=True)
class Arm:
    """A way to train.

    Attributes:
        law: What the scales are, a key of LAWS.
        form: Of their steps.
        start: FLAT or FITTED.
        layers: SPLIT: layers behind concatenations are split where calibration judges so.
        rate: Of the network.
        step_rate: Of the scales, over it.
    """

    law: str
    form: str
    start: str
    layers: str
    rate: float
    step_rate: float

    def words(self) -> dict[str, Any]:
        """Its part of a run's key."""
        return asdict(self)

    @property
    def inside(self) -> bool:
        """Whether both ladders go on on both sides of its rates."""
        return all(
            len(beside(value, ladder)) == 2
            for value, ladder in ((self.rate, RATES), (self.step_rate, STEP_RATES))
        )

    def neighbours(self) -> Iterator[Arm]:
        """Arms that differ in one thing: the next rates of the ladders, another form, start or
        layers. The network's rate changes with that of the scales and, which is one thing too,
        without.
        """
        for rate in beside(self.rate, RATES):
            yield replace(self, rate=rate)
            for step_rate in beside(self.step_rate, STEP_RATES):  # factors of three in both
                if (step_rate > self.step_rate) == (rate < self.rate):
                    yield replace(self, rate=rate, step_rate=step_rate)
        for step_rate in beside(self.step_rate, STEP_RATES):
            yield replace(self, step_rate=step_rate)
        others = {"form": LAWS[self.law], "start": STARTS, "layers": LAYERS}
        for name, values in others.items():
            for value in values:
                if value != getattr(self, name):
                    yield replace(self, **{name: value})


def arms_of(law: str) -> list[Arm]:
    """The arms from which the search of a law starts."""
    axes = grid(
        form=LAWS[law], start=STARTS, layers=LAYERS, rate=[FIRST_RATE],
        step_rate=FIRST_STEP_RATES,
    )  # fmt: skip
    return [Arm(law, **words) for words in axes]


@dataclass
class Learners:
    """Models of one subject and width, calibrated for arms and seeds, and trained.

    Attributes:
        subject: The float model, its data and judgement.
        bits: Of weights and activations.
        settings: ``batch``, ``calibration``, ``distill`` and ``ema``.
    """

    subject: Subject
    bits: tuple[int, int]
    settings: dict[str, Any]
    _seen: dict[int, Observations] = field(default_factory=dict)
    _ready: dict[tuple[Any, ...], nn.Module] = field(default_factory=dict)

    def calibrated(self, arm: Arm, seed: int) -> nn.Module:
        """A model of its own at the start of an arm."""
        seen = self._observed(seed)
        key = seed, arm.law, arm.layers
        if key not in self._ready:
            model = self.subject.quantized(tdq.Recipe(*self.bits, KINDS[arm.law], remedies=()))
            tdq.calibrate(model, seen, split=arm.layers == SPLIT, seed=seed, progress=False)
            self._ready[key] = model
        model = copy.deepcopy(self._ready[key])
        if arm.form == "log":
            learn_logarithms(model)
        if arm.start == FLAT:
            start_flat(model, seen)
        return model

    def _observed(self, seed: int) -> Observations:
        """What the activations of the float model are on noised training items."""
        if seed not in self._seen:
            s = self.settings
            calls = list(self.subject.noised(s["batch"], s["calibration"], seed))
            probe = self.subject.quantized(tdq.Recipe(remedies=()))
            self._seen[seed] = tdq.observe(
                probe, calls, calls=s["calibration"], seed=seed, progress=False
            )
        return self._seen[seed]

    def trained(self, arm: Arm, steps: int, seed: int) -> tuple[nn.Module | None, float]:
        """The frozen moving average, and the loss of the last fifth of the steps: None and
        infinity if training diverged.
        """
        s, model = self.settings, self.calibrated(arm, seed)
        how = Optimization(step_rate=arm.step_rate, schedule="cosine", ema=s["ema"])
        try:
            done = tdq.train(
                model, self.subject.data, self.subject.pipe.scheduler, steps=steps,
                batch=s["batch"], rate=arm.rate, optimization=how, teacher=self.teacher(),
                distill=s["distill"], seed=seed, progress=False,
            ).tdq.training  # fmt: skip
        except tdq.errors.TrainingError:
            return None, math.inf
        return tdq.freeze(done.average), last_losses(done)

    def teacher(self) -> Remembered:
        """The float model, which keeps its first answers."""
        self.subject.teacher.most = MOST
        return self.subject.teacher


def learn_logarithms(model: nn.Module) -> None:
    """Lets static steps learn by their logarithms, in place."""
    for _, quantizer in activation_quantizers(model):
        if type(quantizer.scale) is StaticScale:
            quantizer.scale = StaticLogScale(quantizer.scale.step.item())


@torch.no_grad()
def start_flat(model: nn.Module, seen: Observations) -> None:
    """Gives every activation scale that learns LSQ's own first step at all times, in place."""
    for name, quantizer in activation_quantizers(model):
        values = pooled(seen.seen[name].histograms())
        weights = values.counts.double()
        size = float((values.centres().double().abs() * weights).sum() / weights.sum())
        put_step(quantizer, 2 * size / max(quantizer.grid.high, 1) ** 0.5)


def put_step(quantizer: ActivationQuantizer, step: float) -> None:
    """Sets a scale to one step at all times."""
    scale = quantizer.scale
    if isinstance(scale, TemporalScale):
        scale.reset(step)
    elif isinstance(scale, TableScale):
        scale.table.fill_(step)
    elif isinstance(scale, StaticScale | StaticLogScale):
        quantizer.scale = type(scale)(step)
    else:
        raise TypeError(f"no step can be put into {type(scale).__name__}")
