"""How far activations move over time."""

import statistics

from scripts.results.study_rows import (
    MODELS,
    rows_of,
)
from scripts.results.tables import markdown, register_number, register_table, threads


@register_table
def moving_inputs(found: dict) -> str:
    """How far the best step of each input moves over time, by model."""
    rows = []
    for model in MODELS:
        layers = [row for row in rows_of(found) if row["model"] == model]
        row: list[object] = [model, len(layers), sum(abs(r["r"]) > 0.5 for r in layers)]
        for bits in (4, 8):
            moves = [r[f"range{bits}"] for r in layers]
            saved = sum(r[f"saved{bits}"] > 0.1 for r in layers)
            far = sum(move > 2 for move in moves)
            row += [f"{statistics.median(moves):.1f}", f"{max(moves):.1f}", far, saved]
        rows.append(row)
    each = ["median move", "largest", "above 2", "saved > 10 %"]
    head = ["", "layers", "abs(r) > 0.5", *(f"{b} bits: {word}" for b in (4, 8) for word in each)]
    settings = found["settings"]
    return (
        f"{markdown(head, rows, slice(1, None))}\n\n*abs(r) > 0.5*: layers in which the "
        "standard deviation of the input correlates with the timestep (Pearson). *Move*: the "
        "largest over the smallest step size of an input over time, its median and largest value "
        "over layers, and the layers above 2. *Saved*: layers where one step size per timestep "
        "lowers the squared rounding error by more than 10 %, compared with a single step size. "
        f"{settings['trajectories']} trajectories of {settings['steps']} "
        f"steps. {threads(found)}."
    )


@register_number
def largest_move(found: dict, model: str, bits: str) -> float:
    """The largest over the least step of the input that moves most."""
    return max(row[f"range{bits}"] for row in rows_of(found) if row["model"] == model)


@register_number
def layers_that_move(found: dict, model: str) -> int:
    """Inputs whose 4-bit step moves by more than twice."""
    return sum(row["range4"] > 2 for row in rows_of(found) if row["model"] == model)
