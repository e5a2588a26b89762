"""Backends: lowerings of the frozen fake-quantized model, behind ``compile(frozen, backend)``."""

from tdquant.runtime import cuda, onednn, onnx, openvino, reference
from tdquant.runtime.compile import BACKENDS, compile
from tdquant.runtime.session import Session, open_session

__all__ = [
    "BACKENDS",
    "Session",
    "compile",
    "cuda",
    "onednn",
    "onnx",
    "open_session",
    "openvino",
    "reference",
]
