"""ONNX: exporter and ONNX Runtime session."""

from tdquant.lowering.onnx import exporter, session

__all__ = ["exporter", "session"]
