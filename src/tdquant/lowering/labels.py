"""Words of the layer table: names of kernels, and reasons why a layer does not run as integers."""

from __future__ import annotations

from typing import Final

INT8: Final = "int8"
FP8: Final = "fp8"
ONEDNN: Final = "int8 onednn"
EXACT: Final = "exact integers"
FLOAT: Final = "float"
FLOAT64: Final = "float64"
SIMULATED: Final = "simulated"
UNTRIED: Final = "untried"

FLOAT_OPERAND: Final = "one operand is float"
WIDE_CODES: Final = "codes of more than 8 bits"
WIDE_SUMS: Final = "sums of its products do not fit 32 bits"
OFFSET_CODES: Final = "a code stands for no real zero"
UNSIGNED_CODES: Final = "the second operand is unsigned"
GROUPED: Final = "a convolution in groups"
SATURATES: Final = "8-bit sums saturate without VNNI"
NO_OPERATORS: Final = "oneDNN has no int8 operators here"
BEYOND: Final = "a border as wide as the window"
NO_PRIMITIVE: Final = "oneDNN has no operator for its sizes"
AT_FIRST_CALL: Final = "chosen at the first call, or compile(example=)"
