import pytest

from tdquant.choice import Budget
from tdquant.errors import RecipeError


@pytest.mark.parametrize("name", ["protection", "size", "time"])
@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan"), "3%", True])
def test_shares_out_of_range(name, share):
    with pytest.raises(RecipeError, match=f"{name}="):
        Budget(**{name: share})


def test_no_protection_is_no_share():
    with pytest.raises(RecipeError, match="protection=None"):
        Budget(protection=None)
    assert Budget(size=None, time=None) == Budget()


def test_budgets_as_words():
    assert Budget.from_text("size=0.15, time=0.5") == Budget(size=0.15, time=0.5)
    assert Budget.from_text("protection=0") == Budget(protection=0.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sise=0.1", "fix: size="),
        ("bytes=0.1", "one of protection, rotation, dynamic, size, time"),
        ("size", "size='' is no number"),
        ("size=small", "size='small' is no number"),
        ("size=0.1,size=0.2", "size twice"),
        ("", "no budget ''"),
        ("time=2", "time=2.0"),
    ],
)
def test_words_that_are_no_budget(text, said):
    with pytest.raises(RecipeError) as error:
        Budget.from_text(text)
    assert said in str(error.value)
