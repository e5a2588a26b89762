import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tdquant.errors import StorageError
from tdquant.numerics.packing import aligned_bits, pack, packed_bytes, stored_bits, unpack
from tests.live import LiveBytes


@st.composite
def some_codes(draw):
    """Bits, the lowest code, and codes of a random shape that start anywhere in memory."""
    bits = draw(st.integers(2, 16))
    qmin = draw(st.sampled_from([-(2 ** (bits - 1)), -(2 ** (bits - 1)) + 1, 0]))
    shape = draw(st.lists(st.integers(0, 6), max_size=3))
    seed, start = draw(st.integers(0, 2**31)), draw(st.integers(0, 7))
    count = torch.Size(shape).numel()
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(qmin, qmin + 2**bits, (start + count,), generator=generator)
    return bits, qmin, codes[start:].reshape(shape)


@given(some_codes(), st.booleans())
def test_round_trip(found, aligned):
    bits, qmin, codes = found
    width = aligned_bits(bits) if aligned else None
    data = pack(codes, qmin, bits, width)
    assert data.dtype == torch.uint8
    assert data.numel() == packed_bytes(codes.numel(), width or stored_bits(bits))
    assert torch.equal(unpack(data, codes.shape, qmin, bits, codes.dtype, width), codes)


@given(some_codes())
def test_bytes_are_one_long_number(found):
    bits, qmin, codes = found
    width = stored_bits(bits)
    number = sum((q - qmin) << (width * i) for i, q in enumerate(codes.flatten().tolist()))
    data = pack(codes, qmin, bits)
    assert bytes(data.tolist()) == number.to_bytes(len(data), "little")


@pytest.mark.parametrize("bits", [3, 5, 6, 7])
def test_more_than_a_block(bits):
    codes = torch.randint(-3, 4, (8 * (1 << 15) + 100_001,), dtype=torch.int8)
    data = pack(codes, -3, bits)
    assert torch.equal(unpack(data, codes.shape, -3, bits, torch.int8), codes)
    # A part that begins at a whole byte is the packed part.
    assert torch.equal(data[bits * 1000 :], pack(codes[8000:], -3, bits))


@pytest.mark.parametrize("bits", [3, 5, 8])
def test_memory_beside_the_codes_is_small(bits):
    codes = torch.zeros(1 << 23, dtype=torch.int8)
    qmin = 1 - 2 ** (bits - 1)
    data = pack(codes, qmin, bits)
    with LiveBytes() as live:
        unpack(data, codes.shape, qmin, bits, torch.int8)
    assert live.peak < 1.5 * codes.numel()


def test_two_codes_a_byte_at_four_bits():
    assert pack(torch.zeros(100, 10), -7, 4).numel() == 500


def test_code_that_does_not_fit():
    with pytest.raises(StorageError, match="outside 4 bits"):
        pack(torch.tensor([9]), -7, 4)


def test_wrong_number_of_bytes():
    with pytest.raises(StorageError, match="3 bytes"):
        unpack(torch.zeros(3, dtype=torch.uint8), (10,), -7, 4)


def test_codes_stay_as_they_are():
    codes = torch.randint(1, 9, (40,), dtype=torch.uint8)
    before = codes.clone()
    unpacked = unpack(pack(codes, 1, 3), (40,), 1, 3, torch.uint8)
    assert torch.equal(codes, before)
    assert torch.equal(unpacked, before)
