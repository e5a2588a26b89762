"""Model families: what the layers and the timestep are called. Names only; nothing is imported.

A family says by glob patterns over module paths which layers come first and last and which embed
the time: those are the ones that low bit widths break, whatever the model. A model that no family
lists gets ``GENERIC``, the union of the usual names.
"""

from __future__ import annotations

from torch import nn

from tdquant.families.base import GENERIC, Family
from tdquant.families.transformers import TRANSFORMERS
from tdquant.families.unets import UNETS
from tdquant.families.videos import VIDEOS

__all__ = ["FAMILIES", "GENERIC", "Family", "family_of"]

FAMILIES: list[Family] = [*UNETS, *TRANSFORMERS, *VIDEOS]


def family_of(model: nn.Module) -> Family:
    """The family that lists the model's class or one of its bases, or GENERIC."""
    names = {cls.__name__ for cls in type(model).__mro__}
    return next((family for family in FAMILIES if names & set(family.classes)), GENERIC)
