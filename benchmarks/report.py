"""How long a report takes to write, how large it is, and how soon a browser answers its reader.

    python benchmarks/report.py [INPUT ...]

Without inputs, made-up ones of a large report: 12 studies with samples, 8 runs of 100 layers and
64 timesteps. Needs playwright and chromium. A page is interactive when its script has set
everything up and the first frame after it is drawn; the median of five visits, by the browser's
own clock.
"""

import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

from record import table, write
from tdquant.lab.report import report

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.lab.report import made_up

VISITS = 5
INTERACTIVE = """() => new Promise((done) => requestAnimationFrame(() => setTimeout(() =>
  done([performance.getEntriesByType("navigation")[0].domContentLoadedEventEnd,
        performance.now()]))))"""


def large(folder):
    """Made-up inputs of about the size that a whole set of studies has."""
    for i in range(12):
        made_up.write_study(folder / "studies", f"study{i:02d}")
    for i in range(8):
        run = made_up.write_run(folder / "runs" / f"run{i}", made_up.MODELS[i % 5])
        (run / "layers.json").write_text(json.dumps(made_up.layers(100, 64, seed=i)))
    return [folder / "studies", folder / "runs"]


def visits(path):
    """Milliseconds until the script has run, and until the page answers, of each visit."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        found = []
        for _ in range(VISITS):
            page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
            page.goto(path.as_uri(), wait_until="domcontentloaded")
            found.append(page.evaluate(INTERACTIVE))
            page.context.close()
        browser.close()
    return found


def main():
    with tempfile.TemporaryDirectory() as folder:
        inputs = sys.argv[1:] or large(Path(folder))
        start = time.perf_counter()
        path = report(inputs, Path(folder) / "report.html")
        seconds, size = time.perf_counter() - start, path.stat().st_size
        times = visits(path)
    row = {
        "writing_s": round(seconds, 2),
        "megabytes": round(size / 1e6, 2),
        "script_done_ms": round(statistics.median(t[0] for t in times)),
        "interactive_ms": round(statistics.median(t[1] for t in times)),
    }
    table(list(row), [list(row.values())])
    write("report", visits=VISITS, made_up=not sys.argv[1:], rows=[row])


if __name__ == "__main__":
    main()
