"""Optional packages, imported when first needed and asked for by name when they are absent."""

from __future__ import annotations

import importlib
from types import ModuleType

from tdquant.errors import MissingDependencyError


def require(module: str, extra: str) -> ModuleType:
    """Imports ``module``, which the extra ``tdquant[extra]`` installs.

    Raises:
        MissingDependencyError: The package cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"the package {module!r} cannot be imported",
            why=str(error),
            fix=f'pip install "tdquant[{extra}]"',
        ) from error
