import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdquant.errors import RecipeError
from tdquant.numerics.grid import Grid


@given(st.integers(2, 16))
def test_code_counts(bits):
    assert Grid.signed(bits).codes == 2**bits
    assert Grid.signed(bits, narrow=True).codes == 2**bits - 1
    assert Grid.affine(bits, 1).codes == 2**bits


@given(st.integers(2, 16), st.data())
def test_zero_is_a_code(bits, data):
    grid = Grid.affine(bits, data.draw(st.integers(0, 2**bits - 1)))
    assert grid.low <= 0 <= grid.high
    assert grid.high - grid.low == 2**bits - 1


def test_narrow_is_symmetric():
    grid = Grid.signed(4, narrow=True)
    assert (grid.low, grid.high) == (-7, 7)


@pytest.mark.parametrize("bits", [-1, 0, 1, 17])
def test_widths_out_of_range(bits):
    with pytest.raises(RecipeError, match="bits"):
        Grid.signed(bits)


def test_zero_off_the_grid():
    with pytest.raises(RecipeError, match="zero"):
        Grid.affine(4, 16)


def test_bits_are_plain_integers_not_tensors():
    # A width that is a tensor costs a device synchronisation in every layer.
    grid = Grid.signed(4)
    assert all(type(v) is int for v in (grid.bits, grid.qmin, grid.qmax, grid.low, grid.high))
