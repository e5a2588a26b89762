"""HTML templates, in which all text is escaped."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from tdquant.lab.report.numerals import duration, numeral
from tdquant.support.optional import require

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

EXTRA = "report"
"""The extra that installs what pages are made with."""


def render(template: str, **values: Any) -> Markup:
    """Fills in a template of the folder ``templates``.

    Arguments:
        template: Its name, without ``.html``.
        values: Its variables: HTML from ``render`` is inserted as it is, anything else escaped.

    Returns:
        HTML.

    Raises:
        MissingDependencyError: Jinja2 is not installed.
    """
    html = _environment().get_template(f"{template}.html").render(**values)
    return require("markupsafe", EXTRA).Markup(html)


@functools.cache
def _environment() -> Environment:
    jinja2 = require("jinja2", EXTRA)
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("tdquant.lab.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"numeral": numeral, "duration": duration}
    made.policies["json.dumps_kwargs"] = {
        "separators": (",", ":"), "allow_nan": False, "ensure_ascii": False,
    }  # fmt: skip
    return made
