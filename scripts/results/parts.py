"""The parts of a temporal scale, each left out."""

from collections import Counter

from scripts.results.study_rows import one, rows_of, seeds
from scripts.results.tables import markdown, register_table, results, threads

PARTS = {"law": "kind of scale", "share": "temporal layers", "encoding": "encoding of time"}


@register_table
def parts(found: dict) -> str:
    """One change of the network of a scale at a time."""
    base = rows_of(found)[0]
    rows = []
    for part in dict.fromkeys(row["part"] for row in rows_of(found)):
        those = [row for row in rows_of(found) if row["part"] == part and row is not base]
        if those:
            words = "; ".join(f"{row['choice']}: {row['ratio']:.2f}" for row in those)
            rows.append([PARTS.get(part, part), words])
    settings = found["settings"]
    exact = one(results("studies/qat"), "frechet", model=settings["model"], bits="float")
    others = Counter(run["processor"] for run in found["runs"] if "processor" in run)
    elsewhere = "".join(
        f"; {count} of {len(found['runs'])} runs on {name}" for name, count in others.items()
    )
    head = ["part", "choice: its distance divided by that of the published form"]
    return (
        f"{markdown(head, rows, slice(0, 0))}\n\nThe published form ({base['choice']}) has a "
        f"distance of {base['frechet']:.1f} ({base['frechet_low']:.0f} to "
        f"{base['frechet_high']:.0f}), float {exact:.1f}: `{settings['model']}` at W4A4, "
        f"{settings['steps']} optimizer steps of batch {settings['batch']} at a learning "
        f"rate of {settings['rate']:g} unless stated otherwise, {settings['images']} images, "
        f"{seeds(found)} seeds. {threads(found)}{elsewhere}."
    )
