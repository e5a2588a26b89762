"""Saving and loading frozen models: a folder of one JSON file and one safetensors file. No pickle.

    tdquant.json          format version, how to build the float model, what every layer is
    model.safetensors     packed weight codes, their steps, scale tables, and all that stayed float

Weight ``W`` is stored as codes (``<layer>.weight.codes``, uint8) and ``<layer>.weight.step``;
loading multiplies them, which gives bit for bit the weights that were saved.
"""

from tdquant.storage.files import INDEX, TENSORS
from tdquant.storage.inspecting import inspect_saved
from tdquant.storage.reading import load
from tdquant.storage.writing import save

__all__ = ["INDEX", "TENSORS", "inspect_saved", "load", "save"]
