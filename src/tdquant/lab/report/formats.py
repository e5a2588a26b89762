"""The shapes of a report's files for ``tdquant.files.shapes.mistakes``."""

from __future__ import annotations

from tdquant.files.shapes import GAP, NUMBER

VERDICTS = ("holds", "holds in part", "does not hold", "not finished")

LAYERS = {
    "times": [NUMBER],
    "layers": [
        {
            "path": str, "type": str, "weight_bits?": int, "input_bits?": int, "scale": str,
            "steps": [NUMBER], "error?": NUMBER, "error_static?": NUMBER, "saved?": NUMBER,
            "weight_error?": NUMBER, "range?": NUMBER, "correlation?": NUMBER, "parameters?": int,
        }
    ],
}  # fmt: skip

_AXIS = {"label": str, "log?": bool}
STUDY = {
    "study": str,
    "title": str,
    "question": str,
    "claim?": str,
    "measured": str,
    "verdict": str,
    "position?": NUMBER,
    "machine?": dict,
    "seconds?": NUMBER,
    "command?": str,
    "tables?": [
        {
            "title": str,
            "note?": str,
            "group?": [str],
            "columns": [{"key": str, "label": str, "better?": str, "digits?": int,
                         "unit?": str}],
            "rows": [dict],
        }
    ],
    "figures?": [{"file": str, "title": str, "alt": str}],
    # A hue is the number of a colour and mark; -1 is the neutral one, of what others are
    # compared with.
    "plots?": [
        {
            "title": str,
            "x": {**_AXIS, "words?": [str]},
            "y": _AXIS,
            "lines": [
                {"name": str, "x": [NUMBER], "y": [GAP], "low?": [GAP], "high?": [GAP],
                 "dashed?": bool, "hue?": int}
            ],
            "points?": bool,
            "note?": str,
        }
    ],
    "samples?": [
        {
            "title": str,
            "axis": str,
            "values": [(str, int, float)],
            "rows": [{"name": str, "files": dict}],
            "tile": int,
            "note?": str,
            "credit?": str,
        }
    ],
    "layers?": [{"title": str, **LAYERS}],
}  # fmt: skip

PROGRESS = {"stage": str, "done": NUMBER, "of": NUMBER, "updated?": (str, int, float)}
