"""The CUDA backend: products of codes on tensor cores."""

from tdquant.lowering.cuda.backend import lower, lower_on

__all__ = ["lower", "lower_on"]
