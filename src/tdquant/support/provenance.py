"""The history of a quantized model: what was done to it, in order, with the facts of each step.

It is saved with the model and shown on its model card.
"""

from __future__ import annotations

from typing import Any

from torch import nn


def note(model: nn.Module, step: str, **facts: Any) -> None:
    """Appends one step to the history of a model.

    Arguments:
        model: The root model.
        step: What was done: ``"calibrate"``, ``"reconstruct"``, ``"evaluate"``.
        facts: JSON-safe facts about it.
    """
    model.tdq_history = [*history(model), {"step": step, **facts}]  # type: ignore[assignment]


def history(model: nn.Module) -> list[dict[str, Any]]:
    """The steps so far, oldest first."""
    found: Any = getattr(model, "tdq_history", [])
    return list(found)
