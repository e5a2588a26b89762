"""Exporters: a frozen model as a graph of another engine, the timestep an input of it."""

from tdquant.export import onnx, openvino
from tdquant.export.exporters import EXPORTERS, export

__all__ = ["EXPORTERS", "export", "onnx", "openvino"]
