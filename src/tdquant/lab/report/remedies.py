"""What calibration did beside scales: the error that each remedy left of the one before it, and
what the model costs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tdquant.lab.report.lines import Line
from tdquant.lab.report.numerals import is_number, numeral
from tdquant.lab.report.plots import plot
from tdquant.lab.report.tables import Column, table
from tdquant.lab.report.templating import render

if TYPE_CHECKING:
    from markupsafe import Markup

KEPT = {True: "kept", False: "not kept"}

COLUMNS = (
    Column(key="name", label="Remedy"),
    Column(key="verdict", label="Verdict"),
    Column(key="before", label="Error before"),
    Column(key="after", label="after"),
    Column(key="left", label="Left of it", digits=0, unit="%"),
    Column(key="what", label="Where"),
)


def section(record: Mapping[str, Any], name: str) -> Markup:
    """The trials of a model as a figure and a table, and its costs.

    Arguments:
        record: What the run's record says of remedies.
        name: What the model is called.
    """
    trials = [dict(one) for one in record["trials"]]
    for one in trials:
        one["verdict"] = KEPT[one["kept"]]
        shares = is_number(one["before"]) and is_number(one["after"]) and one["before"] > 0
        one["left"] = 100 * one["after"] / one["before"] if shares else None
    basis = record.get("basis") or "single calls"
    words = f"By the error of {basis}; the correction by that of held-out calls where it says so."
    figure = tried = ""
    if trials:
        lines = [
            Line(
                name=KEPT[kept],
                x=[i for i, one in enumerate(trials) if one["kept"] == kept],
                y=[one["left"] for one in trials if one["kept"] == kept],
                hue=0 if kept else -1,
                joined=False,
            )
            for kept in (True, False)
            if any(one["kept"] == kept for one in trials)
        ]
        figure = plot(
            f"What remedies leave of the error of {name}", "remedy", "% of the error before it",
            lines, x_words=[one["name"] for one in trials], bars=True,
            note="Below 100 % the error fell. What was not kept was taken back.",
        )  # fmt: skip
        tried = table(f"Remedies tried on {name}", COLUMNS, trials, note=words)
    return render("remedies", figure=figure, table=tried, facts=_facts(record))


def brief(record: Mapping[str, Any]) -> str:
    """What was kept, in one line."""
    kept = [one["name"] for one in record["trials"] if one["kept"]]
    kept += ["protected inputs"] * bool(record["protected"])
    return f"kept: {', '.join(kept)}" if kept else "none was kept"


def _facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Costs and protected inputs, each with its name."""
    facts = []
    if is_number(record.get("size")):
        facts.append(("Size", f"{numeral(100 * record['size'], 1)} % of the float32 bytes"))
    if is_number(record.get("time")):
        share = numeral(100 * record["time"], 0)
        facts.append(("Time", f"{share} % of the float model's, by multiply-accumulates"))
    for one in record["protected"]:
        bits = "in float" if one["bits"] == 32 else f"{one['bits']} bits"
        saved = numeral(100 * one["saved"], 0) if is_number(one["saved"]) else "?"
        facts.append(("Protected", f"{one['path']}, {bits}: {saved} % of the error of all inputs"))
    return facts
