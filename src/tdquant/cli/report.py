"""``tdquant report``: one HTML page of evaluated runs and studies."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tdquant.cli.options import add_command, shared


def add(commands: Any) -> None:
    """Adds the command."""
    parser = add_command(
        commands,
        run,
        help="one HTML page of evaluated runs and studies",
        description="Writes one HTML page, with everything in it, about runs of tdquant evaluate "
        "and about studies: tables, plots, samples from the same noise, layers. Runs that are "
        "still being written are shown as such.",
        parents=[shared(out=Path("report.html"))],
    )
    flag = parser.add_argument
    flag("inputs", nargs="+", metavar="INPUT", help="a run folder, a study file, or a folder that "
         "holds some of these")  # fmt: skip
    flag("--title", help="title of the page (default: made from the inputs)")
    flag("--open", action="store_true", help="open it in the browser")


def run(options: argparse.Namespace) -> None:
    """Runs the command."""
    from tdquant.lab.report import report

    path = report(options.inputs, options.out, options.title)
    print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")
    if options.open:
        import webbrowser

        webbrowser.open(path.resolve().as_uri())
