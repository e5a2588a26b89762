"""What a pipeline reads of a denoiser besides calling it, as JSON: a graph of another engine has
no modules to ask.

    config           the model's configuration
    attributes       path of a module -> its plain attributes, ``""`` for the model itself
    num_parameters   numbers in its weights

Modules inside repeated blocks, whose paths have a number in them, are left out. Pipelines read
``unet.add_embedding.linear_1.in_features`` and ``transformer.inner_dim``, and nothing of a block.
"""

from __future__ import annotations

import json
from typing import Any

from torch import nn

LENGTH = "__len__"
"""Key of the number of modules in a list."""


def carried(model: nn.Module) -> dict[str, Any]:
    """The description of a model that is not its call."""
    config = getattr(model, "config", None)
    return {
        "config": plain(dict(config)) if config is not None else {},
        "attributes": {
            path: _attributes(module)
            for path, module in model.named_modules()
            if not any(part.isdigit() for part in path.split("."))
        },
        "num_parameters": sum(p.numel() for p in model.parameters()),
    }


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Attributes of one module that are numbers, strings, None, or lists of them."""
    found = plain({k: v for k, v in vars(module).items() if k != "training"})
    if isinstance(module, (nn.ModuleList, nn.ModuleDict, nn.Sequential)):
        found[LENGTH] = len(module)
    return found


def plain(values: dict[str, Any]) -> dict[str, Any]:
    """The entries that JSON can hold, without private ones."""
    out = {}
    for key, value in values.items():
        if key.startswith("_"):
            continue
        try:
            out[key] = json.loads(json.dumps(value))
        except (TypeError, ValueError):
            continue
    return out
