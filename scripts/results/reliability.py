"""Counts of the campaign, and the denoisers of diffusers."""

import re

from scripts.results.tables import markdown, register_table, where

OUTCOMES = {
    "refused": "raised an error",
    "same": "loaded unchanged",
    "other": "loaded as another file",
}
"""Outcomes of opening a damaged file; everything else is a failure."""


@register_table
def campaign(found: dict) -> str:
    """Counts of every part of the campaign."""
    parts = found["files"]["table"]
    rows = [
        [name, sum(row.values()), *(row.get(key, 0) for key in OUTCOMES),
         sum(n for key, n in row.items() if key not in OUTCOMES)]
        for name, row in parts.items()
    ]  # fmt: skip
    sums = [sum(row[i] for row in rows) for i in range(1, 6)]
    rows.append(["**all**", *sums])
    head = ["damaged files", "cases", *OUTCOMES.values(), "failures"]
    pages = [markdown(head, rows, slice(1, 6))]
    rows = []
    for name, row in found["kills"]["table"].items():
        rows.append([name, sum(row.values()), row.get("the same", 0)])
    pages.append(markdown(["kill -9", "cases", "same result after a restart"], rows, slice(1, 3)))
    rows = [
        [name, row.get("refused", 0), row.get("written", 0),
         sum(n for key, n in row.items() if key not in ("refused", "written"))]
        for name, row in found["disks"]["table"].items()
    ]  # fmt: skip
    head = ["full or read-only disk", "error, old files intact", "enough room", "failures"]
    pages.append(markdown(head, rows, slice(1, 4)))
    rows = [[n, row["calls"], row["different"]] for n, row in found["threads"]["table"].items()]
    pages.append(markdown(["8 threads", "calls", "different results"], rows, slice(1, 3)))
    rows = [
        [f"session of {name}", row["shapes"], row["megabytes_first_half"],
         row["megabytes_second_half"]]
        for name, row in found["shapes"]["table"].items()
    ]  # fmt: skip
    head = ["memory growth", "shapes", "MB in the first half", "MB in the second half"]
    pages.append(markdown(head, rows, slice(1, 4)))
    return "\n\n".join([*pages, f"{where(found)}."])


FILES = ".xml", ".onnx"
REASON = re.compile(r" {2,}why: (.*?)(?= {2,}fix:|$)", re.S)


@register_table
def denoisers(found: dict) -> str:
    """Every denoiser class of diffusers: what works, and why what does not."""
    records, known = {record["case"]: record for record in found["cases"]}, found["known"]
    rows: list[list[object]] = []
    reasons: dict[str, list[str]] = {}
    for case in known:
        record = records.get(case, {})
        stages, layers = record.get("stages", {}), record.get("layers", {})
        errors = (
            f"{record[k]['mean']:.4f}" if k in record else "-" for k in ("error", "bfloat16")
        )
        answers = ("-" if (said := stages.get(name)) is None else "yes" if said == "ok" else "no"
                   for name in ("openvino", *FILES))  # fmt: skip
        works = "not run" if not record else "yes" if record["works"] else "**no**"
        counts = [layers.get(key, "-") for key in ("quantized", "float")]
        rows.append([case, works, *counts, *errors, *answers])
        for stage, said in stages.items():
            if said != "ok":
                why = REASON.search(said)
                words = (why[1] if why else said.partition(": ")[2]).replace("`", "'")
                reasons.setdefault(f"{stage}: {words.strip()}", []).append(case)
    head = [
        "class",
        "works",
        "quantized",
        "float",
        "error",
        "bfloat16",
        "openvino",
        ".xml",
        ".onnx",
    ]
    lines = [f"- `{why}`: {'; '.join(cases)}." for why, cases in sorted(reasons.items())]
    good = sum(record["works"] for record in records.values())
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return (
        f"{len(records)} of {len(known)} cases were run, {good} of them work ({versions}).\n\n"
        f"{markdown(head, rows, slice(2, 6))}\n\nErrors by stage, as they were raised:\n\n"
        + "\n".join(lines)
    )
