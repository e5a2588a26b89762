"""What a case is: a tiny denoiser of diffusers with random weights, and calls of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import diffusers
import torch

from tests.pipelines.parts import model as random_model

B = 2
"""Samples a call."""

HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}

_TIMES = {
    "indices": torch.tensor([999, 799, 599, 399, 199, 1]),
    "indices as floats": torch.tensor([999.0, 799, 599, 399, 199, 1]),
    "0 to 1": torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2, 0.02]),
    "levels": torch.tensor([1000.0, 871.5, 650.25, 412.5, 180.0, 20.5]),
}


class Draws:
    """Random tensors of one call, by shape."""

    def __init__(self, seed: int) -> None:
        self._rng = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self._rng)

    def below(self, high: int, *shape: int) -> torch.Tensor:
        """Whole numbers from 0 to ``high - 1``."""
        return torch.randint(high, shape, generator=self._rng)


Inputs = Callable[[Draws], dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """A class of diffusers at one configuration.

    Attributes:
        cls: Its name.
        variant: What differs from the class's other cases.
        config: Arguments of its constructor.
        inputs: The arguments of a call but for its time.
        times: What it is called with, a key of ``_TIMES``.
        argument: Name of the timestep argument.
        shape: Of the timestep.
        also: Other arguments that take a part of the time: name -> factor.
        unset: In names of parameters that the class leaves as memory happens to be.
    """

    cls: str
    config: dict[str, Any]
    inputs: Inputs
    variant: str = ""
    times: str = "indices"
    argument: str = "timestep"
    shape: tuple[int, ...] = (B,)
    also: tuple[tuple[str, float], ...] = ()
    unset: str = ""

    @property
    def name(self) -> str:
        return f"{self.cls}, {self.variant}" if self.variant else self.cls

    def model(self) -> torch.nn.Module:
        """The denoiser, in float and evaluation mode."""
        made = random_model(getattr(diffusers, self.cls), **self.config)
        rng = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in made.named_parameters():
                if self.unset and self.unset in name:
                    parameter.normal_(0, 0.1, generator=rng)
        return made

    def calls(self) -> list[dict[str, Any]]:
        """Calls at all times, each with inputs of its own."""
        return [self.call(i, time) for i, time in enumerate(_TIMES[self.times])]

    def call(self, seed: int, time: torch.Tensor) -> dict[str, Any]:
        return {
            **self.inputs(Draws(seed)),
            self.argument: time.expand(self.shape).clone(),
            **{name: (time * part).expand(self.shape).clone() for name, part in self.also},
        }


CASES: dict[str, Case] = {}


def case(cls: str, config: dict[str, Any], inputs: Inputs, variant: str = "", **options: Any):
    """Registers a case."""
    made = Case(cls, config, inputs, variant, **options)
    assert made.name not in CASES
    CASES[made.name] = made


def mask(length: int, kept: int | None = None, dtype: torch.dtype = torch.bool) -> torch.Tensor:
    """A mask ``(B, length)`` that keeps ``kept`` tokens of the first sample."""
    found = torch.ones(B, length, dtype=dtype)
    found[0, length if kept is None else kept :] = 0
    return found


def grid(rows: int, columns: int, axes: int = 3) -> torch.Tensor:
    """Positions ``(rows * columns, axes)``, row and column in the last two."""
    found = torch.zeros(rows, columns, axes)
    found[..., -2] += torch.arange(rows)[:, None]
    found[..., -1] += torch.arange(columns)
    return found.reshape(-1, axes)
