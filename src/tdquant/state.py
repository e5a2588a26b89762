"""What tdquant knows about a model: ``model.tdq``, the one attribute that verbs leave on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn


@dataclass
class ModelState:
    """The state of a root model, as ``model.tdq``.

    Reports describe work on this very module: copies, frozen ones included, and pickles start
    without them.

    Attributes:
        clock: The ``Clock`` of a quantized model, None of a float one.
        recipe: The ``Recipe`` that quantized it, or None.
        roles: The ``Roles`` of its layers by data flow, from ``tdq.calibrate``; None before.
        remedies: The ``RemedyRecord`` of ``tdq.calibrate``; saved with the model.
        history: What was done to it, oldest first, each step a JSON-safe dictionary. It is saved
            with the model and shown on its model card.
        balance: Path of every balanced layer -> its alpha, from ``tdq.balance``.
        calibration: The ``Calibration`` of ``tdq.calibrate``.
        reconstruction: The ``Reconstruction`` of ``tdq.reconstruct``.
        training: The ``Training`` of ``tdq.train``.
    """

    clock: Any = None
    recipe: Any = None
    roles: Any = None
    remedies: Any = None
    history: list[dict[str, Any]] = field(default_factory=list)
    balance: dict[str, float] | None = None
    calibration: Any = None
    reconstruction: Any = None
    training: Any = None

    def __getstate__(self) -> dict[str, Any]:
        kept = ("clock", "recipe", "roles", "remedies", "history")
        return dict.fromkeys(self.__dict__) | {name: self.__dict__[name] for name in kept}


def state_of(model: nn.Module) -> ModelState:
    """The state of a model, a new one if it has none."""
    state = getattr(model, "tdq", None)
    if not isinstance(state, ModelState):
        state = ModelState()
        model.tdq = state  # type: ignore[assignment]
    return state


def recipe_of(model: nn.Module) -> Any:
    """The recipe that a model was quantized by, or None."""
    state = getattr(model, "tdq", None)
    return state.recipe if isinstance(state, ModelState) else None


def note(model: nn.Module, step: str, **facts: Any) -> None:
    """Appends one step to the history of a model.

    Arguments:
        model: The root model.
        step: What was done: ``"calibrate"``, ``"reconstruct"``, ``"evaluate"``.
        facts: JSON-safe facts about it.
    """
    state = state_of(model)
    state.history = [*state.history, {"step": step, **facts}]


def seen_times(model: nn.Module) -> tuple[float, float] | None:
    """Lowest and highest time that the latest calibration saw; None where it is not known, or was
    told the model's times.
    """
    done = [step for step in history(model) if step.get("step") == "calibrate"]
    match done[-1] if done else {}:
        case {"time range": _}:
            return None
        case {"times": [int() | float() as low, int() | float() as high]}:
            return low, high
    return None


def history(model: nn.Module) -> list[dict[str, Any]]:
    """The steps so far, oldest first."""
    state = getattr(model, "tdq", None)
    return list(state.history) if isinstance(state, ModelState) else []
