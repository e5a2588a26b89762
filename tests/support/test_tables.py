import pytest

from tdquant.support.tables import counted, cut, shortened, text_table

NAME = "unet.down_blocks.0.resnets.1.conv2"


def test_columns_are_aligned():
    table = text_table([["a", "1.50"], ["long name", "12"]], ["layer", "ms"], right=[1])
    assert table.splitlines() == ["layer        ms", "a          1.50", "long name    12"]


def test_numbers_stay_as_they_are_written():
    assert text_table([["1e-3", "007"]]) == "1e-3  007"


def test_no_rows_are_the_headers_alone():
    assert text_table([], ["layer", "ms"]) == "layer    ms"


def test_no_line_ends_in_spaces():
    table = text_table([["a", ""], ["b", "x"]], ["layer", "note"])
    assert all(line == line.rstrip() for line in table.splitlines())


@pytest.mark.parametrize("width", range(0, 40))
def test_nothing_is_wider_than_it_may_be(width):
    for shorter in (shortened(NAME, width), cut(NAME, width)):
        assert len(shorter) == min(width, len(NAME))
        assert shorter == NAME or "\N{HORIZONTAL ELLIPSIS}" in shorter or not width


def test_both_ends_of_a_name_stay_and_the_beginning_of_a_line():
    assert shortened(NAME, 16) == "unet.…ts.1.conv2"
    assert cut(NAME, 16) == "unet.down_block…"


@pytest.mark.parametrize("width", [100, 43, 30, 22, 10])
def test_a_table_fits_into_its_width(width):
    rows = [[NAME, "4 bits"], ["conv_in", "8"]]
    whole = max(map(len, text_table(rows, ["layer", "weight"], [1]).splitlines()))
    lines = text_table(rows, ["layer", "weight"], [1], width=width).splitlines()
    assert len(lines) == 3
    assert all(len(line) <= width for line in lines)
    assert lines[1].endswith("4 bits") == (width >= whole - len(NAME) + 16)
    assert lines[1].startswith(NAME) == (width >= whole)
    assert lines[2].startswith("conv_in")


def test_one_is_no_plural():
    assert [counted(n, "array") for n in (0, 1, 2)] == ["0 arrays", "1 array", "2 arrays"]
