"""Rows of the studies that several tables are made of."""

from collections.abc import Callable, Iterable

from scripts.results.tables import markdown

MODELS = ("cats-ddpm", "cats-ldm")
STATIC = ("min-max", "percentile", "mse", "PTQ4DM's draw", "Q-Diffusion's")
DEFAULT = "tdquant's default"


def rows_of(found: dict) -> list[dict]:
    """Means over seeds."""
    return found["tables"][0]["rows"]


def one(found: dict, value: str, **key: object) -> float:
    """A value of the one row with that key."""
    (row,) = (r for r in rows_of(found) if all(r.get(k) == v for k, v in key.items()))
    return row[value]


def words(found: dict, key: str, model: str) -> list[str]:
    """The values of a key in the rows of a model, but for float."""
    rows = (r for r in rows_of(found) if r["model"] == model)
    return [word for word in dict.fromkeys(r[key] for r in rows) if word != "float"]


def seeds(found: dict) -> int:
    """Number of seeds that means are over."""
    return max(row["seeds"] for row in rows_of(found))


def range_of(values: Iterable[float], form: str = ".2f") -> str:
    """The least and the largest, in words."""
    least, most = (format(end(values), form) for end in (min, max))
    return least if least == most else f"{least} to {most}"


def distances(found: dict, row: Callable[[str, str, list[str], str], list[str]]) -> str:
    """Distances of both models by method and bits, and the counts behind them.

    Arguments:
        found: The study.
        row: Gives the row of a model, a method, its bits and the format of its distances.
    """
    settings, pages = found["settings"], []
    for model in MODELS:
        form = ".0f" if model == "cats-ddpm" else ".1f"
        widths = words(found, "bits", model)
        rows = [row(model, method, widths, form) for method in words(found, "method", model)]
        exact = one(found, "frechet", model=model, bits="float")
        pages.append(markdown([f"{model}, float {exact:{form}}", *widths], rows, slice(1, None)))
    return "\n\n".join(pages) + (
        f"\n\nFrechet EfficientNet-Lite0 distance of {settings['images']} images to 5,000 "
        f"held-out cats, {settings['sampler_steps']} DDIM steps, mean over {seeds(found)} seeds"
    )
