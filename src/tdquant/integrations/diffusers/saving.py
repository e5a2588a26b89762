"""Saving a pipeline with a model that was compiled or that an engine runs: diffusers would leave
that component out, with a line in its log, or stop half way through the folder.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from tdquant.lowering.slot import OnEngine, not_saved


def check_pipelines() -> None:
    """Has ``DiffusionPipeline.save_pretrained`` refuse such pipelines before it writes anything;
    calling it again changes nothing.
    """
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    save = DiffusionPipeline.save_pretrained
    if getattr(save, "tdquant", False):
        return

    @functools.wraps(save)
    def save_pretrained(self: Any, *args: Any, **kwargs: Any) -> Any:
        for name, model in vars(self).items():
            compiled = isinstance(model, nn.Module) and hasattr(model, "tdq_backend")
            if isinstance(model, OnEngine) or compiled:
                raise not_saved(type(model).__name__, f"{type(self).__name__}.{name}")
        return save(self, *args, **kwargs)

    save_pretrained.tdquant = True  # type: ignore[attr-defined]
    DiffusionPipeline.save_pretrained = save_pretrained  # type: ignore[method-assign]
