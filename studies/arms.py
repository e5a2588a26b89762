"""Arms of ``alternatives``: what one would do otherwise, each as a model that is calibrated.

An arm is a way to quantize without time; each has a form with ``s(t)``, everything else as it is.
Weights, calls and observations are shared by the arms of one model and seed.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

import tdquant as tdq
from protocol import Subject
from tdquant.calibration import Calibration, Observations
from tdquant.calibration.candidates import make_candidates
from tdquant.layers import quantized_layers
from tdquant.layers.base import INPUT
from tdquant.layers.linear import QuantLinear
from tdquant.numerics.fake_quantize import FLOOR
from tdquant.numerics.grid import Grid
from tdquant.quantizers import ActivationQuantizer, activation_quantizers
from tdquant.recipe import FLOAT, REMEDIES

WITHOUT, TIME, TABLE = "without", "s(t)", "20 knots"
KNOTS = 20
SCALES = {WITHOUT: "static", TIME: "temporal", TABLE: "table"}


@dataclass(frozen=True)
class Arm:
    """One alternative.

    Attributes:
        times: Its forms.
        estimator: Of the steps.
        split: Layers behind concatenations are split where the judge says so.
        remedies: Of the recipe.
        balanced: Channels are divided as SmoothQuant does (``tdq.balance``, alpha 1/2) before.
        top: How inputs are ranked, how many of the first get more bits, and how many bits.
        auto: ``s(t)`` is ``scale="auto"``: where the judge says so.
        tokens: Linear layers have a step for each token.
        core: Among the arms that costly models have.
    """

    times: tuple[str, ...] = (WITHOUT, TIME)
    estimator: str = "mse"
    split: bool = False
    remedies: tuple[str, ...] = ()
    balanced: bool = False
    top: tuple[str, int, int] | None = None
    auto: bool = False
    tokens: bool = False
    core: bool = False

    @property
    def dynamic(self) -> bool:
        """Whether steps come from each input, so that time has no part."""
        return self.times == (WITHOUT,)

    def scale(self, time: str) -> str:
        """The recipe's kind of scale."""
        if self.dynamic:
            return "dynamic"
        return "auto" if self.auto and time == TIME else SCALES[time]


STATIC, DEFAULT, TOKENS = "static", "tdquant's default", "input-dynamic, per token"
ARMS = {
    STATIC: Arm((WITHOUT, TIME, TABLE), core=True),
    DEFAULT: Arm(estimator="auto", split=True, remedies=REMEDIES, auto=True, core=True),
    "input-dynamic, per sample": Arm((WITHOUT,), core=True),
    TOKENS: Arm((WITHOUT,), tokens=True, core=True),
    "2 most moving in float": Arm(top=("moving", 2, FLOAT), core=True),
    "2 most moving at 8 bits": Arm(top=("moving", 2, 8), core=True),
    "split shortcuts": Arm(split=True, core=True),
    "4 most moving in float": Arm(top=("moving", 4, FLOAT)),
    "4 most moving at 8 bits": Arm(top=("moving", 4, 8)),
    "1 most moving in float": Arm(top=("moving", 1, FLOAT)),
    "1 most moving at 8 bits": Arm(top=("moving", 1, 8)),
    "2 most costly in float": Arm(top=("costly", 2, FLOAT)),
    "2 most costly at 8 bits": Arm(top=("costly", 2, 8)),
    "channel factors": Arm(remedies=("factors",)),
    "SmoothQuant's factors": Arm(balanced=True),
    "judged scales": Arm(estimator="auto", split=True, auto=True),
}
"""Every arm by name; those that costly models have come first."""


def recipe_bits(bits: str) -> tuple[int, int]:
    """Bits of weights and inputs of words such as ``"W8A5"``; those of ``"A5"`` leave weights in
    float.
    """
    weights, inputs = bits.removeprefix("W").split("A") if "W" in bits else (FLOAT, bits[1:])
    return int(weights), int(inputs)


class TokenQuantizer(ActivationQuantizer):
    """The input-dynamic step of each row: extremes over the last dimension, shape ``(*, 1)``."""

    def step(self, x: Tensor) -> Tensor:
        low, high = x.float().aminmax(dim=-1, keepdim=True)
        step = high / max(self.grid.high, 1)
        if self.grid.low < 0:
            step = step.maximum(low / self.grid.low)
        return step.clamp(min=FLOOR)


@dataclass
class Calibrations:
    """Calls and observations of one model and seed, and the arms made from them.

    Attributes:
        subject: The model.
        settings: ``trajectories`` and ``calls``.
        seed: Of the noise of the trajectories, and of all choices.
    """

    subject: Subject
    settings: dict[str, Any]
    seed: int
    _seen: dict[bool, tuple[nn.Module, Observations]] = field(default_factory=dict)
    _costs: dict[str, dict[str, float]] = field(default_factory=dict)

    @cached_property
    def calls(self) -> list[Any]:
        return list(
            tdq.trajectories(
                self.subject.pipe, self.settings["trajectories"], batch=16,
                steps=self.settings["calibration_steps"], seed=1000 + self.seed, progress=False,
            )
        )  # fmt: skip

    def observed(self, balanced: bool = False) -> tuple[nn.Module, Observations]:
        """The float model, its channels divided or not, and what was seen of it."""
        if balanced not in self._seen:
            model = copy.deepcopy(self.subject.pipe.unet)
            if balanced:
                tdq.balance(model, self.calls, alpha=0.5, progress=False)
            probe = tdq.quantize(copy.deepcopy(model), tdq.Recipe(remedies=()))
            seen = tdq.observe(
                probe, self.calls, calls=self.settings["calls"], seed=self.seed, progress=False
            )
            self._seen[balanced] = model, seen
        return self._seen[balanced]

    def frozen(self, bits: str, name: str, time: str) -> tuple[nn.Module, dict[str, Any]]:
        """The model of an arm, and what is to be told of it: which inputs have more bits, their
        share of the multiply-accumulates, remedies that stayed, and the share of inputs whose
        steps follow time: ``calibrate`` tries flat curves too, whatever the kind of scale.
        """
        arm = ARMS[name]
        weights, inputs = recipe_bits(bits)
        wider = self.ranked(arm.top[0], bits)[: arm.top[1]] if arm.top else []
        recipe = tdq.Recipe(
            weights, inputs, arm.scale(time), remedies=arm.remedies,
            overrides={path: {"activations": arm.top[2]} for path in wider if arm.top},
        )  # fmt: skip
        whole, seen = self.observed(arm.balanced)
        model = tdq.quantize(copy.deepcopy(whole), recipe)
        tdq.calibrate(
            model, seen, estimator=arm.estimator, split=arm.split, seed=self.seed, progress=False
        )
        report = model.tdq.calibration
        wider += [one.path for one in report.protected]
        about = {
            "wider": ", ".join(wider),
            "share": sum(seen.macs[path] for path in wider) / sum(seen.macs.values()),
            "kept": ", ".join(one.name for one in report.remedies if one.kept),
            "moving": _moving(report),
        }
        knots = self._knots(seen) if time == TABLE else None
        frozen = tdq.freeze(model, timesteps=knots)
        if arm.tokens:
            step_by_token(frozen)
        return frozen, about

    def ranked(self, rule: str, bits: str) -> list[str]:
        """Layers by their inputs, the first ones first, by calibration alone.

        - ``"moving"``: the largest over the least step over time, of the step of least squared
          error at 8 bits.
        - ``"costly"``: the error at the model's output that the best static step of least squared
          error causes at these bits.
        """
        seen = self.observed()[1]
        if rule == "costly":
            found = self._cost(bits)
        else:
            found = {n: movement(seen, n) for n in seen.seen if n.endswith(INPUT)}
        whole = [n for n in found if n.removesuffix(INPUT) in seen.macs]
        ordered = sorted(whole, key=lambda n: (-found[n], n))
        return [n.removesuffix(INPUT) for n in ordered]

    def _cost(self, bits: str) -> dict[str, float]:
        if bits not in self._costs:
            whole, seen = self.observed()
            recipe = tdq.Recipe(*recipe_bits(bits), "static", remedies=())
            model = tdq.quantize(copy.deepcopy(whole), recipe)
            tdq.calibrate(
                model, seen, estimator="mse", split=False, seed=self.seed, progress=False
            )
            layers = model.tdq.calibration.layers
            self._costs[bits] = {one.path: one.static_error for one in layers}
        return self._costs[bits]

    def _knots(self, seen: Observations) -> Tensor:
        """Times of the table: as many of those that were seen, evenly by their order."""
        times = max((one.times() for one in seen.seen.values()), key=len)
        return times[torch.linspace(0, len(times) - 1, min(KNOTS, len(times))).round().long()]


def _moving(report: Calibration) -> float:
    """Share of scales whose curves are not flat."""
    curves = [one.spread > 1 for one in report.layers]
    return round(sum(curves) / len(curves), 4) if curves else 0.0


def movement(seen: Observations, name: str) -> float:
    """The largest over the least step of an input over time."""
    curve = make_candidates(seen.seen[name], Grid.signed(8), "mse")[0].curve.table
    return float(curve.max() / curve.min())


def step_by_token(model: nn.Module) -> None:
    """Gives the inputs of linear layers of a frozen model a step for each row, in place."""
    inputs = dict(activation_quantizers(model))
    for path, layer in quantized_layers(model):
        old = inputs.get(path + INPUT)
        if isinstance(layer, QuantLinear) and old is not None:
            layer.input_quantizer = TokenQuantizer(old.grid, old.scale, old.clock, old.symmetric)
