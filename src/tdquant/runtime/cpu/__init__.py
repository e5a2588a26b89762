"""The CPU backend: every quantized layer by the fastest integer kernel that is exact."""

from tdquant.runtime.cpu.backend import lower

__all__ = ["lower"]
