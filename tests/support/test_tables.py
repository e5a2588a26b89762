from tdquant.support.tables import text_table


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
