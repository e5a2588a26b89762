r"""The time of a call by a model of its cost, in multiply-accumulates.

    time = \sum_l c_l n_l / \sum_l 3 n_l

with n_l the multiply-accumulates of a layer, and c_l = 1 if weight and input have codes of up to 8
bits, else 3: engines multiply int8 about three times as fast as floats. Products of attention,
norms and activations are left out. It is a model: ``tdquant bench`` measures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn

from tdquant.calibration.protection import FLOAT_COST, WIDE
from tdquant.choice.apart import Apart, refuse
from tdquant.layers import QUANTIZED, QuantLayer
from tdquant.quantizers import ActivationQuantizer
from tdquant.recipe import Recipe


def layer_macs(model: nn.Module, macs: Mapping[str, int]) -> dict[str, int]:
    """Multiply-accumulates of the layers that a model has now: those of rewritten layers are
    divided among their parts by numbers of weights, and those that only the observed model had are
    left out.

    Arguments:
        model: A quantized model.
        macs: What ``observe`` counted.
    """
    found: dict[str, int] = {}
    modules = dict(model.named_modules())
    for path, count in macs.items():
        parts = dict(_plain(path, modules[path])) if path in modules else {}
        whole = sum(parts.values())
        found |= {part: round(count * weights / whole) for part, weights in parts.items()}
    return found


def time_share(model: nn.Module, macs: Mapping[str, int]) -> float:
    """The time of a call, as a share of the float model's; 1 if nothing was counted.

    Arguments:
        model: A quantized model.
        macs: What ``layer_macs`` gave.
    """
    whole = FLOAT_COST * sum(macs.values())
    return sum(_costs(model, macs).values()) / whole if whole else 1.0


def spare_time(
    model: nn.Module, macs: Mapping[str, int], recipe: Recipe, budget: float | None
) -> float:
    """Time that protected inputs may take beyond that of the model as it is.

    Arguments:
        model: A quantized model.
        macs: What ``observe`` counted.
        recipe: Its recipe.
        budget: Share of the float model's time, or None for no limit.

    Raises:
        RecipeError: The model as it is takes more.
    """
    if budget is None:
        return float("inf")
    macs = layer_macs(model, macs)
    least, whole = time_share(model, macs), FLOAT_COST * sum(macs.values())
    if least <= budget:
        return budget - least
    apart, parts = Apart(model, recipe), dict[str, dict[str, float]]()
    for path, cost in _costs(model, macs).items():
        why = "in 8 bits or fewer"
        if cost > macs[path]:
            why = apart.why(path, "weights", "activations") or f"more than {WIDE} bits"
        parts.setdefault(why, {})[path] = cost / whole
    of = "the float model's time, by multiply-accumulates"
    fix = f"{WIDE} bits or fewer for weights and inputs of these layers (edges=8, overrides=)"
    raise refuse("time", budget, least, of, parts, fix)


def _plain(path: str, module: nn.Module) -> Iterator[tuple[str, int]]:
    """The plain layers in a module, and their numbers of weights."""
    if isinstance(module, QuantLayer) or type(module) in QUANTIZED:
        held = module._parameters.get("codes", module._parameters.get("weight"))
        yield path, 1 if held is None else held.numel()
        return
    for name, part in module.named_children():
        yield from _plain(f"{path}.{name}", part)


def _costs(model: nn.Module, macs: Mapping[str, int]) -> dict[str, float]:
    return {
        path: count * (1.0 if _narrow(model.get_submodule(path)) else FLOAT_COST)
        for path, count in macs.items()
    }


def _narrow(layer: nn.Module) -> bool:
    """Whether engines multiply codes of int8."""
    if not isinstance(layer, QuantLayer):
        return False
    grid = getattr(layer.weight_quantizer, "grid", None)
    inputs = layer.input_quantizer
    narrow = isinstance(inputs, ActivationQuantizer) and inputs.grid.bits <= WIDE
    return narrow and grid is not None and grid.bits <= WIDE
