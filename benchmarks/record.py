"""Writes what a benchmark found, with the machine it ran on, and prints tables."""

import json
from pathlib import Path

from tdquant.support.machine import machine

RESULTS = Path(__file__).parent / "results"


def write(name: str, **found: object) -> None:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    text = json.dumps({"machine": machine(), **found}, indent=1) + "\n"
    path.with_suffix(".tmp").write_text(text)
    path.with_suffix(".tmp").replace(path)
    print(f"wrote {path}")


def table(head: list[str], rows: list[list[object]]) -> None:
    def cell(value: object) -> str:
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    print("| " + " | ".join(head) + " |")
    print("|" + " --- |" * len(head))
    for row in rows:
        print("| " + " | ".join(cell(value) for value in row) + " |", flush=True)
