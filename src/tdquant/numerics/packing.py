r"""Packing integer codes into bytes: b bits a code up to 8, one after the other without gaps, and
two bytes a code above.

Codes are stored as offsets from the lowest one. Offset i is bits ``b i .. b i + b - 1`` of one
long number, least significant bits and bytes first, padded with zeros to whole bytes:

    \sum_i (q_i - q_min) 2^{b i}

Eight codes of b bits are b bytes, or one 64-bit word while they are moved together: three times,
the upper half of every lane (of 16, 32 and 64 bits) goes down to meet the lower one, or comes
back.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tdquant.errors import StorageError

_BLOCK = 1 << 15
"""Words of 8 codes that are moved at once: they fit a second-level cache."""


def stored_bits(bits: int) -> int:
    """Bits that one stored code takes: as many as it has up to 8, else 16."""
    return bits if bits <= 8 else 16


def aligned_bits(bits: int) -> int:
    """Bits that one code took in files of version 1: 2, 4, 8 or 16."""
    return next(width for width in (2, 4, 8, 16) if bits <= width)


def packed_bytes(count: int, width: int) -> int:
    """Bytes of so many codes that take ``width`` bits each."""
    return -(-count * width // 8)


def code_dtype(bits: int) -> torch.dtype:
    """The smallest integers that hold the codes of a symmetric grid."""
    return torch.int8 if bits <= 8 else torch.int16


def pack(codes: Tensor, qmin: int, bits: int, width: int | None = None) -> Tensor:
    """Integer codes of any shape as flat uint8.

    Arguments:
        codes: The codes.
        qmin: The lowest that there can be.
        bits: Bits of the codes.
        width: Bits that a stored code takes, up to 8 or 16; None for ``stored_bits(bits)``.

    Raises:
        StorageError: A code does not fit ``bits`` bits.
    """
    codes = codes.flatten()
    if codes.numel():
        least, most = (int(code) for code in codes.aminmax())
        if least < qmin or most - qmin >= 2**bits:
            raise StorageError(f"codes outside {bits} bits", where="pack")
    width = width or stored_bits(bits)
    if width == 16:
        wide = codes.to(torch.int32) - qmin
        return torch.stack([wide & 0xFF, wide >> 8], dim=1).flatten().to(torch.uint8)
    # In bytes, which wrap around as two's complement does.
    offset = codes.to(torch.uint8) - qmin % 256
    if width == 8:
        return offset
    count = len(offset)
    words = torch.cat([offset, offset.new_zeros(-count % 8)]).view(torch.int64)
    packed = offset.new_empty(len(words), width)
    for start in range(0, len(words), _BLOCK):
        word = words[start : start + _BLOCK]
        for lane in (8, 16, 32):
            low = word & _lower(lane, lane * width // 8)
            word = low | (word ^ low) >> (lane - lane * width // 8)
        packed[start : start + _BLOCK] = word.view(torch.uint8).reshape(-1, 8)[:, :width]
    return packed.flatten()[: packed_bytes(count, width)]


def unpack(
    data: Tensor,
    shape: torch.Size | tuple[int, ...],
    qmin: int,
    bits: int,
    dtype: torch.dtype = torch.int32,
    width: int | None = None,
) -> Tensor:
    """The codes of ``shape`` that ``pack`` stored, in a ``dtype`` that holds them.

    Arguments:
        data: Flat uint8.
        shape: Of the codes.
        qmin: The lowest code.
        bits: Bits of the codes.
        dtype: Integers that hold them.
        width: Bits that a stored code takes, up to 8 or 16; None for ``stored_bits(bits)``.

    Raises:
        StorageError: The number of bytes does not fit the shape.
    """
    count, width = math.prod(shape), width or stored_bits(bits)
    if data.dtype != torch.uint8 or data.numel() != packed_bytes(count, width):
        raise StorageError(
            f"{data.numel()} bytes of {data.dtype} for {count} codes of {width} bits",
            why="the file was changed or cut",
        )
    if width == 16:
        wide = data.to(torch.int32)
        offset = wide[0::2] | (wide[1::2] << 8)
        return (offset[:count] + qmin).to(dtype).reshape(tuple(shape))
    offset = _spread(data, count, width)
    if qmin >= -128 and qmin + 2**bits - 1 <= 128:  # 128 is no code of a narrow grid
        # In bytes, which wrap around as two's complement does: the rest takes 4 times as much.
        return offset.add_(qmin % 256).view(torch.int8).reshape(tuple(shape)).to(dtype)
    return (offset.to(torch.int32) + qmin).to(dtype).reshape(tuple(shape))


def _spread(data: Tensor, count: int, bits: int) -> Tensor:
    """Offsets of ``bits`` bits as a byte each, a new tensor."""
    if bits == 8:
        return data.clone()
    rows = -(-count // 8)
    spread = data.new_zeros(rows, 8)
    for start in range(0, rows, _BLOCK):
        part = data[start * bits : (start + _BLOCK) * bits]
        part = torch.cat([part, part.new_zeros(-len(part) % bits)])
        block = spread[start : start + _BLOCK]
        block[:, :bits] = part.reshape(-1, bits)
        word = block.flatten().view(torch.int64)
        for lane in (32, 16, 8):
            low = word & _lower(lane, lane * bits // 8)
            word ^= low
            word <<= lane - lane * bits // 8
            word |= low
    return spread.flatten()[:count]


def _lower(lane: int, used: int) -> int:
    """A 64-bit word with the lowest ``used`` bits of every other lane set, from the first on."""
    return sum((2**used - 1) << start for start in range(0, 64, 2 * lane))
