"""Adapters of peft taken out of a quantized model."""

from __future__ import annotations

from functools import partial
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer

from tdquant.integrations.peft.fusing import warn_of_rounding
from tdquant.integrations.peft.stand_ins import base_of
from tdquant.layers import QuantLayer, StructuredLayer


def unload(method: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    """Puts the layers of a model in the place of their adapters, merged if ``merge`` is true."""
    return warn_of_rounding(partial(_unload, method), self, *args, **kwargs)


def _unload(method: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
    merge = args[0] if args else kwargs.get("merge", True)
    options: dict[str, Any] = {
        k: kwargs[k] for k in ("safe_merge", "adapter_names") if k in kwargs
    }
    # peft would give these layers a weight and a bias, which they hold in their own way.
    for parent in list(self.model.modules()):
        if isinstance(parent, BaseTunerLayer):
            continue
        for name, child in parent._modules.items():
            if not isinstance(child, BaseTunerLayer) or not hasattr(child, "base_layer"):
                continue
            base = base_of(child)[0]
            if isinstance(base, (QuantLayer, StructuredLayer)):
                if merge:
                    _merge_all(child, options)
                parent._modules[name] = base
    return method(self, *args, **kwargs)


def _merge_all(adapter: Any, options: dict[str, Any]) -> None:
    base = base_of(adapter)[0]
    while adapter is not base:
        adapter.merge(**options)
        adapter = adapter.base_layer
