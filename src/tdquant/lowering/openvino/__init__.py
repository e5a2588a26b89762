"""OpenVINO: exporter, graph passes, sessions and compiled models."""

from tdquant.lowering.openvino import exporter, session

__all__ = ["exporter", "session"]
