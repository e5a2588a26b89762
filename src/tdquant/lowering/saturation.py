r"""When integer kernels of x86 give wrong sums.

Without VNNI they add each pair of products of uint8 with int8 in int16, which saturates. A layer
is safe if no pair can leave it,

    2 max q max |q_w| < 2^15

with q counted from the lowest code. Activations of 8 bits are safe with weights within +-64, so
with any of 7 bits or fewer; activations of 7 bits or fewer are safe with any weights of 8.
"""

from __future__ import annotations

LIMIT = 2**15
"""What int16 cannot hold."""


def saturates(codes: int, largest: int) -> bool:
    """Whether a pair of products can leave int16.

    Arguments:
        codes: Number of codes of the activation.
        largest: Highest ``|q_w|`` of the layer's weight.
    """
    return 2 * (codes - 1) * largest >= LIMIT
