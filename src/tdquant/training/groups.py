"""Parameter groups for an optimizer: weight decay must not reach scales.

Decay would pull a step towards zero, and the biases of a temporal scale's network towards
``softplus(0) = 0.69``, whatever the layer needs.
"""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from tdquant.errors import TrainingError
from tdquant.quantizers import WeightQuantizer
from tdquant.scales import Scale, TemporalScale

RATES = ("equal", "published")
"""Presets of the rates of scales relative to the network's."""

WHY_STEP_RATE = "it is a multiple of the network's rate"
STEP_RATE = "a number from 0, such as 10, or None for what rates= says"
"""What ``step_rate`` can be."""


def parameter_groups(
    model: nn.Module,
    rate: float = 1e-4,
    *,
    rates: str = "equal",
    step_rate: float | None = None,
    decay: float = 0.01,
) -> list[dict[str, Any]]:
    """Groups for ``torch.optim.AdamW`` and its like; every trainable parameter is in exactly one.

    Arguments:
        model: A quantized model.
        rate: Learning rate of the network.
        rates: ``"equal"``: learned steps, of weights and activations, have ``rate`` too.
            ``"published"``: a tenth of it, and the biases of temporal scales decay.
        step_rate: Rate of the activation scales of every kind, the networks of temporal ones
            among them, as a multiple of ``rate``, instead of the preset's; 0 leaves them as they
            are. AdamW moves a parameter by about its rate in each step, whatever the gradient: a
            step size of 0.5 needs another rate than the weights do. Steps of weights are as large
            as weights, and keep the preset's.
        decay: Weight decay of the network and of the weight matrices of temporal scales. Steps
            have none.

    Returns:
        The groups ``network``, ``weight_steps``, ``steps``, ``temporal`` and ``temporal_bias``
        that are not empty.

    Raises:
        TrainingError: No such preset, or a multiple that is negative or not finite.
    """
    if rates not in RATES:
        raise TrainingError(f"rates={rates!r}", fix=f"one of {', '.join(RATES)}")
    if step_rate is not None and not is_multiple(step_rate):
        raise TrainingError(
            f"step_rate={step_rate!r}",
            where="parameter_groups",
            why=WHY_STEP_RATE,
            fix=STEP_RATE,
        )
    published = rates == "published"
    preset = rate / 10 if published else rate
    steps, networks = (preset, rate) if step_rate is None else (step_rate * rate,) * 2
    found: dict[str, list[nn.Parameter]] = {
        "network": [],
        "weight_steps": [],
        "steps": [],
        "temporal": [],
        "temporal_bias": [],
    }
    placed: set[int] = set()

    def put(group: str, parameters: Any) -> None:
        for parameter in parameters:
            if parameter.requires_grad and id(parameter) not in placed:
                placed.add(id(parameter))
                found[group].append(parameter)

    for module in model.modules():
        if isinstance(module, TemporalScale):
            named = list(module.named_parameters())
            put("temporal", [p for n, p in named if not n.endswith("bias")])
            put("temporal_bias", [p for n, p in named if n.endswith("bias")])
        elif isinstance(module, Scale):
            put("steps", module.parameters())
        elif isinstance(module, WeightQuantizer):
            put("weight_steps", module.parameters())
    put("network", model.parameters())
    settings = {
        "network": (rate, decay),
        "weight_steps": (preset, 0.0),
        "steps": (steps, 0.0),
        "temporal": (networks, decay),
        "temporal_bias": (networks, decay if published else 0.0),
    }
    return [
        {"name": name, "params": found[name], "lr": lr, "weight_decay": weight_decay}
        for name, (lr, weight_decay) in settings.items()
        if found[name]
    ]


def is_multiple(value: object) -> bool:
    """Whether a value can be ``step_rate``."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value) and value >= 0  # type: ignore[arg-type, operator]
