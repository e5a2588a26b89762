"""The table of the paper's claims in parts."""

from scripts.results.tables import markdown, register_number, register_table

MODELS = ("cats-ddpm", "cats-ldm")


@register_table
def parts_of_claims(found: dict) -> str:
    """Every part with its verdicts, by model; those of the small models together."""
    matrix = found["matrix"]
    small = [model for model in matrix["columns"] if model not in MODELS]
    table, before = [], ""
    for row in matrix["rows"]:
        if row["group"] != before:
            before = row["group"]
            table.append([f"**{before}**", "", "", ""])
        cells = [_cell(row["cells"], model) for model in MODELS]
        others = [
            f"{model} {_cell(row['cells'], model)}" for model in small if row["cells"].get(model)
        ]
        # A bar would end the cell.
        table.append([f"{row['name']}: {row['rule']}", *cells, "; ".join(others) or "-"])
    return markdown(["part", *MODELS, "small models"], table, slice(0, 0)) + (
        f"\n\n{matrix['note']} A dash: not run, or the part does not apply to the model."
    )


def _cell(cells: dict, model: str) -> str:
    cell = cells.get(model)
    if cell is None:
        return "-"
    verdict = f"**{cell['verdict']}**" if cell["verdict"] == "does not hold" else cell["verdict"]
    ends = f" ({cell['low']:.3g} to {cell['high']:.3g})" if "low" in cell else ""
    return f"{verdict}, {cell['value']:.3g}{ends}"


@register_number
def cells_of(found: dict, verdict: str) -> int:
    """Number of cells of a verdict."""
    cells = [cell for row in found["matrix"]["rows"] for cell in row["cells"].values() if cell]
    return sum(cell["verdict"] == verdict for cell in cells)
