import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tdquant.errors import StorageError
from tdquant.numerics.packing import code_bits, pack, unpack


@given(st.integers(2, 16), st.lists(st.integers(0, 6), min_size=0, max_size=3), st.randoms())
def test_round_trip(bits, shape, rng):
    qmin = -(2 ** (bits - 1)) + 1
    count = 1
    for side in shape:
        count *= side
    codes = torch.tensor([rng.randint(qmin, -qmin) for _ in range(count)], dtype=torch.int32)
    codes = codes.reshape(shape)
    data = pack(codes, qmin, bits)
    assert data.dtype == torch.uint8
    assert data.numel() == -(-count * code_bits(bits) // 8)
    assert torch.equal(unpack(data, tuple(shape), qmin, bits), codes)


def test_two_codes_a_byte_at_four_bits():
    assert pack(torch.zeros(100, 10), -7, 4).numel() == 500


def test_code_that_does_not_fit():
    with pytest.raises(StorageError, match="outside 4 bits"):
        pack(torch.tensor([9]), -7, 4)


def test_wrong_number_of_bytes():
    with pytest.raises(StorageError, match="3 bytes"):
        unpack(torch.zeros(3, dtype=torch.uint8), (10,), -7, 4)
