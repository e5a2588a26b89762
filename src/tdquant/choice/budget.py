"""What remedies may cost."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, fields

from tdquant.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What calibration may spend beside what the recipe says.

    Arguments:
        protection: Largest share of a call's multiply-accumulates whose inputs get 8 bits where
            the recipe has fewer; inputs of 8 bits are left in float at three times their share.
        rotation: Largest share of the time of a call that rotations of inputs take, by additions,
            three times as long as multiply-accumulates of 8 bits. Those of layers that see one row
            a sample are not counted.
        dynamic: Largest share of the time of a call that steps computed from inputs take: each
            value of a token counts as 17 multiply-accumulates of 8 bits, each of a sample as 40.
        size: Largest share of the model's float32 bytes that the file of its tensors may have, as
            ``tdq.save`` writes it, tables of scales included. Bits of weights, 3, 4, 5, 6 or 8,
            are then chosen layer by layer, by what their rounding does to the output; the recipe's
            are the start. Layers that it sets apart (edges, time path, overrides) keep theirs.
        time: Largest share of the float model's time of a call, which bounds how many inputs are
            protected by leaving them in float. The time is that of a model: multiply-accumulates,
            three times as long in float as with codes of 8 bits or fewer; ``tdquant bench``
            measures.

    Raises:
        RecipeError: A share is out of range.
    """

    protection: float = 0.03
    rotation: float = 0.03
    dynamic: float = 0.03
    size: float | None = None
    time: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.default is None:
                continue
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not (number and math.isfinite(value) and 0 <= value <= 1):
                raise RecipeError(
                    f"{field.name}={value!r}", where="Budget", fix="a share, from 0 to 1"
                )

    @classmethod
    def from_text(cls, text: str) -> Budget:
        """The budget of words such as ``"size=0.15,time=0.5"``.

        Raises:
            RecipeError: A word is misspelt, occurs twice, or is no share.
        """
        names = [field.name for field in fields(cls)]
        found: dict[str, float] = {}
        for word in text.split(","):
            name, _, value = (part.strip() for part in word.partition("="))
            fix = "as in size=0.15,time=0.5,protection=0.02"
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                fix = f"{near[0]}=" if near else f"one of {', '.join(names)}, {fix}"
                raise RecipeError(f"no budget {name!r}", where=repr(text), fix=fix)
            if name in found:
                raise RecipeError(f"{name} twice", where=repr(text), fix="each of them once")
            try:
                found[name] = float(value)
            except ValueError:
                raise RecipeError(f"{name}={value!r} is no number", where=repr(text), fix=fix)  # noqa: B904
        return cls(**found)
