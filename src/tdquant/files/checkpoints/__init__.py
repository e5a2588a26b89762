"""Foreign checkpoint files: tensors and pickles, read without running anything in them."""

from tdquant.files.checkpoints.opening import open_checkpoint
from tdquant.files.checkpoints.tensors import LazyTensor

__all__ = ["LazyTensor", "open_checkpoint"]
