"""Model families: the names of layers and of the timestep. Names only; no model is imported.

A family gives glob patterns over module paths for the first and last layers and for those that
embed the time: the layers that low bit widths break in any model. A model that no family lists
gets ``GENERIC``, the union of the usual names.
"""

from __future__ import annotations

from torch import nn

from tdquant.families.base import GENERIC, Family
from tdquant.families.transformers import TRANSFORMERS
from tdquant.families.unets import UNETS

__all__ = ["FAMILIES", "GENERIC", "Family", "family_of"]

FAMILIES: list[Family] = [*UNETS, *TRANSFORMERS]


def family_of(model: nn.Module) -> Family:
    """The family that lists the model's class or one of its bases, or GENERIC."""
    names = {cls.__name__ for cls in type(model).__mro__}
    return next((family for family in FAMILIES if names & set(family.classes)), GENERIC)
