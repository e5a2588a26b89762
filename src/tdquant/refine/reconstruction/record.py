"""What decides the result of a reconstruction, as one digest: its folder belongs to that.

FOLDER/block-00003.safetensors      codes, steps, biases and scales of a finished block
FOLDER/learning.safetensors         variables and optimizer of the block in work
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from torch import Tensor, nn

from tdquant.calls.call import Call
from tdquant.files.digests import tensor_bytes
from tdquant.training.structure import describe

LEARNING = "learning"
"""The part of the block in work."""


def part_of(number: int) -> str:
    """The name of a finished block's part."""
    return f"block-{number:05d}"


def job_digest(model: nn.Module, calls: list[Call], options: dict[str, Any]) -> str:
    """SHA-256 of everything that decides the result: model, recipe, scales, calls and options."""
    digest = hashlib.sha256()
    digest.update(json.dumps([describe(model), options], sort_keys=True).encode())
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        _add(digest, value)
    for call in calls:
        _add(digest, call)
    return digest.hexdigest()


def _add(digest: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
        digest.update(tensor_bytes(value))
    elif isinstance(value, dict):
        for key in value:
            digest.update(str(key).encode())
            _add(digest, value[key])
    elif isinstance(value, (tuple, list)):
        for item in value:
            _add(digest, item)
    else:
        digest.update(repr(value).encode())
