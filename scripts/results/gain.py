"""How many inputs have the gain."""

from scripts.results.tables import register_number

MOST = 0.9


@register_number
def inputs_with_the_gain(found: dict, model: str, bits: str) -> str:
    """Fewest inputs that have nine tenths of what all save, of all, in words."""
    runs = [r for r in found["runs"] if (r["model"], r["bits"]) == (model, bits)]
    saved = sorted((run["static"] - run["error"] for run in runs), reverse=True)
    whole = sum(x for x in saved if x > 0)
    count = next(i for i in range(len(saved) + 1) if sum(saved[:i]) >= MOST * whole)
    return f"{count} of {len(runs)}"
