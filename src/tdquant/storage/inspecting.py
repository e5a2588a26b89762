"""What a saved model is, as a table, from its index alone."""

from __future__ import annotations

import os
from pathlib import Path

from tdquant.storage.diffusers_folder import quantized_parts
from tdquant.storage.files import read_index


def inspect_saved(directory: str | os.PathLike[str]) -> str:
    """A table of what a saved folder holds, a model's or a whole pipeline's, without building it.

    Raises:
        StorageError: As ``load``.
    """
    folder = Path(directory)
    parts = quantized_parts(folder)
    if parts:
        return "\n\n".join(f"{part.name}: {inspect_saved(part)}" for part in parts)
    index = read_index(folder)
    model = index["model"] or {"source": "the caller's", "class": "model"}
    size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
    built = f"{model['source']} {model['class']}"
    lines = [f"{built}, timestep argument {index['timestep']!r}, {size:.2f} MB"]
    rows = [
        (path, spec["type"], spec.get("weight"), spec.get("input"))
        for path, spec in index["layers"].items()
    ]
    for path, operands in index["attention"].items():
        rows += [(f"{path}.{name}", "attention", None, spec) for name, spec in operands.items()]
    width = max([len(row[0]) for row in rows], default=0)
    for path, kind, weight, activation in rows:
        w = f"W{weight['bits']}" if weight else "W float"
        a, scale = "A float", ""
        if activation:
            knots = activation.get("knots", 0)
            a, scale = (
                f"A{activation['bits']}",
                f"table of {knots}" if knots > 1 else "static" if knots else "dynamic",
            )
            scale += f", zero {activation['zero_point']}" if activation["zero_point"] else ""
        lines.append(f"{path:<{width}}  {kind:<12} {w:<8}{a:<8}{scale}".rstrip())
    return "\n".join(lines)
