"""Our quantizer beside others."""

from scripts.results.tables import markdown, register_number, register_table, where

PEER_HEAD = [
    "bits", "project", "weights", "inputs", "median", "geometric mean", "mean", "KB", "int8",
    "ms", "/ float", "s to quantize",
]  # fmt: skip


def _peer_cells(row: dict) -> list[str]:
    """A row of the table of peers; parts that were not measured are dashes."""

    def cell(form: str, name: str, times: float = 1) -> str:
        return format(row[name] * times, form) if name in row else "-"

    integer = f"{row['integer']} of {row['products']}" if "products" in row else "-"
    ratio = f"{row['ms'] / row['float_ms']:.2f}" if "ms" in row else "-"
    name = f"**{row['project']}**" if row["project"] == OURS else row["project"]
    if row["note"]:
        name += f" ({row['note']})"
    if "missing" in row:
        name += f": not installed, `{row['missing']}`"
    if "failed" in row:
        name += f": `{row['failed']}`"
    return [
        row["setting"], name, cell(".0%", "weights"), cell(".0%", "inputs"), cell(".2g", "median"),
        cell(".2g", "geometric"), cell(".2g", "mean"), cell(".0f", "bytes", 1e-3), integer,
        cell(".1f", "ms"), ratio, cell(".0f", "seconds"),
    ]  # fmt: skip


def _versions(rows: list[dict]) -> str:
    """Packages and their versions; of tdquant, the commits that rows were measured at."""
    versions = dict.fromkeys(row["version"] for row in rows if "version" in row)
    others = [version for version in versions if not version.startswith(OURS_ARE)]
    commits = [version.split()[-1] for version in versions if version.startswith(OURS_ARE)]
    return ", ".join([*others, f"tdquant at {', '.join(commits)}"])


@register_table
def beside_peers(found: dict) -> str:
    """Every quantizer on every model, at every setting."""
    pages = []
    for model in dict.fromkeys(row["model"] for row in found["rows"]):
        rows = [_peer_cells(row) for row in found["rows"] if row["model"] == model]
        pages.append(f"`{model}`:\n\n{markdown(PEER_HEAD, rows, slice(2, None))}")
    settings = found["settings"]
    return "\n\n".join(pages) + (
        f"\n\n{settings['images']} images of {settings['steps']} steps, one calibration seed; "
        f"calls: medians of {settings['rounds']}, {settings['threads']} thread. "
        f"{_versions(found['rows'])}; {where(found)}."
    )


OURS = "tdquant, default"
OURS_ARE = "tdquant"
WHOLE = 0.5
"""Least share of multiplications with inputs of few bits, to be compared with ours."""


STATIC, EDGES = "tdquant, static", "tdquant, edges of 8 bits"
MARKS = {OURS: "", EDGES: ", edges=8", "tdquant, in SDNQ's bytes": ", by size"}
"""What marks our rows, by project."""

SHOWN = ["W8A8", "W5A8", "W4A8", "W8A5"]
LESS = 0.05
"""Share of multiplications by which ours may have fewer with weights of few bits than another."""


@register_table
def peers_in_short(found: dict) -> str:
    """Our squared errors as shares of those of the best of the others that quantize most of the
    inputs, by median; where no other can, of static scales. Where the others leave less in float
    than the default, ours is what leaves nothing.
    """
    rows = []
    for model in dict.fromkeys(row["model"] for row in found["rows"]):
        cells = [_shares(found["rows"], model, setting) for setting in SHOWN]
        rows.append([model, *cells])
    settings = found["settings"]
    return (
        f"{markdown(['median / mean', *SHOWN], rows, slice(0, 0))}\n\n"
        f"{settings['images']} images of {settings['steps']} steps, one seed of calibration; "
        f"{where(found)}."
    )


def _shares(rows: list[dict], model: str, setting: str) -> str:
    measured = {
        row["project"]: row
        for row in rows
        if (row["model"], row["setting"]) == (model, setting) and "median" in row
    }
    others = [
        row for name, row in measured.items() if "tdquant" not in name and row["inputs"] >= WHOLE
    ]
    others = others or [row for name, row in measured.items() if name == STATIC]
    if OURS not in measured or not others:
        return "-"
    best, ours = min(others, key=lambda row: row["median"]), measured[OURS]
    if ours["weights"] < best["weights"] - LESS:
        ours = measured.get(EDGES, ours)
    shares = " / ".join(f"{ours[key] / best[key]:.2g}" for key in ("median", "mean"))
    return f"{shares} {best['project'].removeprefix('tdquant, ')}{MARKS[ours['project']]}"


@register_table
def peers_by_bytes(found: dict) -> str:
    """Our least median error in no more bytes than another, whatever the bits, as a share of its:
    of every other that quantizes most of the weights.
    """
    rows, measured = [], [row for row in found["rows"] if "median" in row]
    for other in measured:
        own = OURS_ARE in other["project"] or other["setting"] == "float"
        if own or other["weights"] < WHOLE:
            continue
        ours = [
            row
            for row in measured
            if row["project"] in MARKS
            and row["model"] == other["model"]
            and row["bytes"] <= other["bytes"]
        ]
        best = min(ours, key=lambda row: row["median"], default=None)
        cells = ["-", "-", "-"]
        if best is not None:
            shares = (f"{best[key] / other[key]:.2g}" for key in ("median", "mean"))
            cells = [
                best["setting"] + MARKS[best["project"]],
                f"{best['bytes'] * 1e-3:.0f}",
                " / ".join(shares),
            ]
        kilobytes = f"{other['bytes'] * 1e-3:.0f}"
        rows.append([other["model"], other["project"], other["setting"], kilobytes, *cells])
    head = ["model", "other", "bits", "KB", "ours", "KB", "median / mean"]
    settings = found["settings"]
    return (
        f"{markdown(head, rows, slice(0, 0))}\n\n"
        f"{settings['images']} images of {settings['steps']} steps, one seed of calibration; "
        f"{where(found)}."
    )


@register_number
def default_over_static(found: dict, model: str, setting: str) -> float:
    """The default's median error over that of static scales."""
    errors = {
        row["project"]: row["median"]
        for row in found["rows"]
        if (row["model"], row["setting"]) == (model, setting) and "median" in row
    }
    return errors[OURS] / errors[STATIC]
