"""Training quantized models."""

from tdquant.train.groups import parameter_groups

__all__ = ["parameter_groups"]
