"""Adapters of peft put into a quantized model, or refused before anything is changed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from tdquant.errors import ConversionError
from tdquant.integrations.peft.fusing import refuse_compiled
from tdquant.integrations.peft.stand_ins import standing_in
from tdquant.layers import QuantLayer, StructuredLayer, quantized_layers, structured_layers
from tdquant.layers.structure import stands_for_one
from tdquant.quantizers import FrozenWeight
from tdquant.support.restoring import unchanged_on_error

KINDS = ("LORA", "LOHA", "LOKR", "IA3")
"""Adapters that call the layer below them. The others compute with its weight, without its input
quantizer, or rotate its input away from what the scales were calibrated on."""

_CHANGING = ("pissa", "corda", "olora", "loftq", "lora_ga", "kasa")
"""Starts of a LoRA that change the weight below it."""
_PLAIN = (True, False, "gaussian", "eva", "orthogonal")
"""Starts of a LoRA that do not look at it."""


def inject(method: Any, self: Any, model: nn.Module, adapter_name: str, *a: Any, **k: Any) -> Any:
    """Injects an adapter; the layer below it is the rewritten one, where a layer was rewritten."""
    config = self.peft_config[adapter_name]
    refuse_compiled(model, "takes no adapter", "add it to the frozen model, and compile that")
    own = (p for p, m in model.named_modules() if isinstance(m, (QuantLayer, StructuredLayer)))
    if (where := next(own, None)) is None:
        return method(self, model, adapter_name, *a, **k)
    _check_kind(model, config, where)
    _check_copied(model, config)
    _check_structures(self, model, config, k.get("state_dict"))
    first = not any(isinstance(module, BaseTunerLayer) for module in model.modules())
    rewritten = [layer for _, layer in structured_layers(model)]
    with unchanged_on_error(model):
        with standing_in(model, values=_reads_weights(config)):
            result = method(self, model, adapter_name, *a, **k)
        if first:
            # What peft did to the parameters that it saw; biases it has seen.
            for layer in rewritten:
                for parameter in layer.parameters():
                    if parameter is not layer.bias:
                        parameter.requires_grad_(False)
    return result


def _check_kind(model: nn.Module, config: Any, where: str) -> None:
    """Raises ConversionError for adapters that quantized layers, as that at ``where``, cannot
    take.
    """
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    if kind not in KINDS or getattr(config, "target_parameters", None):
        raise ConversionError(
            f"a quantized layer takes no {kind} adapter",
            where=where,
            why="it would compute with the weight itself, or on inputs that the scales were not "
            "calibrated on",
            fix=f"an adapter of kind {', '.join(KINDS)}; or merge this one into the float model "
            "before tdq.quantize",
        )
    start = "kasa" if getattr(config, "kasa_config", None) else _start(config)
    fixed = next(_fixed(model), None)
    if fixed is not None and str(start).startswith(_CHANGING):
        raise ConversionError(
            f"a LoRA that starts as {start!r}",
            where=fixed,
            why="it changes the weight of the layer below it, which is of codes, or of several "
            "layers",
            fix="init_lora_weights=True or 'gaussian'",
        )


def _check_copied(model: nn.Module, config: Any) -> None:
    """Raises ConversionError if a copy of a frozen layer would be trained."""
    copied = [rf"(.*\.)?{name}(\..*)?" for name in getattr(config, "modules_to_save", None) or ()]
    for path, layer in quantized_layers(model):
        frozen = isinstance(layer.weight_quantizer, FrozenWeight)
        if frozen and any(re.fullmatch(name, path) for name in copied):
            raise ConversionError(
                "modules_to_save names a frozen layer",
                where=path,
                why="a copy of it would be trained, and codes are not",
                fix="the layer among target_modules, or before tdq.freeze",
            )


def _check_structures(tuner: Any, model: nn.Module, config: Any, state: Any) -> None:
    """Raises ConversionError for an adapter of a structure that does not say how it takes one."""
    named = {key.partition(".lora_")[0] for key in state or ()}
    for path, layer in structured_layers(model):
        if stands_for_one(layer):
            continue
        if path in named or tuner._check_target_module_exists(config, path):
            raise ConversionError(
                f"an adapter for a layer that was rewritten ({layer.structure})",
                where=path,
                why=f"{type(layer).__name__}, or a structure in it, does not say which weight it "
                "stands for",
                fix="main, whole_weight and shares in its class",
            )


def _fixed(model: nn.Module) -> Iterator[str]:
    """Paths of layers whose weight is not to be assigned."""
    for path, module in model.named_modules():
        frozen = isinstance(getattr(module, "weight_quantizer", None), FrozenWeight)
        if frozen or isinstance(module, StructuredLayer):
            yield path


def _reads_weights(config: Any) -> bool:
    """Whether an adapter starts from the numbers of the weight below it."""
    variants = (f.name for f in fields(config) if f.metadata.get("is_lora_variant"))
    return any(getattr(config, name, None) for name in variants) or _start(config) not in _PLAIN


def _start(config: Any) -> Any:
    return getattr(config, "init_lora_weights", True)
