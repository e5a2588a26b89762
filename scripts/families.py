"""Writes the table of docs/families.md from what holds of each tiny pipeline.

.venv/bin/python scripts/families.py
"""

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.pipelines import PIPELINES  # noqa: E402
from tests.pipelines.proof import Proof, table  # noqa: E402

DOCS = ROOT / "docs" / "families.md"
START, END = "<!-- table: scripts/families.py -->", "<!-- end of table -->"


def main():
    rows = []
    for name in PIPELINES:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(Proof.of(name).row(Path(folder)))
        print(*rows[-1], sep=" | ", flush=True)
    before, _, rest = DOCS.read_text().partition(START)
    after = rest.partition(END)[2]
    DOCS.write_text(f"{before}{START}\n\n{table(rows)}\n{END}{after}")


if __name__ == "__main__":
    main()
