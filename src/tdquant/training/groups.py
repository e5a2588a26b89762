"""Parameter groups for an optimizer: weight decay must not reach scales.

Decay would pull a step towards zero, and the biases of a temporal scale's network towards
``softplus(0) = 0.69``, whatever the layer needs.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from tdquant.errors import TrainingError
from tdquant.quantizers import WeightQuantizer
from tdquant.scales import Scale, TemporalScale

RATES = ("equal", "published")
"""Presets of the rates of scales relative to the network's."""


def parameter_groups(
    model: nn.Module,
    rate: float = 1e-4,
    *,
    rates: str = "equal",
    step_rate: float | None = None,
    temporal_rate: float | None = None,
    decay: float = 0.01,
) -> list[dict[str, Any]]:
    """Groups for ``torch.optim.AdamW`` and its like; every trainable parameter is in exactly one.

    Arguments:
        model: A quantized model.
        rate: Learning rate of the network and of temporal scales' networks.
        rates: ``"equal"``: learned steps, of weights and activations, have ``rate`` too.
            ``"published"``: a tenth of it, and the biases of temporal scales decay.
        step_rate: Rate of learned steps, instead of the preset's.
        temporal_rate: Rate of temporal scales' networks, instead of the preset's.
        decay: Weight decay of the network and of the weight matrices of temporal scales. Steps
            have none.

    Returns:
        The groups ``network``, ``steps``, ``temporal`` and ``temporal_bias`` that are not empty.

    Raises:
        TrainingError: No such preset.
    """
    if rates not in RATES:
        raise TrainingError(f"rates={rates!r}", fix=f"one of {', '.join(RATES)}")
    published = rates == "published"
    if step_rate is None:
        step_rate = rate / 10 if published else rate
    if temporal_rate is None:
        temporal_rate = rate
    found: dict[str, list[nn.Parameter]] = {
        "network": [],
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
        elif isinstance(module, (Scale, WeightQuantizer)):
            put("steps", module.parameters())
    put("network", model.parameters())
    settings = {
        "network": (rate, decay),
        "steps": (step_rate, 0.0),
        "temporal": (temporal_rate, decay),
        "temporal_bias": (temporal_rate, decay if published else 0.0),
    }
    return [
        {"name": name, "params": found[name], "lr": lr, "weight_decay": weight_decay}
        for name, (lr, weight_decay) in settings.items()
        if found[name]
    ]
