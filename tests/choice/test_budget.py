import pytest

from tdquant.choice import Budget
from tdquant.errors import RecipeError


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan"), "3%", None])
def test_shares_out_of_range(share):
    with pytest.raises(RecipeError, match="protection="):
        Budget(protection=share)
