r"""Checkpoints of TDQ's authors: the names of their quantized layers, and their grids as ours.

A quantized layer P of theirs has, beside ``weight`` and ``bias``, with n = 2^b - 1 codes,

    P.s  P.n_lv                                    weight: step, and n or 0 for float
    P.act_func.s  P.act_func.n_lv                  input: static step, and n or 0 for float
    P.act_func.dynamic                             whether the step comes from the network
    P.act_func.tdq_module.s_gen.{0,2,4,7}.*        the network
    P.act_func.b                                   not used

Weights and most inputs have the symmetric codes +-(n // 2 - 1). Inputs that come from SiLU, those
of the two 3x3 convolutions of a residual block, have the codes 0 .. n-1 from -0.2785 upwards.

References:
    So et al., Temporal Dynamic Quantization for Diffusion Models, 2023
    (https://arxiv.org/abs/2306.02316).
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from tdquant.clock import Clock
from tdquant.errors import ModelError
from tdquant.grid import Grid
from tdquant.layers import QUANTIZED, QuantLayer, quantized_layers, replace_module
from tdquant.models.compvis.unet import UNetModel
from tdquant.quantizers import ActivationQuantizer, OffsetQuantizer, WeightQuantizer
from tdquant.scales import PublishedScale, Scale, StaticScale

AFTER_SILU = ("*.in_layers.2", "*.out_layers.3")
NETWORK = "act_func.tdq_module.s_gen"
NEEDED = ("s", "act_func.s", "act_func.n_lv", "act_func.dynamic")
LAYERS = (0, 2, 4, 7)
"""Positions of the network's linear layers; our network has them at the same ones."""


def is_quantized(weights: Mapping[str, Tensor]) -> bool:
    """Whether a UNet's tensors are of a quantized one."""
    return any(name.endswith(".n_lv") for name in weights)


def quantize(
    unet: UNetModel, weights: Mapping[str, Tensor], time_range: tuple[float, float], where: str
) -> None:
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
        codes = int(weights[f"{path}.n_lv"]), int(weights[f"{path}.act_func.n_lv"])
        if codes == (0, 0):
            continue
        layer = QUANTIZED[type(modules[path])].from_float(modules[path])
        if codes[0]:
            layer.weight_quantizer = WeightQuantizer(_symmetric(codes[0]), torch.ones(()))
        if codes[1]:
            dynamic = bool(weights[f"{path}.act_func.dynamic"])
            scale: Scale = (
                PublishedScale(1.0, time_range, unet.model_channels) if dynamic else StaticScale()
            )
            layer.input_quantizer = _activation(path, codes[1], scale, clock)
        replace_module(unet, modules[path], layer)


def _mistakes(path: str, layer: nn.Module | None, weights: Mapping[str, Tensor]) -> list[str]:
    """What is wrong with the quantized layer at ``path``."""
    if type(layer) not in QUANTIZED:
        return [f"{path}: no layer that can be quantized is there"]
    absent = [f"{path}.{rest}" for rest in NEEDED if f"{path}.{rest}" not in weights]
    if absent:
        return [f"{name}: missing" for name in absent]
    signed = {"n_lv": True, "act_func.n_lv": not _after_silu(path)}
    wrong = [
        f"{path}.{rest}={int(weights[f'{path}.{rest}'])}: 2^b - 1 with b of 2 to 16"
        + (", 3 to 16 where they are signed" if sign else "")
        for rest, sign in signed.items()
        if not _possible(int(weights[f"{path}.{rest}"]), sign)
    ]
    if int(weights[f"{path}.act_func.n_lv"]) and bool(weights[f"{path}.act_func.dynamic"]):
        names = [f"{path}.{NETWORK}.{i}.{rest}" for i in LAYERS for rest in ("weight", "bias")]
        wrong += [f"{name}: missing" for name in names if name not in weights]
    return wrong


def _possible(count: int, signed: bool) -> bool:
    """Whether there are grids of that many codes: 0 is float, 3 signed ones are zero alone."""
    bits = count.bit_length()
    return count == 0 or (count == 2**bits - 1 and (3 if signed else 2) <= bits <= 16)


def _after_silu(path: str) -> bool:
    return any(fnmatchcase(path, pattern) for pattern in AFTER_SILU)


def _symmetric(count: int) -> Grid:
    high = count // 2 - 1
    return Grid(count.bit_length(), -high, high)


def _activation(path: str, count: int, scale: Scale, clock: Clock) -> ActivationQuantizer:
    if _after_silu(path):
        grid = Grid(count.bit_length(), 0, count - 1)
        return OffsetQuantizer(grid, scale, clock, wanted=scale.kind)
    return ActivationQuantizer(_symmetric(count), scale, clock, True, scale.kind)


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


def to_own(unet: nn.Module, weights: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Tensors with published names as a state dict for the quantized ``unet``.

    Names that belong to no quantized layer are passed on as they are.

    Raises:
        ModelError: A step is zero, negative on the grid from -0.2785, or not finite.
    """
    own = unet.state_dict()
    ours = names(unet)
    # Buffers, which are not in the checkpoint: zero points and ranges of time.
    found = {name: tensor for name, tensor in own.items() if name not in ours}
    wrong = []
    for name, published in ours.items():
        if published not in weights:
            continue
        tensor = weights[published]
        if name.endswith(("weight_quantizer.step", "scale.step")) and tensor.numel() == 1:
            tensor = tensor.reshape(())
            # A symmetric grid of step -s is that of s; training may have led there.
            layer = name.removesuffix(".input_quantizer.scale.step")
            if layer == name or not _after_silu(layer):
                tensor = tensor.abs()
            if not (tensor.isfinite() and tensor > 0):
                wrong.append(f"{published}={float(weights[published]):g}")
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


def to_published(unet: nn.Module) -> dict[str, Tensor]:
    """A UNet's tensors with published names, of the quantized layers of TDQ's authors, too.

    Raises:
        ModelError: A quantized layer is of another kind than theirs; all such are listed.
    """
    state, ours = unet.state_dict(), names(unet)
    out = {published: state[name] for name, published in ours.items()}
    foreign = []
    for path, layer in quantized_layers(unet):
        spec = _describe(path, layer)
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


def _describe(path: str, layer: QuantLayer) -> dict[str, Any] | None:
    """What a layer has beside its parameters, or None if the published format cannot say it."""
    weight = layer.weight_quantizer
    activation: Any = layer.input_quantizer
    counts = {}
    for name, quantizer in (("n_lv", weight), ("act_func.n_lv", activation)):
        grid: Grid | None = getattr(quantizer, "grid", None)
        counts[name] = 0 if grid is None else 2**grid.bits - 1
    if counts["n_lv"]:
        whole = isinstance(weight, WeightQuantizer) and weight.step.numel() == 1
        if not whole or weight.grid != _symmetric(counts["n_lv"]):
            return None
    scale = getattr(activation, "scale", None)
    if counts["act_func.n_lv"]:
        if not isinstance(scale, (StaticScale, PublishedScale)):
            return None
        theirs = _activation(path, counts["act_func.n_lv"], scale, activation.clock)
        same = (type(activation), activation.grid, getattr(activation, "offset", None))
        if same != (type(theirs), theirs.grid, getattr(theirs, "offset", None)):
            return None
    return counts | {
        "s": 1.0,
        "act_func.s": 1.0,
        "act_func.b": [0.0],
        "act_func.dynamic": [isinstance(scale, PublishedScale)],
    }
