"""Tables and numbers of the studies."""

import statistics
from collections import Counter
from collections.abc import Iterable

from scripts.results.tables import (
    markdown,
    register_number,
    register_table,
    results,
    threads,
)

MODELS = ("cats-ddpm", "cats-ldm")
STATIC = ("min-max", "percentile", "mse", "PTQ4DM's draw", "Q-Diffusion's")
DEFAULT = "tdquant's default"


def _rows(found: dict) -> list[dict]:
    """Means over seeds."""
    return found["tables"][0]["rows"]


def _one(found: dict, value: str, **key: object) -> float:
    """A value of the one row with that key."""
    (row,) = (r for r in _rows(found) if all(r.get(k) == v for k, v in key.items()))
    return row[value]


def _words(found: dict, key: str, model: str) -> list[str]:
    """The values of a key in the rows of a model, but for float."""
    rows = (r for r in _rows(found) if r["model"] == model)
    return [word for word in dict.fromkeys(r[key] for r in rows) if word != "float"]


def _seeds(found: dict) -> int:
    return max(row["seeds"] for row in _rows(found))


def _range(values: Iterable[float], form: str = ".2f") -> str:
    least, most = (format(end(values), form) for end in (min, max))
    return least if least == most else f"{least} to {most}"


@register_table
def verdicts(found: dict) -> str:
    """Every study, its verdict and what it measured."""
    order = sorted(found.items(), key=lambda item: item[1]["position"])
    rows = [
        [f"`{name}`", study["verdict"], study["measured"].replace("|", "\\|")]
        for name, study in order
    ]
    return markdown(["study", "verdict", "measured"], rows, slice(0, 0))


# Post-training quantization


@register_table
def ptq_distances(found: dict) -> str:
    """Distances of all ways to calibrate, static and temporal."""
    settings, pages = found["settings"], []
    for model in MODELS:
        form = ".0f" if model == "cats-ddpm" else ".1f"
        widths = _words(found, "bits", model)
        rows = []
        for method in _words(found, "method", model):
            kinds = ("static", "temporal") if method in STATIC else (None,)
            cells = [
                ", ".join(format(_distance(found, model, bits, method, kind), form)
                          for kind in kinds)
                for bits in widths
            ]  # fmt: skip
            rows.append([method + (": static, temporal" if kinds[0] else ""), *cells])
        exact = _one(found, "frechet", model=model, bits="float")
        pages.append(markdown([f"{model}, float {exact:{form}}", *widths], rows, slice(1, None)))
    return "\n\n".join(pages) + (
        f"\n\nFrechet EfficientNet-Lite0 distance to 5,000 held-out cats of {settings['images']} "
        f"images of {settings['sampler_steps']} DDIM steps, mean over {_seeds(found)} seeds of "
        f"calibration on {settings['trajectories']} trajectories. {threads(found)}."
    )


def _distance(found: dict, model: str, bits: str, method: str, kind: str | None) -> float:
    key = {"scale": kind} if kind else {}
    return _one(found, "frechet", model=model, bits=bits, method=method, **key)


def _gain(found: dict, model: str, bits: str, method: str, value: str = "paired_median") -> float:
    """An error with temporal scales over that with static ones."""
    key = {"model": model, "bits": bits, "method": method}
    return _one(found, value, scale="temporal", **key) / _one(found, value, scale="static", **key)


@register_table
def ptq_errors(found: dict) -> str:
    """Median paired errors: temporal over static, and input-dynamic over the default."""
    widths = _words(found, "bits", MODELS[0])
    rows = [
        [f"{model}, {method}", *(f"{_gain(found, model, bits, method):.2f}" for bits in widths)]
        for model in MODELS
        for method in STATIC
    ]
    rows += [
        [f"{model}, input-dynamic / {DEFAULT}",
         *(f"{_dynamic(found, model, bits):.2f}" for bits in widths)]
        for model in MODELS
    ]  # fmt: skip
    settings = found["settings"]
    return (
        f"{markdown(['temporal / static', *widths], rows, slice(1, None))}\n\nRatios of median "
        f"squared errors of {settings['images']} samples against the float model's from the same "
        f"noise, {_seeds(found)} seeds. {threads(found)}."
    )


def _dynamic(found: dict, model: str, bits: str) -> float:
    errors = (
        _one(found, "paired_median", model=model, bits=bits, method=method)
        for method in ("input-dynamic", DEFAULT)
    )
    dynamic, default = errors
    return dynamic / default


@register_number
def temporal_gains(found: dict, model: str, *bits: str) -> str:
    """Least and largest median paired error of temporal over static, at these widths or all."""
    return _range([_gain(found, model, b, m) for b in bits or _bits(found) for m in STATIC])


@register_number
def temporal_distances(found: dict, model: str, *bits: str) -> str:
    """The same of distances."""
    wanted = bits or _bits(found)
    return _range([_gain(found, model, b, m, "frechet") for b in wanted for m in STATIC])


@register_number
def pairs_smaller(found: dict) -> int:
    """Methods, widths and models at which temporal scales have the smaller median."""
    return sum(_gain(found, model, b, m) < 1 for model, b, m in _pairs(found))


@register_number
def pairs(found: dict) -> int:
    """All of them."""
    return len(_pairs(found))


@register_number
def dynamic_share(found: dict, model: str) -> str:
    """Input-dynamic scales' median paired error over the default's at 8-bit weights."""
    widths = [bits for bits in _bits(found) if bits.startswith("W8")]
    return _range([_dynamic(found, model, bits) for bits in widths])


def _bits(found: dict) -> list[str]:
    return _words(found, "bits", MODELS[0])


def _pairs(found: dict) -> list[tuple[str, str, str]]:
    return [(model, b, m) for model in MODELS for b in _bits(found) for m in STATIC]


# Training


@register_table
def trained(found: dict) -> str:
    """Distances after training with every kind of scale."""
    settings, pages = found["settings"], []
    for model in MODELS:
        form = ".0f" if model == "cats-ddpm" else ".1f"
        widths = _words(found, "bits", model)
        rows = [
            [method, *(format(_one(found, "frechet", model=model, bits=b, method=method), form)
                       for b in widths)]
            for method in _words(found, "method", model)
        ]  # fmt: skip
        exact = _one(found, "frechet", model=model, bits="float")
        pages.append(markdown([f"{model}, float {exact:{form}}", *widths], rows, slice(1, None)))
    return "\n\n".join(pages) + (
        f"\n\nFrechet EfficientNet-Lite0 distance to 5,000 held-out cats of {settings['images']} "
        f"images of {settings['sampler_steps']} DDIM steps, mean over {_seeds(found)} seeds, "
        f"after {settings['steps']} optimizer steps of batch {settings['batch']} of distillation. "
        f"{threads(found)}."
    )


@register_number
def over_lsq(found: dict, model: str, *bits: str) -> str:
    """TDQ's distance over the better LSQ's, at these widths or all."""
    return _range([_over_lsq(found, model, b) for b in bits or _words(found, "bits", model)])


def _over_lsq(found: dict, model: str, bits: str) -> float:
    at = {"model": model, "bits": bits}
    others = (_one(found, "frechet", method=m, **at) for m in ("LSQ", "LSQ, judged start"))
    return _one(found, "frechet", method="TDQ", **at) / min(others)


@register_number
def seeds_spread(found: dict) -> str:
    """Median and largest distance of the largest seed to the least, over their mean."""
    spreads = [
        (row["frechet_high"] - row["frechet_low"]) / row["frechet"]
        for row in _rows(found)
        if row["seeds"] > 1
    ]
    return f"{statistics.median(spreads):.0%} in the median row and {max(spreads):.0%} at most"


# Fewer sampler steps

ARMS = ("TDQ", "TDQ, corrected", "LSQ", "LSQ, corrected")


@register_table
def fewer_steps(found: dict) -> str:
    """Distances by number of sampler steps, over float's in brackets; then their growth."""
    schedulers = list(dict.fromkeys(row["scheduler"] for row in _rows(found)))
    first = [row for row in _rows(found) if row["scheduler"] == schedulers[0]]
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
        f"{markdown(['from 100 to 10 steps, times', *ARMS], grown, slice(1, None))}\n\n"
        f"Frechet EfficientNet-Lite0 distance of {settings['images']} images, over float's in "
        f"brackets; the second table is what that ratio is multiplied by. `cats-ddpm`, W4A4, "
        f"{training['steps']:,} optimizer steps of batch {training['batch']}, one seed. "
        f"{threads(found)}."
    )


def _growth(found: dict, arm: str, scheduler: str) -> float:
    few, many = (
        _one(found, "ratio", method=arm, scheduler=scheduler, steps=steps) for steps in (10, 100)
    )
    return few / many


def _against(found: dict, value: str, corrected: str) -> list[float]:
    """TDQ over LSQ at every number of steps with every scheduler."""
    end = ", corrected" if corrected else ""
    keys = [(r["scheduler"], r["steps"]) for r in _rows(found) if r["method"] == "float"]
    return [
        _one(found, value, method="TDQ" + end, scheduler=name, steps=steps)
        / _one(found, value, method="LSQ" + end, scheduler=name, steps=steps)
        for name, steps in keys
    ]


@register_number
def tdq_over_lsq(found: dict, value: str, corrected: str = "") -> str:
    """Least and largest of TDQ's distance or error over LSQ's."""
    return _range(_against(found, value, corrected))


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
    return _range([row["ratio"] for row in _rows(found) if row["method"] == method])


# Parts of a temporal scale

PARTS = {"law": "kind of scale", "share": "temporal layers", "encoding": "encoding of time"}


@register_table
def parts(found: dict) -> str:
    """One change of the network of a scale at a time."""
    base = _rows(found)[0]
    rows = []
    for part in dict.fromkeys(row["part"] for row in _rows(found)):
        those = [row for row in _rows(found) if row["part"] == part and row is not base]
        if those:
            words = "; ".join(f"{row['choice']}: {row['ratio']:.2f}" for row in those)
            rows.append([PARTS.get(part, part), words])
    settings = found["settings"]
    exact = _one(results("studies/qat"), "frechet", model=settings["model"], bits="float")
    others = Counter(run["processor"] for run in found["runs"] if "processor" in run)
    elsewhere = "".join(
        f"; {count} of {len(found['runs'])} runs on {name}" for name, count in others.items()
    )
    head = ["part", "choice, and its distance over the published form"]
    return (
        f"{markdown(head, rows, slice(0, 0))}\n\nThe published form ({base['choice']}) has a "
        f"distance of {base['frechet']:.1f} ({base['frechet_low']:.0f} to "
        f"{base['frechet_high']:.0f}), float {exact:.1f}: `{settings['model']}` at W4A4, "
        f"{settings['steps']} optimizer steps of batch {settings['batch']} at a rate of "
        f"{settings['rate']:g} unless named, {settings['images']} images, {_seeds(found)} seeds. "
        f"{threads(found)}{elsewhere}."
    )


# Movement


@register_table
def moving_inputs(found: dict) -> str:
    """How far the best step of each input moves over time, by model."""
    rows = []
    for model in MODELS:
        layers = [row for row in _rows(found) if row["model"] == model]
        row: list[object] = [model, len(layers), sum(abs(r["r"]) > 0.5 for r in layers)]
        for bits in (4, 8):
            moves = [r[f"range{bits}"] for r in layers]
            saved = sum(r[f"saved{bits}"] > 0.1 for r in layers)
            far = sum(move > 2 for move in moves)
            row += [f"{statistics.median(moves):.1f}", f"{max(moves):.1f}", far, saved]
        rows.append(row)
    each = ["median move", "largest", "above 2", "saved > 10 %"]
    head = ["", "layers", "abs(r) > 0.5", *(f"{b} bits: {word}" for b in (4, 8) for word in each)]
    settings = found["settings"]
    return (
        f"{markdown(head, rows, slice(1, None))}\n\n*Move*: the largest over the least step of "
        "an input over time; *saved*: the share of its squared error that a step for each time "
        f"saves over one step. {settings['trajectories']} trajectories of {settings['steps']} "
        f"steps. {threads(found)}."
    )


@register_number
def largest_move(found: dict, model: str, bits: str) -> float:
    """The largest over the least step of the input that moves most."""
    return max(row[f"range{bits}"] for row in _rows(found) if row["model"] == model)


@register_number
def layers_that_move(found: dict, model: str) -> int:
    """Inputs whose 4-bit step moves by more than twice."""
    return sum(row["range4"] > 2 for row in _rows(found) if row["model"] == model)


# Cost


def _calls(found: dict, backend: str) -> list[float]:
    """Milliseconds of a call with temporal scales over those with static ones."""
    names = ("model", "batch", "bits", "backend")
    times = {
        (row["scale"], *(row[name] for name in names)): row["milliseconds"]
        for row in _rows(found)
        if row["work"] == "call" and backend in ("all", row["backend"])
    }
    return [
        value / times[("static", *key)]
        for (scale, *key), value in times.items()
        if scale == "temporal"
    ]


@register_number
def call_median(found: dict) -> float:
    """Their median."""
    return statistics.median(_calls(found, "all"))


@register_number
def call_pairs(found: dict) -> int:
    """How many pairs there are."""
    return len(_calls(found, "all"))


@register_number
def call_range(found: dict, backend: str) -> str:
    """Least and largest of an engine, or of all."""
    return _range(_calls(found, backend))


@register_table
def cost_of_training(found: dict) -> str:
    """A training step with every kind of scale over float's."""
    rows = []
    for model in MODELS:
        steps = [r for r in _rows(found) if (r["model"], r["work"]) == (model, "training step")]
        rows.append([model, *(f"{r['ratio']:.2f}" for r in steps if r["scale"] != "float")])
    kinds = [r["scale"] for r in steps if r["scale"] != "float"]
    batch = found["settings"]["training_batch"]
    return (
        f"{markdown(['step / float step', *kinds], rows, slice(1, None))}\n\nW4A4, batch {batch}, "
        f"medians of {found['settings']['rounds']}. {threads(found)}."
    )
