"""Nodes of an OpenVINO graph: finding out what one is, and putting another in its place."""

from __future__ import annotations

from typing import Any

import numpy as np

from tdquant.support.optional import require


def operators() -> Any:
    """OpenVINO's operators, of the set that exported graphs are made of."""
    return require("openvino.opset13", "openvino")


def place(value: Any) -> tuple[str, int]:
    """Which output of which node a value is."""
    return value.get_node().get_name(), value.get_index()


def replace(old: Any, new: Any) -> None:
    """Has whatever reads one value read another."""
    for user in old.get_target_inputs():
        user.replace_source_output(new)


def constant(value: Any) -> np.ndarray[Any, Any] | None:
    """The numbers of a constant; None for what is computed."""
    node = value.get_node()
    return node.get_data() if node.get_type_name() == "Constant" else None


def shape(value: Any) -> list[int] | None:
    """The sizes of a value, or None if one of them is free."""
    found = value.get_partial_shape()
    return list(found.to_shape()) if found.is_static else None
