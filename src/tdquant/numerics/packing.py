"""Packing integer codes into bytes: two a byte up to 4 bits, four up to 2, one or two bytes a code
above.

Codes are stored as offsets from the lowest one, little end first, and padded with zeros to whole
bytes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tdquant.errors import StorageError


def code_bits(bits: int) -> int:
    """Bits that one stored code takes: 2, 4, 8 or 16."""
    return next(width for width in (2, 4, 8, 16) if bits <= width)


def code_dtype(bits: int) -> torch.dtype:
    """The smallest integers that hold the codes of a symmetric grid."""
    return torch.int8 if bits <= 8 else torch.int16


def pack(codes: Tensor, qmin: int, bits: int) -> Tensor:
    """Integer codes of any shape as flat uint8.

    Raises:
        StorageError: A code does not fit ``bits`` bits.
    """
    codes = codes.flatten()
    if codes.numel():
        least, most = (int(code) for code in codes.aminmax())
        if least < qmin or most - qmin >= 2**bits:
            raise StorageError(f"codes outside {bits} bits", where="pack")
    width = code_bits(bits)
    if width == 16:
        offset = codes.to(torch.int32) - qmin
        return torch.stack([offset & 0xFF, offset >> 8], dim=1).flatten().to(torch.uint8)
    # In bytes, which wrap around as two's complement does.
    offset = codes.to(torch.uint8).sub_(qmin % 256)
    if width == 8:
        return offset
    each = 8 // width
    padded = torch.cat([offset, offset.new_zeros(-len(offset) % each)]).reshape(-1, each)
    packed = padded[:, 0].clone()
    for place in range(1, each):
        packed |= padded[:, place] << (place * width)
    return packed


def unpack(
    data: Tensor,
    shape: torch.Size | tuple[int, ...],
    qmin: int,
    bits: int,
    dtype: torch.dtype = torch.int32,
) -> Tensor:
    """The codes of ``shape`` that ``pack`` stored, in a ``dtype`` that holds them.

    Raises:
        StorageError: The number of bytes does not fit the shape.
    """
    count = 1
    for side in shape:
        count *= side
    width = code_bits(bits)
    if data.dtype != torch.uint8 or data.numel() != -(-count * width // 8):
        raise StorageError(
            f"{data.numel()} bytes of {data.dtype} for {count} codes of {bits} bits",
            why="the file was changed or cut",
        )
    if width == 16:
        wide = data.to(torch.int32)
        offset = wide[0::2] | (wide[1::2] << 8)
        return (offset[:count] + qmin).to(dtype).reshape(tuple(shape))
    # In bytes, which wrap around as two's complement does: the rest would take 16 times as much.
    shifts = torch.arange(8 // width, dtype=torch.uint8, device=data.device) * width
    offset = (data[:, None] >> shifts).bitwise_and_(2**width - 1).flatten()[:count]
    if qmin >= -128 and qmin + 2**bits - 1 <= 128:  # 128 is no code of a narrow grid
        return offset.add_(qmin % 256).view(torch.int8).reshape(tuple(shape)).to(dtype)
    return (offset.to(torch.int32) + qmin).to(dtype).reshape(tuple(shape))
