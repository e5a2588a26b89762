"""The table that ``make demo`` prints."""

from scripts.results.tables import markdown, register_table, where

from tdquant.lab.demo.run import DemoRow
from tdquant.lab.demo.table import HEAD, cells


@register_table
def demo(found: dict) -> str:
    """What ``make demo`` printed, and where."""
    settings, rows = found["settings"], [list(cells(DemoRow(**row))) for row in found["rows"]]
    return (
        f"{markdown(list(HEAD), rows, slice(2, None))}\n\n`make demo` on {where(found)}, "
        f"{found['machine']['threads']} threads: {found['seconds']:.0f} s, {settings['images']} "
        f"images a model, {settings['steps']} DDIM steps."
    )
