"""Adapters that other libraries have put into a model, found by the names of modules."""

from __future__ import annotations

from torch import nn

from tdquant.errors import BackendError, ConversionError

PEFT = "a model with adapters of peft"
IMAGE = "a model with an IP-Adapter"

_WEIGHT_READERS = (".lora_magnitude_vector.", ".hada_", ".lokr_")
"""Parts of the names of parameters of DoRA, LoHa and LoKr."""


def adapters_of(model: nn.Module) -> tuple[str, str] | None:
    """What kind of adapter a model has, and the path of the first layer with one, or None."""
    for path, module in model.named_modules():
        if path.endswith(".base_layer"):
            return PEFT, path.removesuffix(".base_layer")
        if "IPAdapter" in type(module).__name__:
            return IMAGE, path
    return None


def refuse_peft(model: nn.Module, why: str, verb: str) -> None:
    """Raises ConversionError for a model with adapters of peft.

    Arguments:
        model: The model.
        why: What is wrong with that.
        verb: The call that refuses it: ``"tdq.quantize"``.
    """
    found = adapters_of(model)
    if found is not None and found[0] is PEFT:
        raise ConversionError(
            PEFT,
            where=found[1],
            why=why,
            fix=f"pipe.fuse_lora(), pipe.unload_lora_weights(), then {verb}; or load the adapter "
            "afterwards, as a float branch",
        )


def widened_layer(model: nn.Module) -> str | None:
    """The path of a layer that a control LoRA made wider than the configuration of the model says,
    or None: diffusers keeps the weight that it replaced.
    """
    for name, weight in (getattr(model, "_overwritten_params", None) or {}).items():
        path, _, kind = name.rpartition(".")
        if kind == "weight" and model.get_submodule(path).weight.shape != weight.shape:  # type: ignore[union-attr]
            return path
    return None


def refuse_weight_readers(model: nn.Module, backend: str) -> None:
    """Raises BackendError for adapters that compute with the weight below them, or with its shape:
    layers of this backend do not keep it.
    """
    for name, _ in model.named_parameters():
        if any(part in name for part in _WEIGHT_READERS):
            raise BackendError(
                "an adapter that reads the weight below it cannot be compiled",
                where=name,
                why=f"layers of backend {backend!r} keep codes alone",
                fix='fuse it, or backend="reference"',
            )
