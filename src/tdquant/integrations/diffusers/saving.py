"""Refuses to save a pipeline with a model that was compiled or that an engine runs: diffusers
would leave that component out, with a line in its log, or stop half way through the folder.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from tdquant.integrations.diffusers.config import METHOD
from tdquant.integrations.importing import wrap_method
from tdquant.lowering.slot import OnEngine, not_saved
from tdquant.storage.description import describe
from tdquant.storage.writing import refuse_others


def check_saving(model: Any) -> None:
    """Raises FreezeError if a quantized model cannot be saved as it is; else brings its
    description up to date: adapters may have come and gone.
    """
    refuse_others(model)
    config = model.hf_quantizer.quantization_config
    if model.hf_quantizer.is_serializable:
        config.description = describe(model)


def check_pipelines() -> None:
    """Has ``DiffusionPipeline.save_pretrained`` raise ExportError for such pipelines before it
    writes anything.
    """
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    def save_pretrained(save: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        for name, model in vars(self).items():
            compiled = isinstance(model, nn.Module) and hasattr(model, "tdq_backend")
            if isinstance(model, OnEngine) or compiled:
                raise not_saved(type(model).__name__, f"{type(self).__name__}.{name}")
            if getattr(model, "quantization_method", None) is METHOD:
                check_saving(model)
        return save(self, *args, **kwargs)

    wrap_method(DiffusionPipeline, "save_pretrained", save_pretrained)
