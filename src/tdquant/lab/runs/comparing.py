"""What a folder was made with, compared with what it is asked for now."""

from __future__ import annotations

from typing import Any


def differences(before: Any, now: Any, path: str = "") -> list[str]:
    """``"path: before, now value"`` for every leaf of two nested dictionaries that differs."""
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            line
            for key in sorted(before.keys() | now.keys())
            for line in differences(
                before.get(key), now.get(key), f"{path}.{key}" if path else str(key)
            )
        ]
    return [] if before == now else [f"{path}: {before}, now {now}"]
