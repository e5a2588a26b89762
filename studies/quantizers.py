"""tdquant beside other quantizers, from the rows of ``benchmarks/peers``; makes no runs.

python -m benchmarks.peers && python studies/quantizers.py
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from ledger import Ledger, Run, column, conduct, parser, sentence

PEERS = Path(__file__).parents[1] / "benchmarks" / "results" / "peers.json"
OURS, EDGES, STATIC = "tdquant, default", "tdquant, edges of 8 bits", "tdquant, static"
FAMILIES = {
    OURS: "tdquant, default", STATIC: "tdquant, static", "SDNQ": "SDNQ", "NNCF": "NNCF",
    "torchao": "torchao", "optimum-quanto": "optimum-quanto",
}  # fmt: skip
"""Beginnings of a project's words, in the order of their colours, and names in a legend."""
MOST = 0.5
"""Least share of multiplications with inputs of few bits, to be compared."""
LESS = 0.05
"""Share of multiplications by which ours may have fewer with weights of few bits."""

QUESTION = "How close to the float model's are samples, beside those of other quantizers?"
CLAIM = """\
Not of the paper, which compares methods in one code base: what a practitioner would install
instead, on the same float models, calls and noise."""
COMMAND = "python -m benchmarks.peers"


def pairs(rows: list[Run]) -> list[tuple[Run, Run]]:
    """Ours and another's row at each model and setting, of those that quantize as much: where the
    default leaves more weights in float than the other, ours is what leaves nothing.
    """
    found = []
    for other in rows:
        if "tdquant" in other["project"] or "median" not in other or other["inputs"] < MOST:
            continue
        mine = {
            row["project"]: row
            for row in rows
            if (row["model"], row["setting"]) == (other["model"], other["setting"])
            and "median" in row
        }
        if other["setting"] == "float" or OURS not in mine:
            continue
        ours = mine[OURS]
        if ours["weights"] < other["weights"] - LESS:
            ours = mine.get(EDGES, ours)
        found.append((ours, other))
    return found


def told(rows: list[Run]) -> tuple[str, list[str]]:
    """The verdict and its clauses, the strongest counter-example first."""
    found = pairs(rows)
    ratios = [ours["median"] / other["median"] for ours, other in found]
    if not ratios:
        return "not finished", []
    above = sum(ratio > 1 for ratio in ratios)
    ratio, (ours, other) = max(zip(ratios, found, strict=True), key=lambda each: each[0])
    clauses = []
    if above:
        clauses = [
            f"In {above} of {len(ratios)} pairs the other's median error is smaller",
            f"strongest counter-example: {other['project']} on {other['model']} at "
            f"{other['setting']}, where ours is {ratio:.2g} times as large "
            f"({ours['bytes'] / other['bytes']:.2g} times its size)",
        ]
    if len(ratios) > above:
        clauses.append(f"in {len(ratios) - above} ours is smaller")
    clauses.append("one seed of calibration: no interval")
    verdict = (
        "holds" if not above else "does not hold" if above == len(ratios) else "holds in part"
    )
    return verdict, clauses


def plots(rows: list[Run]) -> list[dict[str, Any]]:
    """Error against size, a plot for each model."""
    found = []
    for model in dict.fromkeys(row["model"] for row in rows):
        lines = []
        for hue, (start, name) in enumerate(FAMILIES.items()):
            mine = [
                row for row in rows
                if row["model"] == model and row["project"].startswith(start)
                and row["setting"] != "float" and row.get("inputs", 0) >= MOST
                and row.get("median") and row.get("bytes")
            ]  # fmt: skip
            mine.sort(key=lambda row: row["bytes"])
            if mine:
                lines.append({
                    "name": name, "hue": hue, "joined": False,
                    "x": [row["bytes"] / 1000 for row in mine],
                    "y": [row["median"] for row in mine],
                    "labels": [_words(row, start) for row in mine],
                })  # fmt: skip
        if lines:
            found.append({
                "title": f"{model}: error against size",
                "x": {"label": "size, KB"},
                "y": {"label": "median squared error of a sample", "log": True},
                "points": True,
                "lines": lines,
                "note": "Those that quantize the inputs of most multiplications.",
            })  # fmt: skip
    return found


def _words(row: Run, start: str) -> str:
    return f"{row['setting']}{row['project'].removeprefix(start)}"


def shown(row: Run) -> Run:
    """A row of the table."""
    made: Run = {key: row[key] for key in ("model", "setting")}
    made["project"] = row["project"] + (f" ({row['note']})" if row.get("note") else "")
    if "median" not in row:
        return made | {"failed": row["failed"]}
    made |= {key: row[key] for key in ("median", "geometric", "mean")}
    made |= {key: 100 * row[key] for key in ("weights", "inputs")}
    return made | {"kb": row["bytes"] / 1000, "int8": f"{row['integer']} of {row['products']}"}


def make_runs(ledger: Ledger, args: argparse.Namespace) -> None:
    """``benchmarks/peers`` made them."""


def tell(ledger: Ledger) -> None:
    """Errors beside sizes."""
    found = json.loads(PEERS.read_text()) if PEERS.exists() else {"rows": []}
    rows, settings = found["rows"], found.get("settings", {})
    verdict, clauses = told(rows)
    versions = ", ".join(dict.fromkeys(row["version"] for row in rows if "version" in row))
    ledger.write(
        position=8,
        title="Beside other quantizers",
        question=QUESTION,
        claim=CLAIM,
        measured=sentence(clauses),
        verdict=verdict,
        command=COMMAND,
        machine=found.get("machine"),
        tables=[{
            "title": "Errors and sizes",
            "note": f"{settings.get('images')} images of {settings.get('steps')} steps from the "
            "same noise, squared error against the float model's; one seed of calibration. "
            "Weights and inputs: share of the multiplications whose weights, or inputs, have few "
            f"bits. int8: products that run on integers. {versions}.",
            "group": ["model", "setting"],
            "columns": [
                column("project", "Project"),
                column("median", "Median error", None, "lower"),
                column("geometric", "Geometric mean", None, "lower"),
                column("mean", "Mean", None, "lower"),
                column("kb", "KB", 0, "lower"),
                column("weights", "Weights, %", 0),
                column("inputs", "Inputs, %", 0),
                column("int8", "int8"),
                column("failed", "Failed"),
            ],
            "rows": [shown(row) for row in rows],
        }] if rows else [],
        figures=[], plots=plots(rows), layers=[], samples=[],
    )  # fmt: skip


def main() -> None:
    conduct(parser(__doc__).parse_args(), "quantizers", ("seed",), {}, make_runs, tell)


if __name__ == "__main__":
    main()
