"""The table of what time adds to the alternatives."""

from scripts.results.tables import markdown, register_number, register_table, threads

NEGATIVE = ("time hurts", "time does not help")
INSTEAD = ("per sample", "per token", "most moving in float")
"""Ends of the arms that time is shown in the place of."""


@register_table
def what_time_adds(found: dict) -> str:
    """Ratios of errors with s(t) over without, by arm, model and width."""
    added, replaced, best, _ = (table["rows"] for table in found["tables"])
    models = list(dict.fromkeys((row["model"], row["role"]) for row in added))
    widths = {
        model: list(dict.fromkeys(r["bits"] for r in added if r["model"] == model))
        for model, _ in models
    }

    def cells(rows: list[dict], label: str) -> list[str]:
        mine = {(r["model"], r["bits"]): r for r in rows if r["label"] == label or not label}
        return [
            ", ".join(_cell(mine.get((model, bits))) for bits in widths[model])
            for model, _ in models
        ]

    labels = sorted({row["label"] for row in added}, key=_place)
    table = [[f"{label}: with / without s(t)", *cells(added, label)] for label in labels]
    others = sorted({row["label"] for row in replaced if row["label"].endswith(INSTEAD)})
    table += [[f"static with s(t) / {label}", *cells(replaced, label)] for label in others]
    table.append(["tdquant's default / best arm without time", *cells(best, "")])
    head = [f"{model} ({role}): {', '.join(widths[model])}" for model, role in models]
    settings, counts = found["settings"], [row["seeds"] for row in (*added, *replaced)]
    seeds = " to ".join(dict.fromkeys(str(end(counts)) for end in (min, max)))
    return (
        f"{markdown(['ratio of errors', *head], table, slice(1, None))}\n\nGeometric means over "
        f"{settings['images']} images of {settings['sampler_steps']} steps and "
        f"{seeds} calibration seeds, paired errors. Bold: time hurts or does "
        "not help; in parentheses: not decided; plain: time helps; =: the arm gives the same "
        f"models as another; -: not measured or not applicable. {threads(found)}."
    )


def _place(label: str) -> tuple[bool, bool, str]:
    """Plain steps first, inputs that stay wider last."""
    return not label.startswith("static"), label[0].isdigit(), label


def _cell(row: dict | None) -> str:
    if row is None:
        return "-"
    if "geometric" not in row:
        return "="
    text = f"{row['geometric']:.2f}"
    if row["verdict"] in NEGATIVE:
        return f"**{text}**"
    return text if row["verdict"] == "time helps" else f"({text})"


@register_number
def time_pairs(found: dict, role: str, verdict: str = "") -> int:
    """Pairs of an arm with s(t) and without on models of a role; those of a verdict, if it is
    given.
    """
    rows = [r for r in found["tables"][0]["rows"] if r["role"] == role and "geometric" in r]
    return sum(not verdict or row["verdict"] == verdict for row in rows)
