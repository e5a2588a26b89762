"""What a user may give in the place of a denoiser: what holds it, makes it or wraps it."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from tdquant.errors import ConversionError

_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)
_PARTS = ("unet", "transformer", "prior")


def check_denoiser(model: Any, verb: str = "") -> None:
    """Checks that a model is a module itself, whose parameters have their shapes: not a pipeline,
    a class, nor what torch.compile or data parallelism puts around one, whose ``forward`` shows no
    timestep.

    Raises:
        ConversionError: It is one of these; the fix names what to give instead.
    """
    name, what, fix = type(model).__name__, "", ""
    if isinstance(model, type):
        what, fix = f"{model.__name__} is a class, no model", f"an instance: {model.__name__}(...)"
    elif not isinstance(model, nn.Module):
        what = f"a {name} is no torch.nn.Module"
        found = [part for part in _PARTS if isinstance(getattr(model, part, None), nn.Module)]
        fix = f"its denoiser: pipe.{found[0]}" if found else "the denoiser itself"
    elif isinstance(model, _PARALLEL):
        what = f"{name} hides the arguments of the model in it"
        fix = "model.module, and wrap it again afterwards"
    elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
        what = "torch.compile hides the arguments of the model in it"
        fix = "model._orig_mod, and compile it again afterwards"
    elif any(is_lazy(parameter) for parameter in model.parameters()):
        what, fix = f"{name} has lazy parameters, without a shape", "call the float model once"
    if what:
        raise ConversionError(what, where=verb, fix=fix)
