"""Finds numbers that look measured and were typed.

Looked at is what is left of a page without generated tables, marked numbers, code, formulas,
links and comments. Taken for measured are numbers with decimals, with a unit or a percent sign,
"N of M", distances and errors, table cells that are nothing but a number, and ratios in words.
``allowed.py`` lists what of this is not measured, and why.
"""

import re
from collections.abc import Iterator

from scripts.results.allowed import ALLOWED, Allowed
from scripts.results.pages import NUMBER

HIDDEN = [
    re.compile(r"<!-- table: .*?<!-- end of table -->", re.S),
    NUMBER,
    re.compile(r"^( *)```.*?^ *```", re.M | re.S),
    re.compile(r"(?<=\n\n)(?: {4,}\S.*\n+)+"),  # indented code
    re.compile(r"<!--.*?-->", re.S),
    re.compile(r"`[^`]+`"),
    re.compile(r"\]\([^)]*\)|https?://\S+"),
]
NUMERAL = r"(?<![\w.])\d[\d,]*(?:\.\d+)?"
UNITS = (
    r"%|percent|ms|s|seconds?|minutes?|hours?|x|times|KB|MB|GB|TB|KiB|MiB|GiB|dB|GOP|GB/s|TOP/s"
)
SMALL = "two|three|four|five|six|seven|eight|nine|ten|twelve|twenty|thirty|hundred|a hundred"
PARTS = "third|quarter|fifth|sixth|seventh|eighth|ninth|tenth|hundredth|thousandth"
MEASURED = [
    re.compile(r"(?<![\w.])\d[\d,]*\.\d+\w*"),
    re.compile(rf"{NUMERAL}\s?(?:{UNITS})(?!\w)"),
    re.compile(rf"{NUMERAL} of (?:the |its )?\d+"),
    re.compile(r"\b(?:distances?|errors?|FID|MSE|PSNR)\s(?:of |is |was |by |from ){1,2}\d+"),
    re.compile(r"(?<=\|)\s*~?\d[\d.,%x ()]*(?=\|)"),
    re.compile(
        rf"\b(?:twice|half|halves|(?:{SMALL}) times|factor of (?:{SMALL}|\d+)|(?:a|one|the) "
        rf"(?:{PARTS})|(?:{SMALL}) (?:{PARTS})s|few (?:{PARTS})s)\b",
        re.I,
    ),
]


def typed(name: str, text: str) -> Iterator[str]:
    """The measured-looking numbers of a page that are neither marked nor allowed, with the words
    around them.
    """
    text = shown(text)
    spans = [match.span() for allowed in on(name) for match in allowed.pattern.finditer(text)]
    for pattern in MEASURED:
        for match in pattern.finditer(text):
            if not any(a <= match.start() and match.end() <= b for a, b in spans):
                start, end = max(match.start() - 40, 0), match.end() + 30
                yield text[start:end]


def shown(text: str) -> str:
    """A page without what is not looked at."""
    for hidden in HIDDEN:
        text = hidden.sub(" ", text)
    return " ".join(text.split())


def on(name: str) -> list[Allowed]:
    """What is allowed on a page."""
    return [allowed for allowed in ALLOWED if allowed.page in (None, name)]
