r"""Checkpoints of TDQ's authors: the names of their quantized layers, and their grids as ours.

A quantized layer P of theirs has, beside ``weight`` and ``bias``, with n = 2^b - 1 codes,

    P.s  P.n_lv                                    weight: step, and n or 0 for float
    P.act_func.s  P.act_func.n_lv                  input: static step, and n or 0 for float
    P.act_func.dynamic                             whether the step comes from the network
    P.act_func.tdq_module.s_gen.{0,2,4,7}.*        the network
    P.act_func.b                                   not used

The grids are those of ``published_quantizers``.

References:
    So et al., Temporal Dynamic Quantization for Diffusion Models, 2023
    (https://arxiv.org/abs/2306.02316).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.clock import Clock
from tdquant.errors import ModelError, raise_collected
from tdquant.files.checkpoints import LazyTensor
from tdquant.layers import QUANTIZED, QuantLayer, quantized_layers, replace_module
from tdquant.models.compvis.checkpoint import State
from tdquant.models.compvis.published_quantizers import activation_quantizer, after_silu, symmetric
from tdquant.models.compvis.unet import UNetModel
from tdquant.quantizers import ActivationQuantizer, WeightQuantizer
from tdquant.scales import PublishedScale, Scale, StaticScale

NETWORK = "act_func.tdq_module.s_gen"
NEEDED = ("s", "act_func.s", "act_func.n_lv", "act_func.dynamic")
LAYERS = (0, 2, 4, 7)
"""Positions of the network's linear layers, theirs and ours."""
COUNTS = {0, *(2**bits - 1 for bits in range(2, 17))}
"""Numbers of codes; 0 is float. Signed grids of 3 codes would hold zero alone."""
_NETWORK = [f"{i}.{rest}" for i in LAYERS for rest in ("weight", "bias")]
LISTED = 16
"""Mistakes that an error lists before it counts the rest."""


def is_quantized(weights: State) -> bool:
    """Whether the tensors are those of a quantized UNet."""
    return any(name.endswith(".n_lv") for name in weights)


def quantize(unet: UNetModel, weights: State, time_range: tuple[float, float], where: str) -> None:
    """Replaces layers of ``unet`` by quantized ones, their tensors still to load, where the
    published ``weights`` have some.

    Raises:
        ModelError: Tensors are missing, or codes or layers do not exist; all are listed.
    """
    modules = dict(unet.named_modules())
    paths = [name.removesuffix(".n_lv") for name in weights if name.endswith(".n_lv")]
    paths = [path for path in paths if not path.endswith(".act_func")]
    raise_collected(
        ModelError,
        (mistake for path in paths for mistake in _mistakes(path, modules.get(path), weights)),
        "the quantized layers",
        LISTED,
        where=where,
        why="they are not as TDQ's authors write them, or of another UNet",
    )
    clock = Clock(unet, "timesteps")
    for path in paths:
        codes, inputs = (
            int(_number(weights, f"{path}.{rest}")) for rest in ("n_lv", "act_func.n_lv")
        )
        if not (codes or inputs):
            continue
        layer = QUANTIZED[type(modules[path])].from_float(modules[path])
        if codes:
            layer.weight_quantizer = WeightQuantizer(
                symmetric(codes), torch.ones((), dtype=torch.float32)
            )
        if inputs:
            scale: Scale = StaticScale()
            if _number(weights, f"{path}.act_func.dynamic"):
                scale = PublishedScale(1.0, time_range, unet.model_channels)
            layer.input_quantizer = activation_quantizer(
                unet, path, inputs, scale, scale.kind, clock
            )
        replace_module(unet, modules[path], layer)


def _number(weights: State, name: str) -> float:
    """The value of a tensor of one number, NaN where it has more."""
    tensor = weights[name]
    return float(tensor.read()) if tensor.shape.numel() == 1 else math.nan


def _mistakes(path: str, layer: nn.Module | None, weights: State) -> Iterator[str]:
    """Finds what is wrong with the quantized layer at ``path``."""
    if type(layer) not in QUANTIZED:
        yield f"{path}: no layer that can be quantized is there"
        return
    absent = [f"{path}.{rest}" for rest in NEEDED if f"{path}.{rest}" not in weights]
    yield from (f"{name}: missing" for name in absent)
    if absent:
        return
    for rest, signed in (("n_lv", True), ("act_func.n_lv", not after_silu(path))):
        count = _number(weights, f"{path}.{rest}")
        if count not in COUNTS or (signed and count == 3):
            words = ", 3 to 16 where they are signed" if signed else ""
            yield f"{path}.{rest}={count:g}: 2^b - 1 with b of 2 to 16{words}"
    dynamic = _number(weights, f"{path}.act_func.dynamic")
    if dynamic not in (0, 1):
        yield f"{path}.act_func.dynamic={dynamic:g}: 0 or 1"
    if _number(weights, f"{path}.act_func.n_lv") and dynamic:
        needed = [f"{path}.{NETWORK}.{rest}" for rest in _NETWORK]
        yield from (f"{name}: missing" for name in needed if name not in weights)


def names(unet: nn.Module) -> dict[str, str]:
    """The published name of every parameter of a UNet, quantized or not, by ours."""
    found = {name: name for name, _ in unet.named_parameters()}
    for path, layer in quantized_layers(unet):
        if isinstance(layer.weight_quantizer, WeightQuantizer):
            found[f"{path}.weight_quantizer.step"] = f"{path}.s"
        scale = getattr(layer.input_quantizer, "scale", None)
        ours = f"{path}.input_quantizer.scale"
        if isinstance(scale, StaticScale):
            found[f"{ours}.step"] = f"{path}.act_func.s"
        elif isinstance(scale, PublishedScale):
            for rest in _NETWORK:
                found[f"{ours}.network.{rest}"] = f"{path}.{NETWORK}.{rest}"
    return found


def unused_steps(unet: nn.Module) -> list[str]:
    """Published names of the step sizes that the authors' quantizers have and never use."""
    used = set(names(unet).values())
    steps = [
        f"{path}.{rest}" for path, _ in quantized_layers(unet) for rest in ("s", "act_func.s")
    ]
    return [name for name in steps if name not in used]


def to_own(unet: nn.Module, weights: State, where: str) -> dict[str, LazyTensor]:
    """Renames published tensors to the quantized ``unet``'s own parameters.

    Names that belong to no quantized layer are kept.

    Raises:
        ModelError: A step size is zero, negative on the grid from -0.2785, or not finite.
    """
    ours = names(unet)
    found, wrong = {}, []
    for name, published in ours.items():
        if published not in weights:
            continue
        tensor = weights[published]
        if name.endswith(("weight_quantizer.step", "scale.step")) and tensor.shape.numel() == 1:
            step = tensor.read().float().reshape(())
            # A symmetric grid of step -s is that of s; training may have led there.
            layer = name.removesuffix(".input_quantizer.scale.step")
            if layer == name or not after_silu(layer):
                step = step.abs()
            if not (step.isfinite() and step > 0):
                wrong.append(f"{published}={float(tensor.read()):g}: not positive and finite")
            tensor = LazyTensor(step.shape, step.dtype, step.clone)
        found[name] = tensor
    fix = "an earlier checkpoint of the same training"
    raise_collected(ModelError, wrong, "the step sizes", LISTED, where=where, fix=fix)
    read = set(ours.values())
    owned = tuple(f"{name.removesuffix('.n_lv')}." for name in weights if name.endswith(".n_lv"))
    rest = {n: t for n, t in weights.items() if n not in read and not n.startswith(owned)}
    return found | rest


def can_be_published(unet: nn.Module) -> bool:
    """Whether the published format can express the quantized layers of a UNet."""
    layers = list(quantized_layers(unet))
    known = hasattr(unet, "model_channels")
    return bool(layers) and known and all(_describe(unet, p, layer) for p, layer in layers)


def to_published(unet: nn.Module) -> dict[str, Tensor]:
    """A UNet's tensors with published names, those of quantized layers included.

    Raises:
        ModelError: A quantized layer is of another kind than the authors'; all such are listed.
    """
    state, ours = unet.state_dict(), names(unet)
    out = {published: state[name] for name, published in ours.items()}
    foreign = []
    for path, layer in quantized_layers(unet):
        spec = _describe(unet, path, layer)
        if spec is None:
            foreign.append(f"{path}: no counterpart in the published format")
            continue
        for name, value in spec.items():
            kind = torch.float32 if isinstance(value, float) else None
            out.setdefault(f"{path}.{name}", torch.as_tensor(value, dtype=kind))
        for name in ("s", "act_func.s"):
            out[f"{path}.{name}"] = out[f"{path}.{name}"].reshape(1)
    fix = "tdq.save(tdq.freeze(model), directory), which stores any quantized model"
    where = type(unet).__name__
    raise_collected(ModelError, foreign, "the quantized layers", LISTED, where=where, fix=fix)
    return out


def _describe(unet: nn.Module, path: str, layer: QuantLayer) -> dict[str, Any] | None:
    """The layer's published tensors beside its parameters, None if the format has none."""
    weight: Any = layer.weight_quantizer
    activation: Any = layer.input_quantizer
    codes, inputs = (
        0 if getattr(quantizer, "grid", None) is None else 2**quantizer.grid.bits - 1
        for quantizer in (weight, activation)
    )
    if codes:
        whole = isinstance(weight, WeightQuantizer) and weight.step.numel() == 1
        if not whole or weight.grid != symmetric(codes):
            return None
    scale = getattr(activation, "scale", None)
    if inputs:
        if not isinstance(scale, (StaticScale, PublishedScale)):
            return None
        theirs = activation_quantizer(unet, path, inputs, scale, scale.kind, activation.clock)
        if _signature(activation) != _signature(theirs):
            return None
    return {
        "n_lv": codes,
        "act_func.n_lv": inputs,
        "s": 1.0,
        "act_func.s": 1.0,
        "act_func.b": [0.0],
        "act_func.dynamic": [isinstance(scale, PublishedScale)],
    }


def _signature(quantizer: ActivationQuantizer) -> tuple[Any, ...]:
    return type(quantizer), quantizer.grid, getattr(quantizer, "offset", None)
