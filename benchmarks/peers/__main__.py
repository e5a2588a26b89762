"""Measures tdquant beside other quantizers: error of samples, bytes, time.

    python -m benchmarks.peers                          # what the committed table has, an hour
    python -m benchmarks.peers --again tdquant          # after a change of ours, its rows alone
    python -m benchmarks.peers --parts time --again     # the time column, on an idle machine
    python -m benchmarks.peers --models studies/models/dit-cats --out runs/dit.json

Rows that the results file has are kept, so a run that was stopped goes on. A package that is not
there is a row that says how to install it: pip install -e ".[bench]" has all.
"""

import argparse
import sys
import time
from functools import partial
from pathlib import Path

import torch
from benchmarks.peers.apart import EndedError, apart
from benchmarks.peers.measure import PARTS, measured
from benchmarks.peers.registry import PEERS
from benchmarks.peers.results import Results
from benchmarks.peers.world import RECORDED, SEEDS, TRIED, World

RESULTS = Path(__file__).parents[1] / "results" / "peers.json"
MODELS = ["cats-ddpm", "cats-ldm"]
BITS = ["W8A8", "W5A8", "W4A8", "W8A5"]


def parsed(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="MODEL",
                        help="embedded models and folders of studies/models")  # fmt: skip
    parser.add_argument("--bits", nargs="+", default=BITS, choices=BITS)
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD",
                        help="rows whose project has one of the words in its name")  # fmt: skip
    parser.add_argument("--again", nargs="*", metavar="WORD",
                        help="redo rows, all or those of projects with these words")  # fmt: skip
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--batch", type=int, default=32, help="images at a time")
    parser.add_argument("--rounds", type=int, default=21, help="timed calls, at batch 1")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args(argv)


def named(name, words):
    return words is not None and (not words or any(word in name for word in words))


def main(argv=None, peers=PEERS, apart=apart):
    args = parsed(argv)
    torch.set_num_threads(1)
    alone = partial(apart, threads=args.threads)
    settings = {
        "images": args.images, "steps": args.steps, "batch": args.batch, "rounds": args.rounds,
        "threads": args.threads, "seeds": SEEDS, "calibration": RECORDED, "trials": TRIED,
    }  # fmt: skip
    results = Results(args.out, settings)
    models = list(
        dict.fromkeys([*(k[0] for k in results.rows), *(Path(m).name for m in args.models)])
    )
    every = [
        (model, bits, kind.name)
        for model in models
        for bits in ("float", *BITS)
        for kind in peers
        if bits in kind.settings
    ]
    measured_here = []
    for name in args.models:
        world = World(name, args.images, args.steps, args.batch)
        for bits in ("float", *args.bits):
            for kind in peers:
                key = (world.name, bits, kind.name)
                if bits not in kind.settings or not named(kind.name, args.only):
                    continue
                again = named(kind.name, args.again)
                parts = args.parts if again else results.missing(key, args.parts)
                if not parts or not kind.applies(world.pipe.unet):
                    continue
                world.prepare(alone)
                started = time.perf_counter()
                try:
                    row = alone(measured, kind, bits, world, parts, args.rounds)
                except EndedError as error:
                    row = {"note": kind.note, "failed": str(error)}
                results.keep(key, row, every)
                measured_here.append(row)
                say(key, row, time.perf_counter() - started)
    print(f"{len(results.rows)} rows in {args.out}")
    failed = sum("failed" in row for row in measured_here)
    if failed:
        print(f"{failed} of {len(measured_here)} rows failed", file=sys.stderr)
    return int(0 < failed == len(measured_here))


def say(key, row, seconds):
    shown = {
        name: row[name] for name in ("mean", "median", "bytes", "ms", "float_ms") if name in row
    }
    shown |= {name: row[name] for name in ("missing", "failed") if name in row}
    words = ", ".join(
        f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in shown.items()
    )
    print(f"{' '.join(key)}: {words} ({seconds:.0f} s)", flush=True)


if __name__ == "__main__":
    sys.exit(main())
