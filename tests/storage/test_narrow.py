import pytest

from tdquant.storage.narrow import counted, cut, narrow

NAME = "unet.down_blocks.0.resnets.1.conv2"


@pytest.mark.parametrize("width", range(0, 40))
def test_nothing_is_wider_than_it_may_be(width):
    for shorter in (narrow(NAME, width), cut(NAME, width)):
        assert len(shorter) == min(width, len(NAME))
        assert shorter == NAME or "\N{HORIZONTAL ELLIPSIS}" in shorter or not width


def test_both_ends_of_a_name_stay_and_the_beginning_of_a_line():
    assert narrow(NAME, 16) == "unet.…ts.1.conv2"
    assert cut(NAME, 16) == "unet.down_block…"


def test_one_is_no_plural():
    assert [counted(n, "array") for n in (0, 1, 2)] == ["0 arrays", "1 array", "2 arrays"]
