"""What decides the result of a reconstruction, as one digest: its folder belongs to that.

FOLDER/block-00003.safetensors      codes, steps, biases and scales of a finished block
FOLDER/learning.safetensors         variables and optimizer of the block in work
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from torch import nn

from tdquant.calls.call import Call
from tdquant.files.digests import add_value
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
        add_value(digest, value)
    for call in calls:
        add_value(digest, call)
    return digest.hexdigest()
