"""Backends: lowerings of the frozen fake-quantized model, behind ``compile(frozen, backend)``."""

from tdquant.runtime import reference
from tdquant.runtime.compile import BACKENDS, compile

__all__ = ["BACKENDS", "compile", "reference"]
