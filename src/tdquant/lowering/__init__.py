"""Lowerings of the frozen fake-quantized model: engines of ``compile``, files of ``export``."""

from tdquant.lowering import cuda, onednn, onnx, openvino, reference
from tdquant.lowering.backends import BACKENDS, compile, register_backend
from tdquant.lowering.exporters import EXPORTERS, export, register_exporter
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
    "register_backend",
    "register_exporter",
]
