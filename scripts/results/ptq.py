"""Tables and numbers of post-training quantization."""

from scripts.results.study_rows import (
    DEFAULT,
    MODELS,
    STATIC,
    distances,
    one,
    range_of,
    seeds,
    words,
)
from scripts.results.tables import markdown, register_number, register_table, threads


@register_table
def ptq_distances(found: dict) -> str:
    """Distances of all ways to calibrate, static and temporal."""

    def row(model: str, method: str, widths: list[str], form: str) -> list[str]:
        kinds = ("static", "temporal") if method in STATIC else (None,)
        cells = [
            ", ".join(format(_distance(found, model, b, method, kind), form) for kind in kinds)
            for b in widths
        ]
        return [method + (": static, temporal" if kinds[0] else ""), *cells]

    return distances(found, row) + (
        f" of calibration on {found['settings']['trajectories']} trajectories. {threads(found)}."
    )


def _distance(found: dict, model: str, bits: str, method: str, kind: str | None) -> float:
    key = {"scale": kind} if kind else {}
    return one(found, "frechet", model=model, bits=bits, method=method, **key)


def _gain(found: dict, model: str, bits: str, method: str, value: str = "paired_median") -> float:
    """An error with temporal scales over that with static ones."""
    key = {"model": model, "bits": bits, "method": method}
    return one(found, value, scale="temporal", **key) / one(found, value, scale="static", **key)


@register_table
def ptq_errors(found: dict) -> str:
    """Median paired errors: temporal over static, and input-dynamic over the default."""
    widths = words(found, "bits", MODELS[0])
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
        f"paired errors of {settings['images']} samples, {seeds(found)} seeds. {threads(found)}."
    )


def _dynamic(found: dict, model: str, bits: str) -> float:
    errors = (
        one(found, "paired_median", model=model, bits=bits, method=method)
        for method in ("input-dynamic", DEFAULT)
    )
    dynamic, default = errors
    return dynamic / default


@register_number
def temporal_gains(found: dict, model: str, *bits: str) -> str:
    """Least and largest median paired error of temporal over static, at these widths or all."""
    return range_of([_gain(found, model, b, m) for b in bits or _bits(found) for m in STATIC])


@register_number
def temporal_distances(found: dict, model: str, *bits: str) -> str:
    """The same of distances."""
    wanted = bits or _bits(found)
    return range_of([_gain(found, model, b, m, "frechet") for b in wanted for m in STATIC])


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
    return range_of([_dynamic(found, model, bits) for bits in widths])


def _bits(found: dict) -> list[str]:
    return words(found, "bits", MODELS[0])


def _pairs(found: dict) -> list[tuple[str, str, str]]:
    return [(model, b, m) for model in MODELS for b in _bits(found) for m in STATIC]
