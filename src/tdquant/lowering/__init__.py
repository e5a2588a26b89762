"""Lowerings of the frozen fake-quantized model: engines of ``compile``, files of ``export``."""

from tdquant.lowering import cuda, onednn, onnx, openvino, reference
from tdquant.lowering.backends import BACKENDS, compile
from tdquant.lowering.exporters import EXPORTERS, export
from tdquant.lowering.session import Session, open_session

__all__ = [
    "BACKENDS",
    "EXPORTERS",
    "Session",
    "compile",
    "cuda",
    "export",
    "onednn",
    "onnx",
    "open_session",
    "openvino",
    "reference",
]
