"""Tables and numbers of models sampled with fewer steps."""

from scripts.results.study_rows import one, range_of, rows_of
from scripts.results.tables import markdown, register_number, register_table, threads

ARMS = ("TDQ", "TDQ, corrected", "LSQ", "LSQ, corrected")


@register_table
def fewer_steps(found: dict) -> str:
    """Distances by number of sampler steps, over float's in brackets; then their growth."""
    schedulers = list(dict.fromkeys(row["scheduler"] for row in rows_of(found)))
    first = [row for row in rows_of(found) if row["scheduler"] == schedulers[0]]
    rows = []
    for steps in dict.fromkeys(row["steps"] for row in first):
        line = {row["method"]: row for row in first if row["steps"] == steps}
        rows.append(
            [steps, f"{line['float']['frechet']:.1f}",
             *(f"{line[arm]['frechet']:.1f} ({line[arm]['ratio']:.2f})" for arm in ARMS)]
        )  # fmt: skip
    head = [f"{schedulers[0]}, steps", "float", *ARMS]
    grown = [[name, *(f"{_growth(found, arm, name):.2f}" for arm in ARMS)] for name in schedulers]
    settings = found["settings"]
    training = settings["training"]
    return (
        f"{markdown(head, rows, slice(0, None))}\n\n"
        f"{markdown(['growth from 100 to 10 steps', *ARMS], grown, slice(1, None))}\n\n"
        f"Frechet EfficientNet-Lite0 distance of {settings['images']} images, in brackets "
        f"divided by float's. The second table divides that ratio at 10 steps by the one at 100: "
        f"above 1, the model loses more than float does. `cats-ddpm`, W4A4, "
        f"{training['steps']:,} optimizer steps of batch {training['batch']}, one seed. "
        f"{threads(found)}."
    )


def _growth(found: dict, arm: str, scheduler: str) -> float:
    few, many = (
        one(found, "ratio", method=arm, scheduler=scheduler, steps=steps) for steps in (10, 100)
    )
    return few / many


def _against(found: dict, value: str, corrected: str) -> list[float]:
    """TDQ over LSQ at every number of steps with every scheduler."""
    end = ", corrected" if corrected else ""
    keys = [(r["scheduler"], r["steps"]) for r in rows_of(found) if r["method"] == "float"]
    return [
        one(found, value, method="TDQ" + end, scheduler=name, steps=steps)
        / one(found, value, method="LSQ" + end, scheduler=name, steps=steps)
        for name, steps in keys
    ]


@register_number
def tdq_over_lsq(found: dict, value: str, corrected: str = "") -> str:
    """Least and largest of TDQ's distance or error over LSQ's."""
    return range_of(_against(found, value, corrected))


@register_number
def tdq_smaller(found: dict, value: str, corrected: str = "") -> int:
    """At how many settings TDQ's is the smaller one."""
    return sum(ratio < 1 for ratio in _against(found, value, corrected))


@register_number
def settings_of_sampling(found: dict) -> int:
    """Schedulers times numbers of steps."""
    return len(_against(found, "frechet", ""))


@register_number
def over_float(found: dict, arm: str, corrected: str = "") -> str:
    """A model's distance over float's, least and largest."""
    method = arm + (", corrected" if corrected else "")
    return range_of([row["ratio"] for row in rows_of(found) if row["method"] == method])
