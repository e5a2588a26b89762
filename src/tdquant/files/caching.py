"""The cache folder, for what can be computed or downloaded again: features, weights."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$TDQUANT_CACHE``, else ``tdquant`` below ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    own = os.environ.get("TDQUANT_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tdquant"
