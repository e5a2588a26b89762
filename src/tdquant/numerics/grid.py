r"""Integer grids: which codes a b-bit quantizer has, and which of them is real zero.

    q = clip(round(x / s) + z, qmin, qmax),    x_hat = s (q - z)

``z`` is an integer, so real zero is always on the grid: convolutions pad with zeros. Counted from
zero the codes reach from ``low = qmin - z`` to ``high = qmax - z``, and the same formula reads

    x_hat = s clip(round(x / s), low, high)

which is the form that the fake quantizers compute.

References:
    Jacob et al., Quantization and Training of Neural Networks for Efficient
    Integer-Arithmetic-Only Inference, 2018 (https://arxiv.org/abs/1712.05877).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tdquant.errors import RecipeError

MIN_BITS, MAX_BITS = 2, 16


@dataclass(frozen=True)
class Grid:
    """The codes ``qmin .. qmax`` and the code ``zero_point`` of real zero.

    Arguments:
        bits: Width b, 2 to 16.
        qmin: Smallest code.
        qmax: Largest code.
        zero_point: Code z of real zero, within ``[qmin, qmax]``.

    Raises:
        RecipeError: The width is out of range, or zero is off the grid.
    """

    bits: int
    qmin: int
    qmax: int
    zero_point: int = 0

    def __post_init__(self) -> None:
        if not MIN_BITS <= self.bits <= MAX_BITS:
            raise RecipeError(
                f"{self.bits} bits",
                where="Grid",
                fix=f"{MIN_BITS} to {MAX_BITS} bits, or 32 for float",
            )
        if not self.qmin <= self.zero_point <= self.qmax:
            raise RecipeError(
                f"zero point {self.zero_point} outside [{self.qmin}, {self.qmax}]",
                where="Grid",
                why="convolutions pad with real zero, which must be a code",
            )

    @classmethod
    def signed(cls, bits: int, narrow: bool = False) -> Grid:
        """Symmetric codes around zero: ``2^b`` of them, or ``2^b - 1`` without the lowest
        (narrow).
        """
        half = 2 ** (bits - 1) if bits > 0 else 0
        return cls(bits, -half + int(narrow), half - 1)

    @classmethod
    def affine(cls, bits: int, zero_point: int) -> Grid:
        """Codes ``0 .. 2^b - 1`` with real zero at ``zero_point``."""
        return cls(bits, 0, 2**bits - 1, zero_point)

    def with_zero(self, zero_point: int) -> Grid:
        """The same codes with another zero point."""
        return replace(self, zero_point=zero_point)

    @property
    def low(self) -> int:
        """Lowest code counted from zero, at most 0."""
        return self.qmin - self.zero_point

    @property
    def high(self) -> int:
        """Highest code counted from zero, at least 0."""
        return self.qmax - self.zero_point

    @property
    def codes(self) -> int:
        """Number of codes."""
        return self.qmax - self.qmin + 1
