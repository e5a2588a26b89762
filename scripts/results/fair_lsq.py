"""The table of LSQ and TDQ that were searched alike, and numbers of it."""

from scripts.results.tables import markdown, register_number, register_table, threads

LAWS = ("LSQ", "TDQ")
PAIR = "TDQ over LSQ"


@register_table
def fair_lsq(found: dict) -> str:
    """The best LSQ and the best TDQ by optimizer steps, and what is missing."""
    settings = found["settings"]
    ratios, picks, _ = (table["rows"] for table in found["tables"])
    steps = [rung[0] for rung in settings["rungs"]][1:]
    rows = []
    for model, bits in dict.fromkeys((row["model"], row["bits"]) for row in picks):
        for count in steps:
            at = {"model": model, "bits": bits, "steps": count}
            best = [_one(picks, law=law, **at) for law in LAWS]
            ratio = _one(ratios, pair=PAIR, **at)
            rows.append(
                [
                    f"{model} {bits}, {count}",
                    *(_arm(row) for row in best),
                    " / ".join(f"{row['loss']:.4f}" if _made(row) else "-" for row in best),
                    *(_interval(ratio, name) for name in ("geometric", "mean", "median")),
                    _verdict(ratio),
                ]
            )
    head = [
        "model, optimizer steps", "LSQ", "TDQ", "loss, LSQ / TDQ", "error, TDQ / LSQ", "by means",
        "by medians", "verdict",
    ]  # fmt: skip
    seeds = {row["seeds"] for row in ratios if row["pair"] == PAIR}
    return (
        f"{markdown(head, rows, slice(3, 7))}\n\nThe arm of the least training loss on seed 0: "
        "its rate, the rate of scales over it, the form of the step, its start, and layers split "
        "behind concatenations or whole. Losses of distillation, the last fifth of the steps; "
        f"squared errors of {settings['images']} images of {settings['sampler_steps']} steps "
        "against the float model's from the same noise, ratio of geometric means with its "
        f"interval of 95 % over images and seeds. Batch {settings['batch']}, "
        f"{' to '.join(map(str, sorted(seeds))) or 'no'} seeds, {len(found['runs'])} runs. "
        f"-: not made. {threads(found)}."
    )


def _one(rows: list[dict], **key: object) -> dict | None:
    return next((row for row in rows if all(row.get(k) == v for k, v in key.items())), None)


def _made(row: dict | None) -> bool:
    return row is not None and "loss" in row


def _arm(row: dict | None) -> str:
    if row is None:
        return "-"
    words = [f"{row['rate']:g}", f"x{row['step_rate']:g}", row["start"], row["layers"]]
    return ", ".join([*words[:2], *([row["form"]] if row["law"] == "LSQ" else []), *words[2:]])


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
    """Loss of a law's best arm, mean over seeds."""
    key = {"model": model, "bits": bits, "steps": int(steps), "law": law}
    row = _one(found["tables"][1]["rows"], **key)
    if row is None:
        raise KeyError(f"{law} on {model} {bits} after {steps} steps was not made")
    return row["loss"]
