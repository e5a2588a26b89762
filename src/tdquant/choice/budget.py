"""What remedies may cost."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from tdquant.errors import RecipeError


@dataclass(frozen=True)
class Budget:
    """What calibration may spend beside what the recipe says.

    Arguments:
        protection: Largest share of a call's multiply-accumulates whose inputs get 8 bits where
            the recipe has fewer; inputs of 8 bits are left in float at three times their share.

    Raises:
        RecipeError: A share is out of range.
    """

    protection: float = 0.03

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (isinstance(value, (int, float)) and math.isfinite(value) and 0 <= value <= 1):
                raise RecipeError(
                    f"{field.name}={value!r}", where="Budget", fix="a share, from 0 to 1"
                )
