"""Tables: grouped, sortable, with intervals, the best of each group, and the commands of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tdquant.files.documents import Section
from tdquant.lab.report.numerals import interval, is_number, numeral, resolution
from tdquant.lab.report.templating import render

if TYPE_CHECKING:
    from markupsafe import Markup

DIRECTIONS = {"lower": "lower is better", "higher": "higher is better"}


class Column(Section):
    """A column of a table, which may come from a study file.

    Attributes:
        key: Key of its values in a row; ``KEY_low`` and ``KEY_high`` hold their intervals.
        label: Its head.
        better: ``"lower"``, ``"higher"`` or nothing.
        digits: Places after the point; four significant ones if None.
        unit: Shown under the head.
    """

    key: str
    label: str
    better: str | None = None
    digits: int | None = None
    unit: str | None = None

    @property
    def hint(self) -> str:
        """Unit and direction."""
        return ", ".join(filter(None, (self.unit, DIRECTIONS.get(self.better or ""))))


@dataclass(frozen=True)
class Cell:
    """One value of a table.

    Attributes:
        text: The value.
        interval: Its interval, or empty.
        best: Whether it is the best of its group.
        numeric: Whether it is a number, or stands for a missing one.
        sort_key: The number by which rows are sorted, or empty.
    """

    text: str
    interval: str = ""
    best: bool = False
    numeric: bool = False
    sort_key: str = ""

    @property
    def classes(self) -> str:
        """Its classes of the style sheet."""
        return " ".join(["number"] * self.numeric + ["best"] * self.best)


def best(rows: Sequence[dict[str, Any]], column: Column) -> set[int]:
    """Indices of the best rows; none where nothing is compared.

    Rows that print the same number are best alike. A row with ``baseline`` takes no part.
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
        found.setdefault(_joined(row, keys), []).append(row)
    return list(found.items())


def cell(row: dict[str, Any], column: Column, marked: bool = False) -> Cell:
    """A row's value in a column."""
    value = row.get(column.key)
    low: Any = row.get(f"{column.key}_low")
    high: Any = row.get(f"{column.key}_high")
    digits = _digits(row, column)
    return Cell(
        numeral(value, digits),
        interval(low, high, digits) if is_number(low) and is_number(high) else "",
        marked,
        value is None or is_number(value),
        f"{value:.6g}" if is_number(value) else "",
    )


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
    bodies = []
    for name, members in groups(rows, group):
        marked = [best(members, column) for column in columns]
        lines = [
            {
                "cells": [cell(row, column, i in found)
                          for column, found in zip(columns, marked, strict=True)],
                "command": row.get("command"),
            }
            for i, row in enumerate(members)
        ]  # fmt: skip
        bodies.append((name, lines))
    commands = [
        (_joined(row, [*group, columns[0].key]), row["command"])
        for row in rows if row.get("command")
    ]  # fmt: skip
    return render("table", title=title, note=note, columns=columns, bodies=bodies,
                  commands=commands)  # fmt: skip


def _joined(row: dict[str, Any], keys: Sequence[str]) -> str:
    return " · ".join(numeral(row[key]) for key in keys if row.get(key) not in (None, ""))
