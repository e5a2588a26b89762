"""Attention processors that hold quantizers, of ``Recipe(attention=...)``: diffusers replaces them
by others whenever attention is sliced or a processor is set, and would lose them.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from tdquant.errors import ConversionError
from tdquant.integrations.diffusers.ip_adapters import kept_in
from tdquant.integrations.importing import wrap_method


def keep_processors() -> None:
    """Makes ``set_processor`` of a block raise ConversionError where quantizers would be lost."""
    from diffusers.models.attention_processor import Attention

    def replace(method: Any, self: Any, processor: Any) -> None:
        kept = kept_in(getattr(self, "processor", None))
        if kept is not None and kept_in(processor) is not kept:
            raise _lost(type(self).__name__)
        method(self, processor)

    wrap_method(Attention, "set_processor", replace)


def check_slicing() -> None:
    """Makes ``enable_attention_slicing`` of a pipeline raise ConversionError before it has changed
    another component.
    """
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    def slice_(method: Any, self: Any, slice_size: Any) -> None:
        for name, model in self.components.items():
            for path, module in model.named_modules() if isinstance(model, nn.Module) else ():
                if kept_in(getattr(module, "processor", None)) is not None:
                    raise _lost(f"{name}.{path}")
        method(self, slice_size)

    wrap_method(DiffusionPipeline, "set_attention_slice", slice_)


def _lost(where: str) -> ConversionError:
    return ConversionError(
        "this attention processor stays",
        where=where,
        why="it holds the quantizers of Recipe(attention=...), and another would compute in float",
        fix="leave slicing and processors as they are, or Recipe(attention=32)",
    )
