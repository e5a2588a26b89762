"""What a clock knows of one call, and of which thread the call is."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.support.recomputation import Replay

GRAPH = 0
"""In the place of a thread's number, which is never 0, where a compiled graph asks."""


def caller() -> int:
    """The calling thread: threads may share a model. A graph that is being compiled has one."""
    return GRAPH if torch.compiler.is_compiling() else threading.get_ident()


def identity(module: nn.Module) -> Any:
    """A key for the module in dictionaries, shared by the proxies that torch.export traces with:
    they are other objects over the same attributes.
    """
    return module if torch.compiler.is_dynamo_compiling() else id(vars(module))


@dataclass(eq=False)
class Moment:
    """One call.

    Attributes:
        timestep: Its timestep.
        steps: The steps computed before it, by the scale's identity.
        replay: Computes them again, for a graph of its own.
        without_graph: Scales that were asked for while no graph was recorded. Who asks for them
            again with gradients recomputes a reentrant checkpoint, and runs backward at once.
        hidden: Whether quantizers ran while no graph was recorded, as in such a checkpoint.
        frame: Where the model is called, if it is.
    """

    timestep: Tensor
    steps: dict[Any, Tensor] = field(default_factory=dict)
    replay: Replay[dict[Any, Tensor]] | None = None
    without_graph: set[Any] = field(default_factory=set)
    hidden: bool = False
    frame: FrameType | None = None

    @property
    def is_over(self) -> bool:
        """Whether the call has ended without a word: torch calls no hook after what is not an
        ``Exception``, such as KeyboardInterrupt.
        """
        if self.frame is None:
            return False
        try:
            self.frame.clear()  # refused for what is running
        except RuntimeError:
            return False
        return True
