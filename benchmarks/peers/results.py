"""The rows of a results file. Those that are there are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tdquant.files.writing import replacing
from tdquant.support.machine import machine

KEY = ("model", "setting", "project")
DONE = {"error": "mean", "time": "ms"}
"""What a row has when a part is done."""


class Results:
    """Rows by model, setting and project, in a file that is written after each.

    Arguments:
        file: The file; it need not exist.
        settings: What all rows share.

    Raises:
        SystemExit: The rows of the file are of other settings or another processor.
    """

    def __init__(self, file: Path, settings: dict[str, Any]) -> None:
        self.file, self.settings = file, settings
        self.rows: dict[tuple[str, ...], dict[str, Any]] = {}
        if not file.exists():
            return
        old = json.loads(file.read_text())
        here = {**settings, "processor": machine()["processor"]}
        there = {**old["settings"], "processor": old["machine"]["processor"]}
        if here != there:
            apart = [key for key in here if here[key] != there.get(key)]
            raise SystemExit(
                f"{file} has rows of another {', '.join(apart)}: "
                + ", ".join(f"{key}={there.get(key)!r}, not {here[key]!r}" for key in apart)
                + "\n  fix: the same settings, or another --out"
            )
        for row in old["rows"]:
            self.rows[tuple(row[key] for key in KEY)] = row

    def missing(self, key: tuple[str, ...], parts: list[str]) -> list[str]:
        """The parts that a row lacks. One that failed is not tried again unasked."""
        row = self.rows.get(key, {})
        return [] if "failed" in row else [part for part in parts if DONE[part] not in row]

    def keep(self, key: tuple[str, ...], found: dict[str, Any], order: list[tuple]) -> None:
        """Adds what was found to a row, and writes all in the order of the keys given."""
        fresh = dict(zip(KEY, key, strict=True)) | found
        useless = {"failed", "missing"}
        old = {} if useless & found.keys() else self.rows.get(key, {})
        self.rows[key] = {k: v for k, v in old.items() if k not in useless} | fresh
        place = {known: i for i, known in enumerate(order)}
        rows = sorted(self.rows.items(), key=lambda item: place.get(item[0], len(place)))
        self.rows = dict(rows)
        whole = {"machine": machine(), "settings": self.settings, "rows": [*self.rows.values()]}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.file) as temporary:
            temporary.write_text(json.dumps(whole, indent=1) + "\n")
