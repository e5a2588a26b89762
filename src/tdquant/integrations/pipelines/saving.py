"""What the parts of a folder are written by."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tdquant.errors import StorageError
from tdquant.integrations.pipelines.layout import CONFIG


@contextlib.contextmanager
def saving(file: Path) -> Iterator[None]:
    """Raises StorageError where OpenVINO cannot write: it says no more than that it could not."""
    try:
        yield
    except RuntimeError as error:
        raise StorageError(
            "OpenVINO cannot write the graph",
            where=str(file),
            why=str(error).strip().splitlines()[-1],
            fix="a disk with room, and a folder that may be written",
        ) from error


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Writes the configuration of a part."""
    text = json.dumps(dict(config), indent=2, sort_keys=True)
    (folder / CONFIG).write_text(text + "\n")
