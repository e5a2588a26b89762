r"""Checkpoints of TDQ's authors: the names of their quantized layers, and their grids as ours.

A quantized layer P of theirs has, beside ``weight`` and ``bias``, with n = 2^b - 1 codes,

    P.s  P.n_lv                                    weight: step, and n or 0 for float
    P.act_func.s  P.act_func.n_lv                  input: static step, and n or 0 for float
    P.act_func.dynamic                             whether the step comes from the network
    P.act_func.tdq_module.s_gen.{0,2,4,7}.*        the network
    P.act_func.b                                   not used

What the numbers mean is in ``published_quantizers``.

References:
    So et al., Temporal Dynamic Quantization for Diffusion Models, 2023
    (https://arxiv.org/abs/2306.02316).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.clock import Clock
from tdquant.errors import ModelError
from tdquant.files.checkpoints import LazyTensor
from tdquant.layers import QUANTIZED, QuantLayer, quantized_layers, replace_module
from tdquant.models.compvis.checkpoint import State
from tdquant.models.compvis.published_quantizers import activation_quantizer, after_silu, symmetric
from tdquant.models.compvis.unet import UNetModel
from tdquant.numerics.grid import Grid
from tdquant.quantizers import WeightQuantizer
from tdquant.scales import PublishedScale, Scale, StaticScale

NETWORK = "act_func.tdq_module.s_gen"
NEEDED = ("s", "act_func.s", "act_func.n_lv", "act_func.dynamic")
LAYERS = (0, 2, 4, 7)
"""Positions of the network's linear layers; our network has them at the same ones."""


def is_quantized(weights: State) -> bool:
    """Whether a UNet's tensors are of a quantized one."""
    return any(name.endswith(".n_lv") for name in weights)


def quantize(unet: UNetModel, weights: State, time_range: tuple[float, float], where: str) -> None:
    """Puts quantized layers in place, as the checkpoint has them, their tensors still to load.

    Arguments:
        unet: A float UNet; changed in place.
        weights: Its tensors by published names.
        time_range: First and last training timestep.
        where: The file, for errors.

    Raises:
        ModelError: Tensors are missing, or codes or layers are none that exist; all are listed.
    """
    modules = dict(unet.named_modules())
    paths = [name.removesuffix(".n_lv") for name in weights if name.endswith(".n_lv")]
    paths = [path for path in paths if not path.endswith(".act_func")]
    wrong = [mistake for path in paths for mistake in _mistakes(path, modules.get(path), weights)]
    if wrong:
        raise ModelError(
            f"{len(wrong)} mistakes in the quantized layers:\n  - " + "\n  - ".join(wrong[:16]),
            where=where,
            why="they are not as TDQ's authors write them, or of another UNet",
        )
    clock = Clock(unet, "timesteps")
    for path in paths:
        codes = [int(_number(weights, f"{path}.{rest}")) for rest in ("n_lv", "act_func.n_lv")]
        if not any(codes):
            continue
        layer = QUANTIZED[type(modules[path])].from_float(modules[path])
        if codes[0]:
            layer.weight_quantizer = WeightQuantizer(symmetric(codes[0]), torch.ones(()))
        if codes[1]:
            dynamic = bool(_number(weights, f"{path}.act_func.dynamic"))
            scale: Scale = (
                PublishedScale(1.0, time_range, unet.model_channels) if dynamic else StaticScale()
            )
            layer.input_quantizer = activation_quantizer(
                unet, path, codes[1], scale, scale.kind, clock
            )
        replace_module(unet, modules[path], layer)


def _number(weights: State, name: str) -> float:
    """A tensor of one number, NaN where it has more."""
    tensor = weights[name]
    return float(tensor.read()) if tensor.shape.numel() == 1 else math.nan


def _mistakes(path: str, layer: nn.Module | None, weights: State) -> list[str]:
    """What is wrong with the quantized layer at ``path``."""
    if type(layer) not in QUANTIZED:
        return [f"{path}: no layer that can be quantized is there"]
    absent = [f"{path}.{rest}" for rest in NEEDED if f"{path}.{rest}" not in weights]
    if absent:
        return [f"{name}: missing" for name in absent]
    signed = {"n_lv": True, "act_func.n_lv": not after_silu(path)}
    counts = {rest: _number(weights, f"{path}.{rest}") for rest in signed}
    wrong = [
        f"{path}.{rest}={counts[rest]:g}: 2^b - 1 with b of 2 to 16"
        + (", 3 to 16 where they are signed" if sign else "")
        for rest, sign in signed.items()
        if not _possible(counts[rest], sign)
    ]
    dynamic = _number(weights, f"{path}.act_func.dynamic")
    if dynamic not in (0, 1):
        wrong.append(f"{path}.act_func.dynamic={dynamic:g}: 0 or 1")
    if counts["act_func.n_lv"] and dynamic:
        names = [f"{path}.{NETWORK}.{i}.{rest}" for i in LAYERS for rest in ("weight", "bias")]
        wrong += [f"{name}: missing" for name in names if name not in weights]
    return wrong


def _possible(count: float, signed: bool) -> bool:
    """Whether there are grids of that many codes: 0 is float, 3 signed ones are zero alone."""
    if not math.isfinite(count) or count < 0 or count != int(count):
        return False
    bits = int(count).bit_length()
    return count == 0 or (count == 2**bits - 1 and (3 if signed else 2) <= bits <= 16)


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
            for i in LAYERS:
                for rest in ("weight", "bias"):
                    found[f"{ours}.network.{i}.{rest}"] = f"{path}.{NETWORK}.{i}.{rest}"
    return found


def unused_steps(unet: nn.Module) -> list[str]:
    """Published names of the steps that the authors' quantizers have and never use."""
    used = set(names(unet).values())
    steps = [
        f"{path}.{rest}" for path, _ in quantized_layers(unet) for rest in ("s", "act_func.s")
    ]
    return [name for name in steps if name not in used]


def to_own(unet: nn.Module, weights: State, where: str) -> dict[str, LazyTensor]:
    """Tensors with published names by the names of the quantized ``unet``'s own parameters.

    Names that belong to no quantized layer are passed on as they are.

    Raises:
        ModelError: A step is zero, negative on the grid from -0.2785, or not finite.
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
                wrong.append(f"{published}={float(tensor.read()):g}")
            tensor = LazyTensor(step.shape, step.dtype, step.clone)
        found[name] = tensor
    if wrong:
        raise ModelError(
            "steps that are not positive and finite:\n  - " + "\n  - ".join(wrong[:16]),
            where=where,
            fix="an earlier checkpoint of the same training",
        )
    read = set(ours.values())
    owned = tuple(f"{name.removesuffix('.n_lv')}." for name in weights if name.endswith(".n_lv"))
    rest = {n: t for n, t in weights.items() if n not in read and not n.startswith(owned)}
    return found | rest


def can_be_published(unet: nn.Module) -> bool:
    """Whether the published format can say what the quantized layers of a UNet are."""
    layers = list(quantized_layers(unet))
    known = hasattr(unet, "model_channels")
    return bool(layers) and known and all(_describe(unet, p, layer) for p, layer in layers)


def to_published(unet: nn.Module) -> dict[str, Tensor]:
    """A UNet's tensors with published names, of the quantized layers of TDQ's authors, too.

    Raises:
        ModelError: A quantized layer is of another kind than theirs; all such are listed.
    """
    state, ours = unet.state_dict(), names(unet)
    out = {published: state[name] for name, published in ours.items()}
    foreign = []
    for path, layer in quantized_layers(unet):
        spec = _describe(unet, path, layer)
        if spec is None:
            foreign.append(path)
            continue
        for name, value in spec.items():
            out.setdefault(f"{path}.{name}", torch.as_tensor(value))
        for name in ("s", "act_func.s"):
            out[f"{path}.{name}"] = out[f"{path}.{name}"].reshape(1)
    if foreign:
        raise ModelError(
            f"{len(foreign)} layers have no counterpart in the published format:\n  - "
            + "\n  - ".join(foreign[:16]),
            where=type(unet).__name__,
            fix="tdq.save(tdq.freeze(model), directory), which holds any quantized model",
        )
    return out


def _describe(unet: nn.Module, path: str, layer: QuantLayer) -> dict[str, Any] | None:
    """What a layer has beside its parameters, or None if the published format cannot say it."""
    weight = layer.weight_quantizer
    activation: Any = layer.input_quantizer
    counts = {}
    for name, quantizer in (("n_lv", weight), ("act_func.n_lv", activation)):
        grid: Grid | None = getattr(quantizer, "grid", None)
        counts[name] = 0 if grid is None else 2**grid.bits - 1
    if counts["n_lv"]:
        whole = isinstance(weight, WeightQuantizer) and weight.step.numel() == 1
        if not whole or weight.grid != symmetric(counts["n_lv"]):
            return None
    scale = getattr(activation, "scale", None)
    if counts["act_func.n_lv"]:
        if not isinstance(scale, (StaticScale, PublishedScale)):
            return None
        theirs = activation_quantizer(
            unet, path, counts["act_func.n_lv"], scale, scale.kind, activation.clock
        )
        same = (type(activation), activation.grid, getattr(activation, "offset", None))
        if same != (type(theirs), theirs.grid, getattr(theirs, "offset", None)):
            return None
    return counts | {
        "s": 1.0,
        "act_func.s": 1.0,
        "act_func.b": [0.0],
        "act_func.dynamic": [isinstance(scale, PublishedScale)],
    }
