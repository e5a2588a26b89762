"""Errors that carry their whole context: what happened, where, why, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable


class TDQError(Exception):
    """Base of every error that tdquant raises on purpose.

    Arguments:
        what: The fact, one clause: ``"the model was called without a timestep"``.
        where: The module path, file or argument that it concerns.
        why: The rule that it breaks, if that is not obvious from ``what``.
        fix: What the reader can do now.
    """

    def __init__(self, what: str, *, where: str = "", why: str = "", fix: str = "") -> None:
        self.what, self.where, self.why, self.fix = what, where, why, fix
        lines = [f"{what} [{where}]" if where else what]
        if why:
            lines.append(f"  why: {why}")
        if fix:
            lines.append(f"  fix: {fix}")
        super().__init__("\n".join(lines))


class ClockError(TDQError):
    """The current timestep is missing, of a wrong shape, or cannot be found in a call."""


class RecipeError(TDQError):
    """A recipe asks for something that cannot be done; every mistake is listed."""


class ConversionError(TDQError):
    """A model cannot be quantized as it stands."""


class CalibrationError(TDQError):
    """Scales cannot be estimated, or are used before they were."""


class FreezeError(TDQError):
    """A model cannot be frozen, or a frozen model is asked for what it no longer knows."""


class StorageError(TDQError):
    """A saved model is missing, truncated, foreign, of a newer format, or does not fit."""


class BackendError(TDQError):
    """A backend is unknown, unavailable here, or cannot run the model exactly."""


class ExportError(TDQError):
    """A model cannot become a graph of another engine, or such a file cannot be used."""


class EngineAttributeError(ExportError, AttributeError):
    """A model that another engine runs is asked for what only the model in torch has."""


class DataError(TDQError):
    """A data set or a batch is empty, unreadable, or of an unexpected form."""


class ConfigError(TDQError):
    """A configuration file is missing, malformed, or has keys that nothing reads."""


class ModelError(TDQError):
    """A model or scheduler name is unknown, or its configuration cannot be used."""


class TrainingError(TDQError):
    """Training cannot start, or met a loss or a gradient that is not finite."""


class MissingDependencyError(TDQError, ImportError):
    """An optional package is not installed; the extra that brings it is named."""


def raise_collected(
    error: type[TDQError],
    mistakes: Iterable[str],
    place: str,
    most: int | None = None,
    *,
    where: str = "",
    why: str = "",
    fix: str = "",
) -> None:
    """Raises one error that lists all mistakes; does nothing where there are none.

    Arguments:
        error: What to raise.
        mistakes: One clause each.
        place: What they are in, such as ``"the recipe"`` or the name of a file.
        most: Number of mistakes to list before the rest are counted; None lists all.
        where: As for ``TDQError``, likewise ``why`` and ``fix``.
    """
    listed = list(mistakes)
    if not listed:
        return
    count = f"{len(listed)} mistake{'s' * (len(listed) > 1)}"
    lines = [f"{count} in {place} [{where}]:" if where else f"{count} in {place}:", *listed[:most]]
    if most is not None and len(listed) > most:
        lines.append(f"and {len(listed) - most} more")
    collected = error("\n  - ".join(lines), why=why, fix=fix)
    collected.where = where
    raise collected


def first_line(error: BaseException) -> str:
    """The first line of what another library says, or the error's class where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
