"""``save``: writes a frozen model's description and tensors, both or neither."""

from __future__ import annotations

import json
import os
from pathlib import Path

from torch import nn

from tdquant.models import build
from tdquant.storage.description import describe, pack_tensors
from tdquant.storage.files import FORMAT, INDEX, TENSORS, VERSION
from tdquant.writing import replacing_folder, write_tensors


def save(model: nn.Module, directory: str | os.PathLike[str]) -> Path:
    """Saves a frozen model to a folder, all of it or nothing.

    Arguments:
        model: What ``freeze`` returned.
        directory: Folder to write; an earlier save there is replaced.

    Returns:
        The folder.

    Raises:
        FreezeError: The model is not frozen.
        StorageError: The folder holds something else than a saved model.
    """
    description = describe(model)
    tensors = pack_tensors(model.state_dict(), description)
    index = {
        "format": FORMAT,
        "version": VERSION,
        "model": build.description(model),
        **description,
        "tensors": sorted(tensors),
    }
    with replacing_folder(directory, INDEX) as fresh:
        write_tensors(tensors, fresh / TENSORS, metadata={"format": "pt"})
        (fresh / INDEX).write_text(json.dumps(index, indent=1) + "\n")
    return Path(directory)
