r"""The reference backend: exact integer arithmetic, slow and right, what every other backend is
compared with.

Codes are whole numbers held in float64. A product of two 16-bit codes is below 2^30, so any sum of
fewer than 2^23 of them is below 2^53 and exact, whatever the order of summation. Only the two
scales and the bias round.
"""

from __future__ import annotations

from torch import Tensor, nn

from tdquant.lowering import labels
from tdquant.lowering.operation import Operation
from tdquant.lowering.products import register_product


@register_product("reference")
class ExactProduct(nn.Module):
    """Sums of products in float64; the other operand may stay in float.

    Arguments:
        operation: Any.
    """

    weight: Tensor

    def __init__(self, operation: Operation) -> None:
        super().__init__()
        codes = operation.inputs is not None and operation.step is not None
        self.name, self.geometry = labels.EXACT if codes else labels.FLOAT64, operation.geometry
        self.register_buffer("weight", operation.weight)

    def forward(self, q: Tensor) -> Tensor:
        """The sums, whole numbers wherever both operands are codes."""
        return self.geometry.convolve(q.double(), self.weight.double())
