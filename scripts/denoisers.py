"""Takes every denoiser class of diffusers through tdquant, and writes what was found.

    .venv/bin/python scripts/denoisers.py [--again] [PART OF A NAME ...]

Records stand in benchmarks/results/denoisers.json, one a case; a run goes on with those that are
missing or were run without files, or with all that the words name. scripts/result_tables.py makes
a table of them.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import diffusers  # noqa: E402
import torch  # noqa: E402
from tests.zoo import CASES  # noqa: E402
from tests.zoo.proof import prove, works  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "denoisers.json"


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("words", nargs="*", help="parts of names of cases")
    arguments.add_argument("--again", action="store_true", help="those that failed, too")
    arguments.add_argument("--no-files", action="store_true", help="skip .xml and .onnx")
    given = arguments.parse_args()
    diffusers.utils.logging.set_verbosity_error()
    old = json.loads(RESULTS.read_text())["cases"] if RESULTS.exists() else []
    found = {record["case"]: record for record in old if record["case"] in CASES}
    for name, case in CASES.items():
        named = any(word in name for word in given.words)
        known = name in found and not (given.again and not works(found[name]))
        stages = found[name]["stages"] if name in found else {}
        if not given.no_files and "bfloat16" in stages and ".xml" not in stages:
            known = False  # it was run without files
        if named if given.words else not known:
            with tempfile.TemporaryDirectory() as folder:
                record = found[name] = prove(case, Path(folder), files=not given.no_files)
            wrong = [f"{s}: {what}" for s, what in record["stages"].items() if what != "ok"]
            print(f"{name}: {'; '.join(wrong) or 'ok'} ({record.get('seconds')} s)", flush=True)
            write([found[name] for name in CASES if name in found])
    write([found[name] for name in CASES if name in found])
    print(f"{sum(map(works, found.values()))} of {len(CASES)} work")


def write(records):
    versions = {"diffusers": diffusers.__version__, "torch": torch.__version__}
    for record in records:
        record["works"] = works(record)
    found = {"versions": versions, "known": list(CASES), "cases": records}
    text = json.dumps(found, indent=1) + "\n"
    fresh = RESULTS.with_suffix(".tmp")
    fresh.write_text(text)
    fresh.replace(RESULTS)


if __name__ == "__main__":
    main()
