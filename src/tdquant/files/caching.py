"""The cache folder, for what can be computed or downloaded again: features, weights."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """``$TDQUANT_CACHE``, else ``tdquant`` below ``$XDG_CACHE_HOME`` or ``~/.cache``, or below the
    system's folder for temporary files where there is no home directory.
    """
    own = os.environ.get("TDQUANT_CACHE")
    if own:
        return Path(own)
    # ``Path.home`` raises where there is none; this leaves the ``~``.
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(tempfile.gettempdir() if caches.startswith("~") else caches) / "tdquant"
