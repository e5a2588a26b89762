"""Tables: grouped, sortable, with intervals, the best of each group, and the commands of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tdquant.lab.report.markup import Markup, tag
from tdquant.lab.report.numerals import interval, is_number, numeral, resolution

DIRECTIONS = {"lower": "lower is better", "higher": "higher is better"}


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        key: Where a row has it; ``KEY_low`` and ``KEY_high`` hold its interval.
        label: Its head.
        better: ``"lower"``, ``"higher"`` or nothing.
        digits: Places after the point; four significant ones if None.
        unit: Under the head.
    """

    key: str
    label: str
    better: str = ""
    digits: int | None = None
    unit: str = ""


def best(rows: Sequence[dict[str, Any]], column: Column) -> set[int]:
    """Indices of the best rows as they are printed; none where nothing is compared.

    Rows that print the same share the mark. A ``baseline`` is what others are measured against,
    and takes no part.
    """
    values = {
        i: row[column.key]
        for i, row in enumerate(rows)
        if is_number(row.get(column.key)) and not row.get("baseline")
    }
    if column.better not in DIRECTIONS or len(values) < 2:
        return set()
    top = (min if column.better == "lower" else max)(values, key=values.__getitem__)
    printed = {i: numeral(value, _digits(rows[i], column)) for i, value in values.items()}
    found = {i for i, text in printed.items() if text == printed[top]}
    return found if len(found) < len(values) else set()


def _digits(row: dict[str, Any], column: Column) -> int | None:
    """Places after the point of a cell: those of its interval, if it has one."""
    low: Any = row.get(f"{column.key}_low")
    high: Any = row.get(f"{column.key}_high")
    if column.digits is None and is_number(low) and is_number(high):
        return resolution(low, high)
    return column.digits


def groups(
    rows: Sequence[dict[str, Any]], keys: Sequence[str]
) -> list[tuple[str, list[dict[str, Any]]]]:
    """Rows that agree in ``keys``, in the order in which groups appear first."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        name = " · ".join(numeral(row[key]) for key in keys if row.get(key) not in (None, ""))
        found.setdefault(name, []).append(row)
    return list(found.items())


def table(
    title: str,
    columns: Sequence[Column],
    rows: Sequence[dict[str, Any]],
    *,
    group: Sequence[str] = (),
    note: str = "",
) -> Markup:
    """A table; where rows have a ``command``, each has a button that copies it.

    Arguments:
        title: Its caption.
        columns: In order; the first names the row.
        rows: Values by the columns' keys.
        group: Keys by which rows are put together.
        note: A line under the caption.
    """
    columns = [column for column in columns if column.key not in group] or list(columns)
    commands = any(row.get("command") for row in rows)
    heads = [head(column) for column in columns]
    if commands:
        heads.append(tag("th", "Command", scope="col", class_="act"))
    bodies = []
    for name, members in groups(rows, group):
        marked = [best(members, column) for column in columns]
        lines = [
            _row(row, columns, [i in found for found in marked], commands)
            for i, row in enumerate(members)
        ]
        if name:
            title_row = tag(
                "tr", tag("th", name, scope="rowgroup", colspan=len(heads)), class_="group"
            )
            lines.insert(0, title_row)
        bodies.append(tag("tbody", *lines))
    caption = tag(
        "caption", tag("span", title, class_="title"), tag("span", note) if note else None
    )
    whole = tag("table", caption, tag("thead", tag("tr", *heads)), *bodies, class_="sortable")
    region = tag("div", whole, class_="scroller", tabindex=0, role="region", aria_label=title)
    return tag("div", region, _commands(columns, rows, group) if commands else None,
               class_="tabular")  # fmt: skip


def command_block(command: str) -> Markup:
    """A command, and a button that copies it."""
    return tag("div", tag("code", command), _copy(command, "Copy the command"), class_="command")


def head(column: Column, sort: str | None = None) -> Markup:
    """The head of a column: text, around which the script puts a button."""
    note = DIRECTIONS.get(column.better)
    small = ", ".join(word for word in (column.unit, note) if word)
    return tag("th", tag("span", column.label, class_="label"),
               tag("small", small) if small else None, scope="col", aria_sort=sort)  # fmt: skip


def cell(row: dict[str, Any], column: Column, marked: bool = False, name: str = "td") -> Markup:
    """One value with its interval, and what it is sorted by."""
    value = row.get(column.key)
    low: Any = row.get(f"{column.key}_low")
    high: Any = row.get(f"{column.key}_high")
    spread = is_number(low) and is_number(high)
    digits = _digits(row, column)
    shown: list[str] = [numeral(value, digits)]
    if marked:
        shown = [tag("b", *shown), tag("span", " (best)", class_="unseen")]
    if spread:
        shown.append(tag("small", interval(low, high, digits)))
    number = is_number(value)
    kinds = " ".join(["number"] * (number or value is None) + ["best"] * marked)
    return tag(name, *shown, scope="row" if name == "th" else None, class_=kinds or None,
               data_value=f"{value:.6g}" if number else None)  # fmt: skip


def _row(
    row: dict[str, Any], columns: Sequence[Column], marked: Sequence[bool], commands: bool
) -> Markup:
    cells = [
        cell(row, column, is_best, "td" if k else "th")
        for k, (column, is_best) in enumerate(zip(columns, marked, strict=True))
    ]
    if commands:
        command = row.get("command")
        name = f"Copy the command of {numeral(row.get(columns[0].key))}"
        cells.append(tag("td", _copy(command, name) if command else None, class_="act"))
    return tag("tr", *cells)


def _copy(command: str, name: str) -> Markup:
    """A button that only the script makes seen, as it can do nothing without."""
    return tag("button", "Copy", type="button", class_="copy", data_copy=command, title=command,
               aria_label=name, hidden=True)  # fmt: skip


def _commands(
    columns: Sequence[Column], rows: Sequence[dict[str, Any]], group: Sequence[str]
) -> Markup:
    entries = []
    for row in rows:
        if row.get("command"):
            keys = [*group, columns[0].key]
            name = " · ".join(numeral(row[key]) for key in keys if row.get(key) is not None)
            entries += [tag("dt", name), tag("dd", tag("code", str(row["command"])))]
    return tag("details", tag("summary", "Commands of these rows"), tag("dl", *entries))
