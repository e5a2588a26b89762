"""The oneDNN backend: torch's own int8 operators where they are exact, float elsewhere."""

from tdquant.lowering.onednn.layer import lower

__all__ = ["lower"]
