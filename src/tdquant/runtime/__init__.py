"""Backends: lowerings of the frozen fake-quantized model, behind ``compile(frozen, backend)``."""

from tdquant.runtime import cpu, cuda, onnx, openvino, reference
from tdquant.runtime.compile import BACKENDS, compile
from tdquant.runtime.session import Session, open_session

__all__ = [
    "BACKENDS",
    "Session",
    "compile",
    "cpu",
    "cuda",
    "onnx",
    "open_session",
    "openvino",
    "reference",
]
