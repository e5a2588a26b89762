"""The table of LSQ and TDQ that were searched alike, and numbers of it."""

from scripts.results.tables import markdown, register_number, register_table, threads

LAWS = ("LSQ", "TDQ")
PAIR = "TDQ over LSQ"


@register_table
def fair_lsq(found: dict) -> str:
    """The best LSQ and the best TDQ by optimizer steps, and what is missing."""
    settings = found["settings"]
    ratios, picks, searched = (table["rows"] for table in found["tables"])
    steps = [rung[0] for rung in settings["rungs"]][1:]
    rows = []
    for model, bits in dict.fromkeys((row["model"], row["bits"]) for row in searched):
        for count in steps:
            at = {"model": model, "bits": bits, "steps": count}
            ratio = _one(ratios, pair=PAIR, **at)
            best = {law: _least(searched, law=law, **at) for law in LAWS}
            ended = {law: _one(picks, law=law, **at) is not None for law in LAWS}
            rows.append(
                [
                    f"{model} {bits}, {count}",
                    *(_arm(best[law], ended[law]) for law in LAWS),
                    " / ".join(f"{row['loss']:.4f}" if row else "-" for row in best.values()),
                    *(_interval(ratio, name) for name in ("geometric", "mean", "median")),
                    _verdict(ratio),
                ]
            )
    head = [
        "model, optimizer steps", "LSQ", "TDQ", "loss, LSQ / TDQ", "error, TDQ / LSQ", "by means",
        "by medians", "verdict",
    ]  # fmt: skip
    seeds = sorted({row["seeds"] for row in ratios if row["pair"] == PAIR})
    return (
        f"{markdown(head, rows, slice(3, 7))}\n\n*LSQ*, *TDQ*: the arm with the smallest "
        "training loss on seed 0: learning rate, factor for the rate of the scales, form of the "
        "step (LSQ), start, and layers split behind concatenations or whole. *Loss*: distillation "
        "loss on seed 0 over the last fifth of the steps. *Error*: paired errors of "
        f"{settings['images']} images of {settings['sampler_steps']} steps, ratio of geometric "
        "means with its 95 % interval over images and seeds. Batch "
        f"{settings['batch']}, {' to '.join(map(str, seeds)) or 'no'} seeds, "
        f"{len(found['runs'])} runs. -: not run yet; *: the search has not ended. "
        f"{threads(found)}."
    )


def _one(rows: list[dict], **key: object) -> dict | None:
    return next((row for row in rows if all(row.get(k) == v for k, v in key.items())), None)


def _least(searched: list[dict], **key: object) -> dict | None:
    """The arm of the least loss so far."""
    rows = [row for row in searched if all(row.get(k) == v for k, v in key.items())]
    return min((row for row in rows if row["loss"]), key=lambda row: row["loss"], default=None)


def _arm(row: dict | None, ended: bool) -> str:
    if row is None:
        return "-"
    words = [f"{row['rate']:g}", f"x{row['step_rate']:g}", row["start"], row["layers"]]
    words[2:2] = [row["form"]] if row["law"] == "LSQ" else []
    return ", ".join(words) + "*" * (not ended)


def _interval(row: dict | None, name: str) -> str:
    if row is None:
        return "-"
    return f"{row[name]:.2f} ({row[f'{name}_low']:.2f} to {row[f'{name}_high']:.2f})"


def _verdict(row: dict | None) -> str:
    return "-" if row is None else row["verdict"].replace("time", "TDQ")


@register_number
def fair_ratio(found: dict, model: str, bits: str, steps: str, name: str = "geometric") -> float:
    """TDQ's value over LSQ's: "geometric", "mean" or "median" of errors, or "loss_ratio"."""
    key = {"model": model, "bits": bits, "steps": int(steps), "pair": PAIR}
    row = _one(found["tables"][0]["rows"], **key)
    if row is None:
        raise KeyError(f"{model} {bits} after {steps} steps was not made")
    return row[name]


@register_number
def fair_loss(found: dict, model: str, bits: str, steps: str, law: str) -> float:
    """Loss of a law's best arm so far on seed 0."""
    key = {"model": model, "bits": bits, "steps": int(steps), "law": law}
    row = _least(found["tables"][2]["rows"], **key)
    if row is None:
        raise KeyError(f"{law} on {model} {bits} after {steps} steps was not made")
    return row["loss"]


@register_number
def fair_arms(found: dict, model: str, bits: str, steps: str, law: str) -> int:
    """Arms of a law that were trained for so many steps."""
    key = {"model": model, "bits": bits, "steps": int(steps), "law": law}
    return sum(all(row.get(k) == v for k, v in key.items()) for row in found["tables"][2]["rows"])
