"""Other people's files: reading tensors and pickles without running anything that they name."""

from tdquant.files.checkpoints.opening import open_checkpoint
from tdquant.files.checkpoints.tensors import LazyTensor

__all__ = ["LazyTensor", "open_checkpoint"]
