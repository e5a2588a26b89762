"""The tensors of a saved model, each computed when it is read.

    <layer>.weight.codes    codes of the weight, packed to its bits, uint8
    <layer>.weight.step     their steps, float32
    <layer>.weight.multipliers   of their groups, less one, packed likewise
    <quantizer>.scale.table steps over time, float32

Everything else keeps its name in the state dict. Zero points and knots at consecutive integers are
part of the description and not stored again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from tdquant.files.checkpoints import LazyTensor
from tdquant.files.writing import unshared
from tdquant.numerics.grid import Grid
from tdquant.numerics.packing import pack, packed_bytes
from tdquant.quantizers import FrozenWeight
from tdquant.quantizers.groups import MULTIPLIER_BITS, Groups
from tdquant.quantizers.steps import row_blocks
from tdquant.storage.description import Description, activations, stored_width, weight_grid


def stored_tensors(state: Mapping[str, Tensor], description: Description) -> dict[str, LazyTensor]:
    """The tensors to store for a frozen model's state dict, packed when they are loaded.

    Loading a weight's codes raises FreezeError if the weight was changed after freezing and does
    not lie on its grid.
    """
    twice = tuple(f"{alias}." for alias in description.get("aliases", {}))
    state = {
        k: v.detach()
        for k, v in state.items()
        if not k.endswith(".zero_point") and not k.startswith(twice)
    }
    out = {}
    for path, layer in description["layers"].items():
        if "weight" not in layer:
            continue
        grid = weight_grid(layer["weight"])
        step = state.pop(f"{path}.weight_quantizer.step")
        groups = None
        if size := layer["weight"].get("group"):
            groups = Groups(state.pop(f"{path}.weight_quantizer.multipliers"), size)
            out[f"{path}.weight.multipliers"] = _packed_multipliers(groups, grid.bits)
        name = "codes" if f"{path}.codes" in state else "weight"
        weight = state.pop(f"{path}.{name}")
        width = stored_width(layer["weight"])
        load = partial(_pack_weight, weight, step, grid, groups, width, path)
        size = packed_bytes(weight.numel(), width)
        out[f"{path}.weight.codes"] = LazyTensor(torch.Size([size]), torch.uint8, load)
        state[f"{path}.weight.step"] = step
    for path, spec in activations(description):
        if spec.get("first") is not None:
            del state[f"{path}.scale.knots"]  # consecutive integers
    return out | {
        name: LazyTensor(tensor.shape, tensor.dtype, partial(_plain, tensor))
        for name, tensor in state.items()
    }


def pack_tensors(state: Mapping[str, Tensor], description: Description) -> dict[str, Tensor]:
    """The tensors to store for a frozen model's state dict, on the CPU, none sharing memory.

    Raises:
        FreezeError: A weight was changed after freezing and does not lie on its grid.
    """
    found = stored_tensors(state, description)
    return unshared({name: tensor.load() for name, tensor in found.items()})


def _plain(tensor: Tensor) -> Tensor:
    return tensor.cpu().contiguous()


def _packed_multipliers(groups: Groups, bits: int) -> LazyTensor:
    m, width = groups.multipliers, MULTIPLIER_BITS[bits]
    size = torch.Size([packed_bytes(m.numel(), width)])
    return LazyTensor(size, torch.uint8, lambda: pack(m, 1, width).cpu())


def _pack_weight(
    weight: Tensor, step: Tensor, grid: Grid, groups: Groups | None, width: int, path: str
) -> Tensor:
    """Packs a weight, given as numbers or codes, by blocks of rows. A block has a multiple of 8
    rows, and so whole bytes.
    """
    rows = weight.reshape(len(weight), math.prod(weight.shape[1:]))
    steps = step.expand(len(rows)) if step.ndim else step
    parts = []
    for block in row_blocks(rows):
        codes, own = rows[block], groups and groups.of(block)
        if codes.is_floating_point():
            quantizer = FrozenWeight(grid, steps[block] if step.ndim else steps, own)
            codes = quantizer.codes(codes, path)
        if own is not None:
            codes = codes.div(own.spread(codes), rounding_mode="trunc")
        parts.append(pack(codes, grid.qmin, grid.bits, width).cpu())
    return torch.cat(parts)
