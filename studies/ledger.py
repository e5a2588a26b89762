"""What a study keeps: runs as they are made, tables over seeds, and one file that reports read.

A run is a few words that say which it is (model, bits, method, seed) and the numbers it gave.
Every run is written as soon as it is there; started again, a study makes those that are missing.
Several processes may make one study: ``--share 0/2`` and ``--share 1/2`` take half of the runs
each. ``--again`` makes what is there once more, and shows both.
"""

from __future__ import annotations

import argparse
import fcntl
import itertools
import json
import statistics
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from tdquant.files.documents import json_safe
from tdquant.files.writing import replacing
from tdquant.lab.report.formats import StudyFile
from tdquant.support.machine import machine

RESULTS = Path(__file__).parent / "results"
UNFINISHED = "not finished"
NOTHING = (None, "float", "-")
AGAIN = "--again"

Run = dict[str, Any]
Column = dict[str, Any]


class Ledger:
    """The runs of one study.

    Arguments:
        name: Of the file, ``results/NAME.json``.
        keys: What tells runs apart, in the order in which a table shows it; ``seed`` is one.
        settings: What all runs share. Runs of other settings are not mixed with these.
    """

    def __init__(self, name: str, keys: Sequence[str], settings: Mapping[str, Any]) -> None:
        self.name, self.keys = name, tuple(keys)
        self.settings = json.loads(json.dumps(dict(settings)))
        self.file = RESULTS / f"{name}.json"
        self.runs: list[Run] = []
        self.kept: dict[str, Any] = {}
        self.share = (0, 1)
        self.again = False
        self._read()
        # Of the runs: a summary that is written elsewhere tells of no other machine.
        self.machine: dict[str, Any] = self.kept.get("machine") or dict(machine())

    def _read(self) -> None:
        """Takes in what the file has: runs of earlier times and of other processes."""
        if not self.file.exists():
            return
        before = json.loads(self.file.read_text())
        if before["settings"] != self.settings:
            raise SystemExit(
                f"{self.file} has runs of other settings:\n  {before['settings']}\nnot\n"
                f"  {self.settings}\nMove it away, or give these settings another --name."
            )
        known = {self._key(run) for run in self.runs}
        self.runs += [run for run in before["runs"] if self._key(run) not in known]
        self.kept = before | self.kept

    def _key(self, run: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(run.get(k) for k in self.keys)

    def find(self, **key: Any) -> Run | None:
        """The run of that key, if it was made."""
        return next((r for r in self.runs if all(r.get(k) == v for k, v in key.items())), None)

    def select(self, **key: Any) -> list[Run]:
        """All runs with these values."""
        return [r for r in self.runs if all(r.get(k) == v for k, v in key.items())]

    def make(self, key: Mapping[str, Any], run: Callable[[], Mapping[str, Any]]) -> Run | None:
        """The run of a key: from the file, or made now and written; None if it is missing and
        another process's share.
        """
        self._read()
        found = self.find(**key)
        part, of = self.share
        mine = zlib.crc32(repr(self._key(key)).encode()) % of == part
        if self.again or (found is None and mine):
            began = time.perf_counter()
            made = {**key, **run(), "seconds": round(time.perf_counter() - began, 1)}
            self._take([made])
            return found or made
        return found

    def make_together(
        self, key: Mapping[str, Any], runs: Callable[[], Iterable[Mapping[str, Any]]]
    ) -> None:
        """The runs that one measurement gives, each with the rest of its key: all of them or,
        where some of that key are in the file, none.
        """
        self._read()
        if self.select(**key) and not self.again:
            return
        began = time.perf_counter()
        made = [{**key, **run} for run in runs()]
        each = (time.perf_counter() - began) / max(len(made), 1)
        self._take([run | {"seconds": round(each, 2)} for run in made])

    def _take(self, made: Sequence[Run]) -> None:
        """Prints runs and writes them; those made again are shown beside those of the file."""
        here = dict(machine())
        for run in made:
            before = self.find(**{k: run.get(k) for k in self.keys}) if self.again else None
            print(_line(run), flush=True)
            if before is not None:
                print(f"  in the file: {_line(before, self.keys)}", flush=True)
        if self.again:
            return
        if self.runs and here["processor"] != self.machine["processor"]:
            made = [run | {"processor": here["processor"]} for run in made]
        else:
            self.machine = here
        self.runs += made
        self.write()

    def write(self, **study: Any) -> None:
        """Writes the study: its runs, and whatever is said about them. Runs made again leave the
        file as it is.
        """
        if self.again:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._read()
            self._write(study)

    def _write(self, study: Mapping[str, Any]) -> None:
        self.kept |= {
            "format": StudyFile.FORMAT,
            "version": StudyFile.VERSION,
            "study": self.name,
            "settings": self.settings,
            "machine": self.machine,
            "updated": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "seconds": round(sum(r.get("seconds", 0.0) for r in self.runs), 1),
            **study,
            "runs": self.runs,
        }
        self.kept.setdefault("verdict", UNFINISHED)
        for words in ("question", "claim", "measured"):
            self.kept[words] = " ".join(self.kept.get(words, "").split())
        with replacing(self.file) as fresh:
            fresh.write_text(json.dumps(json_safe(self.kept), indent=1) + "\n")

    def elsewhere(self) -> str:
        """How many runs were made on other processors than the study's, in a sentence; nothing if
        none was.
        """
        names = Counter(run["processor"] for run in self.runs if "processor" in run)
        made = ", ".join(f"{count} on {name}" for name, count in names.items())
        return f" Of {len(self.runs)} runs {made}." if made else ""

    def over_seeds(self, runs: Iterable[Run], values: Sequence[str], command: str) -> list[Run]:
        """One row for each key: mean, least and largest of each value over the seeds, and how to
        make it again.
        """
        words = [k for k in self.keys if k != "seed"]
        groups: dict[tuple[Any, ...], list[Run]] = {}
        for run in runs:
            groups.setdefault(tuple(run.get(k) for k in words), []).append(run)
        rows = []
        for key, group in groups.items():
            row: Run = {**dict(zip(words, key, strict=True)), "seeds": len(group)}
            for value in values:
                found = [r[value] for r in group if r.get(value) is not None]
                if found:
                    row[value] = statistics.mean(found)
                    if len(found) > 1:
                        row[f"{value}_low"], row[f"{value}_high"] = min(found), max(found)
            # The float model has no bits or rate to choose.
            flags = [
                f'--{k} "{v}"'
                for k, v in zip(words, key, strict=True)
                if v not in NOTHING or k == "method"
            ]
            row["command"] = " ".join([command, *flags, AGAIN])
            rows.append(row)
        return rows


def conduct(
    arguments: argparse.Namespace,
    name: str,
    keys: Sequence[str],
    settings: Mapping[str, Any],
    make_runs: Callable[[Ledger, argparse.Namespace], None],
    tell: Callable[[Ledger], None],
) -> None:
    """A study as its command line wants it: the runs that are missing, and what they say.

    The number of threads is fixed, so that numbers do not depend on who else runs, and times a
    little.
    """
    torch.set_num_threads(arguments.threads)
    ledger = Ledger(arguments.name or name, keys, settings)
    ledger.share, ledger.again = getattr(arguments, "share", ledger.share), arguments.again
    if not arguments.summary:
        make_runs(ledger, arguments)
    tell(ledger)


def grid(**axes: Sequence[Any]) -> list[dict[str, Any]]:
    """Every combination of the axes' values, the last axis fastest."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def parser(
    text: str | None, seeds: bool = False, shared: bool = False, **axes: Sequence[Any]
) -> argparse.ArgumentParser:
    """A study's command line: a flag for each axis, by which runs are chosen, and flags for seeds
    and for processes that share them where a study knows of these.
    """
    made = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for axis, values in axes.items():
        kind = type(values[0])
        made.add_argument(f"--{axis}", nargs="+", type=kind, default=list(values), choices=values)
    if seeds:
        made.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    if shared:
        made.add_argument(
            "--share", type=_share, default=(0, 1), metavar="I/N", help="part I of N, from 0"
        )
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--name", help="of the file in results; the study's own by default")
    only = made.add_mutually_exclusive_group()
    only.add_argument("--summary", action="store_true", help="make nothing, write the tables anew")
    only.add_argument(
        AGAIN, action="store_true",
        help="make the chosen runs once more and show both; the file stays as it is",
    )  # fmt: skip
    return made


def _share(text: str) -> tuple[int, int]:
    mine, of = map(int, text.split("/"))
    if not 0 <= mine < of:
        raise ValueError(text)
    return mine, of


def ratio(
    rows: Sequence[Run], value: str, base: Mapping[str, Any], other: Mapping[str, Any]
) -> float | None:
    """Mean of a value over the runs of ``other``, divided by that over the runs of ``base``, on
    the seeds that both have.
    """

    def by_seed(key: Mapping[str, Any]) -> dict[int, float]:
        return {r["seed"]: r[value] for r in rows if all(r.get(k) == v for k, v in key.items())}

    a, b = by_seed(base), by_seed(other)
    both = sorted(a.keys() & b.keys())
    if not both:
        return None
    return sum(b[s] for s in both) / sum(a[s] for s in both)


def span(values: Iterable[float]) -> str:
    """Ratios in words: ``"0.38x to 0.70x"``, or one if they read the same."""
    found = sorted(values)
    ends = dict.fromkeys(f"{value:.2f}x" for value in (found[0], found[-1]))
    return " to ".join(ends)


def sentence(clauses: Iterable[str], made: int = 0, wanted: int = 0) -> str:
    """What was measured, and how many runs there are as long as some are missing."""
    words = "; ".join(clause for clause in clauses if clause)
    missing = f"{made} of {wanted} runs made" if made < wanted else ""
    return ". ".join(part for part in (words, missing) if part) + "."


def column(key: str, label: str, digits: int | None = None, better: str | None = None) -> Column:
    """A column of a table: which value of a row, its words, decimals, and whether ``"lower"`` or
    ``"higher"`` is better.
    """
    made = {"key": key, "label": label, "digits": digits, "better": better}
    return {k: v for k, v in made.items() if v is not None}


def marks(
    name: str,
    rows: Iterable[Run],
    value: str,
    words: Sequence[str],
    key: str,
    hue: int,
    hollow: bool = False,
) -> Run:
    """A series of a plot over words, such as bits: the value of each row where ``row[key]`` is,
    with its least and largest over the seeds.
    """
    rows = sorted(rows, key=lambda row: words.index(row[key]))
    made: Run = {"name": name, "hue": hue, "dashed": hollow}
    made |= {"x": [words.index(row[key]) for row in rows], "y": [row[value] for row in rows]}
    return made | {end: [row.get(f"{value}_{end}") for row in rows] for end in ("low", "high")}


FRECHET = column("frechet", "Frechet EfficientNet-Lite0 distance", 1, "lower")


def _line(run: Mapping[str, Any], without: Sequence[str] = ()) -> str:
    """A run in a line, lists left out."""
    kept = {k: v for k, v in run.items() if not isinstance(v, list) and k not in without}
    return " ".join(f"{k}={_short(v)}" for k, v in kept.items())


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
