"""HTML that cannot be broken from inside: whatever is not ``Markup`` is escaped where it enters.

``tag("b", "<script>")`` is ``<b>&lt;script&gt;</b>``. No text of an input becomes HTML in any
other way.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable
from typing import Any

VOID = {"img", "input", "link", "meta", "br"}


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def tag(name: str, /, *children: str | None, **attributes: Any) -> Markup:
    """One element.

    Arguments:
        name: Such as ``"p"``.
        children: Markup as it is, text escaped, None left out.
        attributes: Underscores become hyphens, one at the end falls off (``class_``). True is an
            attribute without a value; False and None are none.
    """
    words = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        words.append(key if value is True else f'{key}="{html.escape(str(value))}"')
    opening = f"<{' '.join(words)}>"
    return Markup(opening if name in VOID else f"{opening}{join(children)}</{name}>")


def join(children: Iterable[str | None]) -> Markup:
    """Children one after the other: markup as it is, text escaped, None left out."""
    return Markup(
        "".join(
            child if isinstance(child, Markup) else html.escape(child)
            for child in children
            if child is not None
        )
    )


def data(value: Any) -> Markup:
    """A block of JSON for the page's script, which no text in it can end.

    Arguments:
        value: What ``json.dumps`` takes; numbers finite.
    """
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return tag("script", Markup(text), type="application/json")
