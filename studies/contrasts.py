"""What runs of ``alternatives`` say: arms with time over arms without, as rows of tables.

Errors of images are kept with a run as whole numbers, ``-1000 log10 e``: three digits in five
characters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from arms import ARMS, DEFAULT, STATIC, TIME, WITHOUT
from ledger import Run
from verdicts import SEEDS, STATISTICS, VERDICTS, Comparison, compared

LEAST = 1e-12
"""Squared error below which images are equal."""

SAME = "same as"
"""Verdict on an arm that made the same models as one before."""

Key = tuple[str, str, str, str]
Table = dict[Key, dict[int, Tensor]]


def packed(errors: Tensor) -> str:
    """Errors ``(I,)`` as text."""
    numbers = (-1000 * errors.double().clamp(min=LEAST).log10()).round().long()
    return " ".join(map(str, numbers.tolist()))


def unpacked(text: str) -> Tensor:
    """The errors that ``packed`` wrote."""
    return 10.0 ** (torch.tensor([int(word) for word in text.split()]).double() / -1000)


def errors_of(runs: Iterable[Run]) -> Table:
    """Errors by model, bits, arm and form, and in these by seed."""
    found: Table = {}
    for run in runs:
        key = run["model"], run["bits"], run["arm"], run["time"]
        found.setdefault(key, {})[run["seed"]] = unpacked(run["errors"])
    return found


def paired(table: Table, key: Key, base: Key) -> dict[int, Tensor]:
    """Errors ``(2, I)`` of two arms by the seeds that both have."""
    a, b = table.get(key, {}), table.get(base, {})
    return {seed: torch.stack([a[seed], b[seed]]) for seed in sorted(a.keys() & b.keys())}


def typical(table: Table, key: Key) -> float:
    """Geometric mean of an arm's errors."""
    errors = torch.stack([*table[key].values()])
    return float(STATISTICS["geometric"](errors).exp())


def row(compared: Comparison, **words: Any) -> Run:
    """A comparison as a row of a table."""
    made: Run = {**words, "seeds": compared.seeds}
    for name, ratio in compared.ratios.items():
        ends = {"": ratio.value, "_low": ratio.low, "_high": ratio.high}
        made |= {f"{name}{end}": float(f"{value:.4g}") for end, value in ends.items()}
    return made | {"threshold": round(compared.threshold, 3), "verdict": compared.verdict}


def rows_of(table: Table, pairs: Iterable[tuple[Key, Key]]) -> list[Run]:
    """A row for each pair of keys that share seeds, named by the model, bits and arm of the second
    and the form of the first. A pair of the same errors as one before is no other evidence: its
    row has SAME for a verdict, and no numbers.
    """
    rows, known = [], dict[tuple[str, str], list[tuple[str, dict[int, Tensor]]]]()
    for key, base in pairs:
        errors = paired(table, key, base)
        if not errors:
            continue
        words = {"model": base[0], "bits": base[1], "arm": base[2], "time": key[3]}
        before = known.setdefault(key[:2], [])
        twin = next((arm for arm, other in before if _equal(errors, other)), None)
        if twin is None:
            before.append((base[2], errors))
            both = torch.stack([*errors.values()], dim=1)
            rows.append(row(compared(both[0], both[1]), **words))
        else:
            rows.append({**words, "seeds": len(errors), "verdict": f"{SAME} {twin}"})
    return rows


def _equal(errors: dict[int, Tensor], others: dict[int, Tensor]) -> bool:
    """Whether errors are equal on all seeds that both have."""
    both = errors.keys() & others.keys()
    return bool(both) and all(torch.equal(errors[seed], others[seed]) for seed in both)


def added(table: Table) -> list[Run]:
    """Every arm with time over itself without."""
    return rows_of(table, [(k, (*k[:3], WITHOUT)) for k in ordered(table) if k[3] != WITHOUT])


def replaced(table: Table) -> list[Run]:
    """Static steps of least squared error with time, over every other arm without."""
    others = [k for k in ordered(table) if k[3] == WITHOUT and k[2] != STATIC]
    return rows_of(table, [((*k[:2], STATIC, TIME), k) for k in others])


def beside_best(table: Table) -> list[Run]:
    """The default over the arm without time of the least geometric mean. That arm is chosen by the
    images that it is compared on, which is in its favour.
    """
    pairs = []
    for key in ordered(table):
        if key[2:] != (DEFAULT, TIME):
            continue
        others = [
            other
            for other, found in table.items()
            if (*other[:2], other[3]) == (*key[:2], WITHOUT)
            and len(table[key].keys() & found.keys()) >= min(SEEDS, len(table[key]))
        ]
        if others:
            pairs.append((key, min(others, key=lambda other: typical(table, other))))
    return rows_of(table, pairs)


def ordered(table: Table) -> list[Key]:
    """Keys in the order of ARMS."""
    return sorted(table, key=lambda key: list(ARMS).index(key[2]))


def sorted_rows(rows: Sequence[Run], place: Callable[[Run], Any]) -> list[Run]:
    """By ``place``, then negative verdicts first and largest ratios first; twins last."""
    order = {verdict: i for i, verdict in enumerate(VERDICTS)}
    return sorted(
        rows,
        key=lambda r: (place(r), order.get(r["verdict"], len(order)), -r.get("geometric", 0)),
    )
