"""Parameter groups for an optimizer: weight decay must not reach scales.

Decay would pull a step towards zero, and the biases of a temporal scale's network towards
``softplus(0) = 0.69``, whatever the layer needs.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from tdquant.quantizers import WeightQuantizer
from tdquant.scales import Scale, TemporalScale


def parameter_groups(
    model: nn.Module,
    rate: float = 1e-4,
    *,
    step_rate: float | None = None,
    temporal_rate: float | None = None,
    decay: float = 0.01,
) -> list[dict[str, Any]]:
    """Groups for ``torch.optim.AdamW`` and its like; every trainable parameter is in exactly one.

    Arguments:
        model: A quantized model.
        rate: Learning rate of the network.
        step_rate: That of learned steps, of weights and activations; ``rate`` if None. The
            published setting is a tenth of it.
        temporal_rate: That of temporal scales' networks; ``rate`` if None.
        decay: Weight decay of the network and of the weight matrices of temporal scales; biases of
            temporal scales and steps have none.

    Returns:
        The groups ``network``, ``steps``, ``temporal`` and ``temporal_bias`` that are not empty.
    """
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
    rates = {
        "network": (rate, decay),
        "steps": (rate if step_rate is None else step_rate, 0.0),
        "temporal": (rate if temporal_rate is None else temporal_rate, decay),
        "temporal_bias": (rate if temporal_rate is None else temporal_rate, 0.0),
    }
    return [
        {"name": name, "params": found[name], "lr": lr, "weight_decay": weight_decay}
        for name, (lr, weight_decay) in rates.items()
        if found[name]
    ]
