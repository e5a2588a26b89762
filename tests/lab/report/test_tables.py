"""The best of a group, groups, and what a table is sorted by."""

from tdquant.lab.report.tables import Column, best, groups, table

LOWER, HIGHER = (
    Column(key="d", label="D", better="lower", digits=1),
    Column(key="d", label="D", better="higher", digits=1),
)


def test_the_best_is_by_direction_and_ties_share_it():
    rows = [{"d": 3.0}, {"d": 1.04}, {"d": 1.01}, {"d": None}, {}]
    assert best(rows, LOWER) == {1, 2}  # both are printed as 1.0
    assert best(rows, HIGHER) == {0}


def test_nothing_is_best_where_nothing_is_compared():
    assert best([{"d": 1.0}], LOWER) == set()
    assert best([{"d": 1.0}, {"d": 1.0}], LOWER) == set()
    assert best([{"d": 1.0}, {"d": 2.0}], Column(key="d", label="D")) == set()
    assert best([{"d": "x"}, {"d": float("nan")}], LOWER) == set()


def test_what_prints_the_same_is_best_alike():
    column = Column(key="d", label="D", better="lower")
    wide = {"d_low": 22.1, "d_high": 28.4}  # shown with one digit
    rows = [{"d": 25.314, **wide}, {"d": 25.322, **wide}, {"d": 40.0}]
    assert best(rows, column) == {0, 1}


def test_a_baseline_is_not_the_best():
    rows = [{"d": 1.0, "baseline": True}, {"d": 2.0}, {"d": 3.0}]
    assert best(rows, LOWER) == {1}
    assert best(rows[:2], LOWER) == set()


def test_groups_keep_the_order_of_rows():
    rows = [{"m": "a", "b": 4}, {"m": "b", "b": 4}, {"m": "a", "b": 4}, {"b": 8}]
    assert [(name, len(found)) for name, found in groups(rows, ["m", "b"])] == [
        ("a · 4", 2),
        ("b · 4", 1),
        ("8", 1),
    ]


def test_a_cell_has_what_it_is_sorted_by_and_its_interval():
    rows = [{"n": "x", "d": 1234.5678, "d_low": 1200.0, "d_high": 1300.0, "command": "run <x>"}]
    made = table("Title", [Column(key="n", label="Name"), LOWER], rows)
    assert 'data-value="1234.57"' in made
    assert "1\u202f234.6" in made
    assert "1\u202f200.0–1\u202f300.0" in made
    assert "lower is better" in made
    assert 'data-copy="run &lt;x&gt;"' in made
    assert "<code>run &lt;x&gt;</code>" in made  # seen without a script


def test_a_column_that_groups_is_no_column():
    rows = [{"b": "W4A4", "n": "x"}, {"b": "W8A8", "n": "y"}]
    made = table(
        "Title", [Column(key="b", label="Bits"), Column(key="n", label="Name")], rows, group=["b"]
    )
    assert made.count("<tbody>") == 2
    assert ">Bits<" not in made
    assert '<th scope="rowgroup" colspan="1">W4A4</th>' in made


def test_a_table_of_nothing_but_its_groups_keeps_its_columns():
    made = table("Title", [Column(key="b", label="Bits")], [{"b": "W4A4"}], group=["b"])
    assert ">Bits<" in made
