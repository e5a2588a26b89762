"""The processes of one reconstruction."""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor

from tdquant.support.optional import require


class Processes:
    """The processes that work together: those of ``accelerator``, or one if it is None."""

    def __init__(self, accelerator: Any = None) -> None:
        self.rank = accelerator.process_index if accelerator is not None else 0
        self.count = accelerator.num_processes if accelerator is not None else 1
        self._accelerator = accelerator

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, on each of them."""
        if self.count == 1:
            return tensor
        place = self._accelerator.device
        return self._accelerator.reduce(tensor.to(place), "sum").to(tensor.device)

    def wait(self) -> None:
        """Waits for all of them."""
        if self.count > 1:
            self._accelerator.wait_for_everyone()


def launched() -> Any:
    """The accelerator of a process that was started as one of several, or None."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    return require("accelerate", "train").Accelerator(mixed_precision="no")
