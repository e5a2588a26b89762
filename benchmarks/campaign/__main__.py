"""The command: ``python -m benchmarks.campaign files kills disks threads shapes``."""

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path

from benchmarks.campaign import disks, files, kills, sharing

from tdquant.support.machine import machine

RESULTS = Path(__file__).parents[1] / "results" / "campaign.json"
PARTS = ("files", "kills", "disks", "threads", "shapes")


def run_files(args, deadline, done):
    """Damaged files: those that failed again, then from the first number on that was not tried;
    every 500 are kept at once.
    """
    found = done.get("files", {"tried": 0, "seed": args.seed, "table": {}, "failures": []})
    table = {name: Counter(row) for name, row in found["table"].items()}
    failed = {_number(case): case for case in found["failures"]}
    numbers = [*failed, *range(found["tried"], args.cases)]

    def results():
        return found | {"table": table, "failures": list(failed.values())}

    for case in files.run(args.out, numbers, found["seed"], args.share, deadline):
        number, row = _number(case), table.setdefault(case["format"], Counter())
        if number in failed:
            row[failed.pop(number)["outcome"]] -= 1
        row[case["outcome"]] += 1
        if case["outcome"] not in files.GOOD:
            kept = ("format", "seed", "mutation", "outcome", "why")
            failed[number] = {key: case.get(key) for key in kept}
        found["tried"] = max(found["tried"], number + 1)
        if found["tried"] % 500 == 0:
            keep(args.out, done | {"files": results()})
        table = {name: +row for name, row in table.items()}  # without zeros
    return results()


def _number(case):
    return int(case["seed"].rpartition("-")[2])


def run_kills(args, deadline, done):
    """Killed writers; cases that were tried are not tried again, unless they failed."""
    earlier = done.get("kills", {"passed": {}, "failures": []})
    passed, failed = earlier["passed"], {case["case"]: case for case in earlier["failures"]}

    def results():
        table = {name: Counter({"the same": len(cases)}) for name, cases in passed.items()}
        for case in failed.values():
            table.setdefault(kind(case), Counter())[case["outcome"]] += 1
        return {"table": table, "passed": passed, "failures": list(failed.values())}

    def kind(case):
        return f"{case['writer']}, at a {case['at']}"

    known = {case for cases in passed.values() for case in cases}
    for case in kills.run(args.out, args.points, args.seed, args.share, deadline, passed=known):
        failed.pop(case["case"], None)
        if case["outcome"] == "the same":
            passed.setdefault(kind(case), []).append(case["case"])
        else:
            failed[case["case"]] = case
        keep(args.out, done | {"kills": results()})
    return results()


def keep(out, results):
    """Writes the results so far."""
    fresh = out / "results.new"
    fresh.write_text(json.dumps(results, indent=1) + "\n")
    fresh.replace(out / "results.json")


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks.campaign", description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--cases", type=int, default=10_000, help="damaged files")
    parser.add_argument("--points", type=int, default=200, help="random moments of kill -9")
    parser.add_argument("--share", default="0/1", help="K/N: every N-th case from K on")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=60, help="after which no case starts")
    parser.add_argument("--out", type=Path, default=Path("campaign"), help="working folder; "
                        "results there are gone on with, and failures tried again")  # fmt: skip
    parser.add_argument("--commit", action="store_true", help=f"writes {RESULTS.name}, too")
    args = parser.parse_args()
    unknown = set(args.parts) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    args.share = tuple(map(int, args.share.split("/")))
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    known = args.out / "results.json"
    results = json.loads(known.read_text()) if known.exists() else {}
    deadline = time.monotonic() + 60 * args.minutes
    work = {
        "files": run_files,
        "kills": run_kills,
        "disks": lambda args, deadline, done: disks.run(args.out),
        "threads": lambda args, deadline, done: sharing.threads(),
        "shapes": lambda args, deadline, done: sharing.shapes(),
    }
    for part in args.parts or PARTS:
        began = time.monotonic()
        found = work[part](args, deadline, results)
        found["seconds"] = round(
            time.monotonic() - began + results.get(part, {}).get("seconds", 0)
        )
        results = results | {"machine": machine(), part: found}
        keep(args.out, results)
        print(
            f"{part}: {json.dumps({k: v for k, v in found.items() if k != 'failures'})}",
            flush=True,
        )
        print(f"{part}: {len(found.get('failures', []))} failures", flush=True)
    if args.commit:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    return int(any(results[part].get("failures") for part in args.parts or PARTS))


if __name__ == "__main__":
    sys.exit(main())
