"""Bytes of a live quantized model in the file of tensors that ``tdq.save`` will write for it.

    weights of b bits    b bits a code, four bytes a step, multipliers of groups
    scales               four bytes for each knot of their tables
    everything else      as it is

The names are those of the file, since its header counts too: in a model of a few megabytes it is
one or two percent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.files.checkpoints.safetensors_format import file_bytes
from tdquant.files.checkpoints.tensors import LazyTensor
from tdquant.layers import QuantLayer, quantized_layers
from tdquant.layers.balance import input_channels
from tdquant.layers.correction import correction_of
from tdquant.layers.structure import channel_dimension, structured_layers
from tdquant.numerics.packing import packed_bytes, stored_bits
from tdquant.quantizers import ActivationQuantizer, activation_quantizers
from tdquant.quantizers.groups import MULTIPLIER_BITS, count_groups
from tdquant.recipe import Recipe
from tdquant.scales import DynamicScale, TableScale
from tdquant.scales.table import first_index, training_timesteps

FLOAT_BYTES = 4

_ENTRY = 88
"""Bytes of a tensor in the header beside its path."""

METADATA = {"format": "pt"}
"""What the header of the file says beside the tensors."""


def float_bytes(model: nn.Module) -> int:
    """Bytes of the float model that a quantized one was, in float32 whatever its dtype."""
    inside = tuple(f"{path}." for path, _ in activation_quantizers(model))
    rewritten = tuple(f"{path}." for path, _ in structured_layers(model))
    tensors = {
        id(tensor): tensor.numel()
        for name, tensor in model.state_dict(keep_vars=True).items()
        if not name.startswith((*inside, "tdq_"))
        and ".weight_quantizer." not in f".{name}"
        and (isinstance(tensor, nn.Parameter) or not name.startswith(rewritten))
    }
    return FLOAT_BYTES * sum(tensors.values())


def saved_bytes(model: nn.Module) -> int:
    """Bytes of the file of tensors."""
    return file_bytes(saved_tensors(model), METADATA)


def saved_tensors(model: nn.Module) -> dict[str, LazyTensor]:
    """Shapes and dtypes of the tensors in the file, by name; they hold no numbers."""
    known = dict(quantized_layers(model))
    every = model.named_modules(remove_duplicate=False)
    twice = tuple(f"{p}." for p, m in every if isinstance(m, QuantLayer) and p not in known)
    quantizers = dict(activation_quantizers(model))
    changed = [f"{path}.weight_quantizer." for path in known] + [f"{path}." for path in quantizers]
    own = {f"{p}.{held}" for p, layer in known.items() for held in _held(layer)}
    skipped = (*twice, *changed, "tdq_correction.")
    found = {
        name: _tensor(tensor.shape, tensor.dtype)
        for name, tensor in model.state_dict().items()
        if name not in own and not name.startswith(skipped)
    }
    for path, layer in known.items():
        if _held(layer):
            found |= dict(_weight(path, layer))
    reached: list[float] = []
    for path, quantizer in quantizers.items():
        knots = _knots(quantizer)
        if knots is None:
            continue
        found[f"{path}.scale.table"] = _tensor(knots.shape)
        if first_index(knots) is None:
            found[f"{path}.scale.knots"] = _tensor(knots.shape)
        if len(knots) > 1:
            reached += [float(knots[0]), float(knots[-1])]
    return found | _correction(model, reached)


def weight_bytes(path: str, layer: QuantLayer, bits: int, group: int) -> int:
    """Bytes of the weight of a layer with codes of other bits, without its steps, whose number
    stays.

    Arguments:
        path: Its path, which the header names with the multipliers.
        layer: The layer.
        bits: Bits of the codes.
        group: Inputs that share a multiplier, or 0.
    """
    shape = layer.weight.shape
    groups = count_groups(shape, group)
    size = packed_bytes(layer.weight.numel(), stored_bits(bits))
    if groups:
        size += packed_bytes(shape[0] * groups, MULTIPLIER_BITS[bits]) + len(path) + _ENTRY
    return size


def correction_bytes(targets: Sequence[Tensor], span: tuple[float, float]) -> int:
    """Most bytes of the tables of the output's correction.

    Arguments:
        targets: Outputs that it is fitted to, none if there is to be no correction.
        span: The model's times.
    """
    if not targets:
        return 0
    channels = max(y.shape[1] if y.ndim > 1 else 1 for y in targets)
    return FLOAT_BYTES * len(training_timesteps(*span)) * (3 + channels)


def factor_bytes(model: nn.Module, recipe: Recipe) -> int:
    """Most bytes of factors or signs of input channels; a layer gets one of them."""
    if not (recipe.uses("factors") or recipe.uses("rotation")):
        return 0
    return sum(
        FLOAT_BYTES * input_channels(layer)
        for _, layer in quantized_layers(model)
        if channel_dimension(layer) is not None
    )


def _tensor(shape: Any, dtype: torch.dtype = torch.float32) -> LazyTensor:
    shape = torch.Size(shape)
    load: Callable[[], Tensor] = partial(torch.empty, shape, dtype=dtype, device="meta")
    return LazyTensor(shape, dtype, load)


def _held(layer: QuantLayer) -> tuple[str, ...]:
    """The name of a quantized weight in a layer's state dict; none of a float one."""
    if getattr(layer.weight_quantizer, "grid", None) is None:
        return ()
    return ("codes",) if "codes" in layer._parameters else ("weight",)


def _weight(path: str, layer: QuantLayer) -> Iterator[tuple[str, LazyTensor]]:
    """The tensors of a quantized weight."""
    quantizer: Any = layer.weight_quantizer
    bits, held = quantizer.grid.bits, layer._parameters[_held(layer)[0]]
    assert held is not None
    size = packed_bytes(held.numel(), stored_bits(bits))
    yield f"{path}.weight.codes", _tensor([size], torch.uint8)
    yield f"{path}.weight.step", _tensor(quantizer.step.shape)
    if quantizer.multipliers is not None:
        size = packed_bytes(quantizer.multipliers.numel(), MULTIPLIER_BITS[bits])
        yield f"{path}.weight.multipliers", _tensor([size], torch.uint8)


def _knots(quantizer: ActivationQuantizer) -> Tensor | None:
    """Times of the table that a scale becomes; None if it becomes none."""
    scale = quantizer.scale
    if isinstance(scale, DynamicScale):
        return None
    static = not scale.timed or (isinstance(scale, TableScale) and scale.static)
    times = None if static else scale.training_times()
    return torch.zeros(1, dtype=torch.float32) if times is None else times.detach().cpu()


def _correction(model: nn.Module, reached: list[float]) -> dict[str, LazyTensor]:
    """The tensors of the output's correction, whose tables get the knots of the others."""
    correction = correction_of(model)
    if correction is None:
        return {}
    knots: Any = correction.scale.knots
    count = len(training_timesteps(min(reached), max(reached))) if reached else len(knots)
    names = {"scale.table": (count,), "scale.knots": (count,)}
    if correction.bias is not None:
        names |= {"bias.table": (count, correction.bias.table.shape[1]), "bias.knots": (count,)}  # type: ignore[dict-item]
    return {f"tdq_correction.{name}": _tensor(shape) for name, shape in names.items()}
