r"""The moving average of a model: network, weight steps, activation scales and all.

    a <- d a + (1 - d) p,    d = min(decay, (1 + n) / (10 + n))

after n updates, so that an average restarted from a quantized model forgets its start quickly.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from tdquant.training.sharding import fill, whole


class Average:
    """Averages every trainable parameter of a model.

    Arguments:
        model: The model, from whose parameters it starts.
        decay: Largest decay, in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999) -> None:
        self.decay, self.updates = decay, 0
        self.parameters: dict[str, Tensor] = {
            n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad
        }

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Takes one step of the model in."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        now = dict(model.named_parameters())
        torch._foreach_lerp_(
            list(self.parameters.values()),
            [now[n].detach() for n in self.parameters],
            1 - decay,
        )

    def copy(self, model: nn.Module) -> nn.Module:
        """A copy of the model, whole on this process, that carries the averages, in evaluation
        mode. Where they are sharded, every process has to ask.
        """
        averaged = copy.deepcopy(model).eval()
        parameters = dict(averaged.named_parameters())
        for name, value in self.parameters.items():
            fill(parameters[name], whole(value))
        return averaged
