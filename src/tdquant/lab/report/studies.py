"""Studies: the list of claims at the top, and a section for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tdquant.lab.report.formats import VERDICTS
from tdquant.lab.report.layers import explorer
from tdquant.lab.report.markup import Markup, join, tag
from tdquant.lab.report.numerals import duration, numeral
from tdquant.lab.report.pictures import Pictures
from tdquant.lab.report.plots import Line, plot
from tdquant.lab.report.reading import Study
from tdquant.lab.report.tables import Column, command_block, table

# A shape for each verdict, so that colour is not needed: tick, half disc, cross, dots.
_SIGNS = {
    "holds": ("M3.5 8.5l3 3 6-7",),
    "holds in part": ("M8 2.5a5.5 5.5 0 0 0 0 11Z", "M8 2.5a5.5 5.5 0 0 1 0 11"),
    "does not hold": ("M4 4l8 8M12 4l-8 8",),
    "not finished": ("M3.5 8h.01M8 8h.01M12.5 8h.01",),
}


def badge(verdict: str) -> Markup:
    """A verdict as a sign and words."""
    strokes = [tag("path", d=stroke) for stroke in _SIGNS[verdict]]
    sign = tag("svg", *strokes, viewBox="0 0 16 16", aria_hidden="true")
    return tag("span", sign, verdict, class_=f"badge v{VERDICTS.index(verdict)}")


def anchor(index: int) -> str:
    """The id of a study's section."""
    return f"study-{index + 1}"


def claims(studies: Sequence[Study]) -> Markup:
    """Every study in a line or two, with a link to its section."""
    entries = []
    for i, study in enumerate(studies):
        content = study.content
        entries.append(
            tag(
                "li",
                badge(content["verdict"]),
                tag(
                    "div",
                    tag("a", content["title"], href=f"#{anchor(i)}"),
                    tag("p", content["measured"]),
                ),
            )
        )
    counts = [(v, sum(s.content["verdict"] == v for s in studies)) for v in VERDICTS]
    words = ", ".join(f"{n} {_plural(v, n)}" for v, n in counts if n)
    total = f"{len(studies)} {'claim' if len(studies) == 1 else 'claims'}"
    return tag(
        "section",
        tag("h2", "What was found", id="claims"),
        tag("p", f"{total}: {words}.", class_="lede"),
        tag("ol", *entries, class_="claims"),
        aria_labelledby="claims",
    )


def _plural(verdict: str, count: int) -> str:
    one, many = verdict, {"holds": "hold", "holds in part": "hold in part",
                          "does not hold": "do not hold"}.get(verdict, verdict)  # fmt: skip
    return one if count == 1 else many


def section(study: Study, index: int, pictures: Pictures) -> Markup:
    """One study: question, claim, what was measured, and everything that shows it."""
    content = study.content
    facts = [("Question", content["question"]), ("The paper", content.get("claim")),
             ("Measured", content["measured"])]  # fmt: skip
    told = [tag("div", tag("dt", name), tag("dd", text)) for name, text in facts if text]
    # What is seen comes before what is read: tables may have a hundred rows.
    parts: list[Markup] = []
    if content.get("plots"):
        parts.append(tag("div", *(_plot(each) for each in content["plots"]), class_="plots"))
    parts += [_samples(study, each, pictures) for each in content.get("samples") or []]
    for figure in content.get("figures") or []:
        image = pictures.figure(study.file(figure["file"]), figure["alt"])
        parts.append(tag("figure", tag("h3", figure["title"]), image))
    for i, each in enumerate(content.get("layers") or []):
        parts += [tag("h3", each["title"]), explorer(each, f"{anchor(index)}-layers-{i}")]
    parts += [_table(each) for each in content.get("tables") or []]
    return tag(
        "section",
        tag("h2", content["title"], id=anchor(index)),
        tag("p", badge(content["verdict"]), class_="verdict"),
        tag("dl", *told, class_="facts"),
        *parts,
        _origin(content),
        class_="study",
        aria_labelledby=anchor(index),
    )


def _origin(content: dict[str, Any]) -> Markup:
    """How long it took, where, and how to do it again."""
    where = machine_words(content.get("machine") or {})
    took = f"{duration(content['seconds'])} of computing" if content.get("seconds") else ""
    words = " on ".join(word for word in (took, where) if word)
    command = content.get("command")
    return tag(
        "div",
        tag("p", f"Took {words}." if took else f"Measured on {where}.") if words else None,
        command_block(command) if command else None,
        class_="origin",
    )


def machine_words(machine: dict[str, Any]) -> str:
    """A machine in one line."""
    cores, threads = machine.get("cores"), machine.get("threads")
    parts = [machine.get("device"), machine.get("processor")]
    for count, one in ((cores, "core"), (threads, "thread")):
        parts.append(f"{count} {one}{'' if count == 1 else 's'}" if count else None)
    parts.append(f"torch {machine['torch']}" if machine.get("torch") else None)
    return ", ".join(str(part) for part in parts if part)


def _table(content: dict[str, Any]) -> Markup:
    columns = [
        Column(c["key"], c["label"], c.get("better") or "", c.get("digits"), c.get("unit") or "")
        for c in content["columns"]
    ]
    return table(content["title"], columns, content["rows"], group=content.get("group") or (),
                 note=content.get("note") or "")  # fmt: skip


def _plot(content: dict[str, Any]) -> Markup:
    lines = [
        Line(each["name"], each["x"], each["y"], each.get("low") or (), each.get("high") or (),
             dashed=bool(each.get("dashed")), hue=each.get("hue"))
        for each in content["lines"]
    ]  # fmt: skip
    x, y = content["x"], content["y"]
    return plot(content["title"], x["label"], y["label"], lines, x_words=x.get("words") or (),
                x_log=bool(x.get("log")), y_log=bool(y.get("log")),
                points=bool(content.get("points")), note=content.get("note") or "",
                heading=3)  # fmt: skip


def _samples(study: Study, content: dict[str, Any], pictures: Pictures) -> Markup:
    """Rows of samples, and a slider through the values that all rows have in common."""
    axis, values = content["axis"], [numeral(v) for v in content["values"]]
    keys = [str(v) for v in content["values"]]
    rows = []
    for row in content["rows"]:
        strips: list[Markup] = []
        for i, (key, value) in enumerate(zip(keys, values, strict=True)):
            file, alt = row["files"].get(key), f"Samples of {row['name']}, {axis}: {value}"
            # The script shows one value at a time, which its slider names; without it, or on
            # paper, every strip says its own.
            named = tag("p", f"{axis}: {value}", class_="value") if len(values) > 1 else None
            seen = (
                tag("p", "not sampled", class_="absent")
                if file is None
                else pictures.strip(study.file(file), content["tile"], alt)
            )
            strips.append(tag("div", named, seen, data_value=i))
        rows.append(tag("div", tag("p", row["name"], class_="name"), tag("div", *strips),
                        class_="strip"))  # fmt: skip
    words = [f"{axis}: {value}" for value in values]
    return tag(
        "figure",
        tag("h3", content["title"]),
        slider(axis, words) if len(values) > 1 else None,
        tag("div", *rows, class_="scroller strips", tabindex=0, role="region",
            aria_label=content["title"]),
        caption(content.get("note"), content.get("credit")),
        class_="samples",
    )  # fmt: skip


def slider(label: str, words: Sequence[str]) -> Markup:
    """A slider through named positions, which the script moves pictures with."""
    return tag(
        "div",
        tag(
            "label",
            tag("span", label[:1].upper() + label[1:]),
            tag("input", type="range", min=0, max=len(words) - 1, value=0,
                aria_valuetext=words[0], data_words="\n".join(words)),
        ),
        tag("output", words[0], aria_hidden="true"),
        class_="slider",
        hidden=True,
    )  # fmt: skip


def caption(note: str | None, credit: str | None) -> Markup | None:
    """What is to be known of a picture, and whose it is."""
    parts = [tag("span", note) if note else None, tag("small", credit) if credit else None]
    return tag("figcaption", join(parts)) if note or credit else None
