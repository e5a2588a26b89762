"""Optional packages, imported when first needed; errors name the extra that installs them."""

from __future__ import annotations

import functools
import importlib
import re
from importlib import metadata
from types import ModuleType

from tdquant.errors import MissingDependencyError


def require(module: str, extra: str) -> ModuleType:
    """Imports ``module``, which the extra ``tdquant[extra]`` installs.

    Raises:
        MissingDependencyError: The package cannot be imported, or is too old.
    """
    fix = f'pip install "tdquant[{extra}]"'
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"the package {module!r} cannot be imported", why=str(error), fix=fix
        ) from error
    minimum = _minimum(module)
    version = str(getattr(found, "__version__", "")) if minimum else ""
    if _numbers(version) and _numbers(version) < _numbers(minimum):
        raise MissingDependencyError(
            f"{module} {version} is older than {minimum}", fix=f"{fix} --upgrade"
        )
    return found


@functools.cache
def _minimum(package: str) -> str:
    """The lowest version of a package that an extra asks for, such as ``"2025.0"``, or empty."""
    try:
        requirements = metadata.requires("tdquant") or []
    except metadata.PackageNotFoundError:  # a source tree that was not installed
        return ""
    found = [re.match(rf"{re.escape(package)}\s*>=\s*([\d.]+)", line) for line in requirements]
    return next((match[1] for match in found if match), "")


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version, without zeros behind them."""
    match = re.match(r"[\d.]*", version)
    numbers = [int(part) for part in match[0].split(".") if part] if match else []
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)
