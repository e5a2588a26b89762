"""Numbers in the documentation that were not measured, and why they stand there."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Allowed:
    """Words around numbers that need no results file.

    Attributes:
        reason: What the number is.
        words: A regular expression; a number within its match may be typed.
        page: Name of the page; None for all pages.
    """

    reason: str
    words: str
    page: str | None = None

    @property
    def pattern(self) -> re.Pattern[str]:
        return re.compile(self.words, re.I | re.S)


SETTING = "a setting of the library or of a command"
FORMULA = "follows from a formula on the page"
TARGET = "a target or a threshold, not what was measured"
COUNT = "counts something that the library does"

ALLOWED = [
    Allowed(
        "a version",
        r"Python 3\.10\+|optimum-intel 2\.2|Wan 2\.2|Stable Diffusion 1\.\d( to 1\.5)?",
    ),
    Allowed("a version of hardware", r"compute capability 8\.9"),
    Allowed("a licence", r"Apache-2\.0|CC-BY-4\.0"),
    Allowed("the name of an article", r"arXiv 2306\.02316"),
    Allowed("the name of a type", r"half[- ]precision"),
    Allowed("the level of an interval", r"95 %"),
    Allowed(
        "says nothing of a size", r"half[- ]written|the other half|half of the (distance|samples)"
    ),
    # A page each
    Allowed(SETTING, r"99\.9 % percentile", "architecture"),
    Allowed(SETTING, r"factor of 100|at most 64 times", "architecture"),
    Allowed(COUNT, r"model four times", "architecture"),
    Allowed(SETTING, r"within 8 minutes|multiple of 8 times", "backends"),
    Allowed(COUNT, r"compiled twice|half the distance of the quartiles", "backends"),
    Allowed("the size of an example", r"16 GB", "diffusers"),
    Allowed(SETTING, r"less than 80 %", "diffusers"),
    Allowed(SETTING, r"leave out a tenth", "evaluation"),
    Allowed(FORMULA, r"doubles its input and halves its weight", "extending"),
    Allowed("a threshold of the count before it", r"by more than twice", "guide"),
    Allowed(SETTING, r"factor of 100", "limits"),
    Allowed(TARGET, r"at most 15 %|reach 0\.7|at most 1\.25", "measure"),
    Allowed(SETTING, r"learned steps a tenth of the learning rate", "measure"),
    Allowed("the row of 10 % in the table above it", r"The tenth of the layers", "measure"),
    Allowed(SETTING, r"weight decay 0\.01|from 0\.0015 to 0\.0195", "model-card"),
    Allowed(FORMULA, r"everywhere are 4\.125|\| bits of q \|.*?6\.03 \|", "ptq"),
    Allowed(SETTING, r"errors by 5 %, for [\w, ]+ by 10 %|\(2 GiB\)", "ptq"),
    Allowed(
        "a model of times, by which a budget counts",
        r"three times as long in float|about twice that",
        "ptq",
    ),
    Allowed(COUNT, r"sampling a little, twice|half of the samples judges|fitted twice", "ptq"),
    Allowed(FORMULA, r"factor of 16 or more", "ptq"),
    Allowed("a fact of the published code", r"offset -0\.2785", "published"),
    Allowed(SETTING, r"sampled at 7\.5|\(0\.9999, restarted|decay of 0\.01", "published"),
    Allowed(TARGET, r"\| study \| holds if.*?at most 1\.05 \|", "study"),
    Allowed("defaults of options", r"\| key \| default \| meaning.*?\| 23 \|", "training"),
    Allowed(SETTING, r"learned steps a tenth of it", "training"),
]
