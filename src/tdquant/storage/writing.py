"""``save``: writes the description and the tensors of a frozen model, both or neither."""

from __future__ import annotations

import hashlib
import json
import os
from functools import partial
from pathlib import Path

from torch import nn

from tdquant.errors import FreezeError
from tdquant.files.checkpoints.safetensors_format import write_safetensors
from tdquant.files.digests import add_tensor
from tdquant.files.documents import json_safe
from tdquant.files.writing import replacing_folder
from tdquant.models import build
from tdquant.storage.description import describe
from tdquant.storage.files import FORMAT, INDEX, TENSORS, VERSION
from tdquant.storage.stored import stored_tensors
from tdquant.support.adapters import PEFT, adapters_of, widened_layer
from tdquant.support.hooks import check_readable


def save(model: nn.Module, directory: str | os.PathLike[str]) -> Path:
    """Saves a frozen model to a folder, all of it or nothing.

    Tensors are packed and written one by one, in little memory beside that of the model.

    Arguments:
        model: What ``freeze`` returned.
        directory: Folder to write; an earlier save there is replaced, other files beside it stay.

    Returns:
        The folder.

    Raises:
        FreezeError: The model is not frozen, or it was compiled, or it has adapters.
        ConversionError: Its weights are offloaded to the disk, or by accelerate.
        StorageError: The folder holds something else than a saved model, or cannot be written:
            the disk is full or read-only. An earlier save there is then as it was.
    """
    refuse_others(model)
    description = describe(model)
    tensors = stored_tensors(model.state_dict(), description)
    digest = hashlib.sha256()
    own = {INDEX, TENSORS}.__contains__
    with replacing_folder(directory, INDEX, own) as fresh:
        write_safetensors(
            tensors, fresh / TENSORS, {"format": "pt"}, written=partial(add_tensor, digest)
        )
        index = {
            "format": FORMAT,
            "version": VERSION,
            "model": build.description(model),
            **description,
            "tensors": sorted(tensors),
            "digest": digest.hexdigest(),
        }
        text = json.dumps(json_safe(index), indent=1, allow_nan=False)
        (fresh / INDEX).write_text(text + "\n", "utf-8")
    return Path(directory)


def refuse_others(model: nn.Module) -> None:
    """Raises FreezeError for frozen models that cannot be rebuilt from a file, ConversionError for
    those whose weights are offloaded and cannot be read.
    """
    check_readable(model, "saving")
    found, wide, where = adapters_of(model), widened_layer(model), type(model).__name__
    if hasattr(model, "tdq_backend"):
        what, fix = (
            "a compiled model",
            "save the frozen model that was compiled",
        )
    elif hasattr(model, "_orig_mod"):
        what, fix = "a model of torch.compile", "tdq.save(model._orig_mod, ...)"
    elif found is not None:
        what, where = found[0], f"{where}.{found[1]}"
        fix = "pipe.unload_ip_adapter(), and load it again beside what was saved"
        if what is PEFT:
            fix = "pipe.unload_lora_weights(), after pipe.fuse_lora() to keep them"
    elif wide is not None:
        what, where = "a model that a control LoRA made wider", f"{where}.{wide}"
        fix = "pipe.unload_lora_weights(reset_to_overwritten_params=True)"
    else:
        return
    raise FreezeError(f"{what} cannot be saved", where=where, fix=fix)
