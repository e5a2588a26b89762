"""Writes tables and numbers of committed results into the documentation.

    .venv/bin/python scripts/result_tables.py

``scripts/results/pages.py`` says how a page marks them. A test compares the documentation with
what this writes, and finds measured numbers that were typed.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from scripts.results.pages import PAGES, filled


def main():
    for page in PAGES:
        before = page.read_text()
        after = filled(before)
        if after != before:
            page.write_text(after)
            print(f"wrote {page}")


if __name__ == "__main__":
    main()
