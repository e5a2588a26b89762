"""Writes tables of benchmark results into the documentation.

    .venv/bin/python scripts/result_tables.py

A table stands between ``<!-- table: scripts/result_tables.py NAME -->`` and ``<!-- end of table
-->`` in README.md or docs/*.md; NAME is a function here and a file in benchmarks/results, or
FILE.NAME. A test compares the documentation with what this writes.
"""

import json
import re
from pathlib import Path

from tdquant.lab.demo.run import DemoRow
from tdquant.lab.demo.table import HEAD, cells

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TABLE = re.compile(
    r"(<!-- table: scripts/result_tables\.py (?:(\w+)\.)?(\w+) -->\n).*?(<!-- end of table -->)",
    re.S,
)


def markdown(head: list[str], rows: list[list[object]], numbers: slice) -> str:
    """A table; columns of ``numbers`` are aligned to the right."""
    rule = ["---"] * len(head)
    rule[numbers] = ["---:"] * len(rule[numbers])
    lines = [head, rule, *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def where(found: dict) -> str:
    """The machine of a result, in words."""
    machine = found["machine"]
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['instructions']}, torch "
        f"{machine['torch']}"
    )


CHOICES = [
    (None, "ours", "", ""),
    ("scales at the network's rate", "rates",
     "learned step sizes at a tenth of the rate, scales' networks at the whole",
     "the same; here `tdquant.rates=equal`: compare at equal rates too, since part of the "
     "distance to LSQ may come from there"),
    ("dropout 0.2 in the scales' networks", "dropout of the scales' networks", "0.2",
     "none, lest training see other scales than sampling; here `tdquant.dropout=0.2`"),
    ("one step for each weight", "step sizes of weights", "one a tensor, from max(w) / qmax",
     "one an output channel, of least squared error: max(w) is not the largest absolute value, "
     "and channels differ by more than the codes of 4 bits; here `tdquant.granularity=tensor`, of "
     "least squared error"),
    ("time path in float", "time MLP and embedding projections", "in float",
     "8-bit weights, float inputs; here `tdquant.time_weights=32`"),
    ("gradients not clipped", "bound on gradients", "none",
     "norm at most 1; here `tdquant.clip=0`"),
    ("published grids, offset and networks", "grids, offset, input of the networks",
     "13 codes at 4 bits; after SiLU 15 from -0.2785, in training -0.2785 / (1 - p) behind "
     "dropout of rate p; the UNet's own embedding of the raw timestep, `model_channels` wide",
     "16 codes (15 for weights) and an integer zero point, so that the zeros that convolutions "
     "pad with are a code; features of time over the model's range, as flow models need; here "
     "dropout, weights and time path as published too, every step size starting at the least "
     "squared error"),
    ("the same, started as published", "start of activations",
     "mean + 3 sigma of one batch under 100 draws of t, mean + 16 sigma after SiLU; one step size "
     "for all times",
     "candidates judged by their error at the model's output, each a curve over time; 16 sigma at "
     "4 bits is one step wider than the data"),
    ("all as published", "all of it", "`--scheme published --use_dynamic`", ""),
    ("all as published, static (LSQ)", "all of it, LSQ", "`--scheme published`", ""),
]  # fmt: skip
"""Row of the results, the choice, and what the published code and tdquant do."""


def published_scheme(found: dict) -> str:
    """Each choice of the published training, and the Frechet distance that it leads to."""
    settings, measured = found["settings"], {row["row"]: row for row in found["rows"]}
    rows = []
    for name, choice, published, ours in CHOICES:
        row = measured[name or "ours"]
        spread = f"{row['frechet']:.1f} ({row['low']:.1f} to {row['high']:.1f})"
        error = f"{row['paired_median']:.4f}"
        rows.append([choice, published, ours, f"{row['untrained']:.0f}", spread, error])
    seeds = min(row["seeds"] for row in found["rows"])
    head = ["choice", "published", "ours, and why", "start", "trained", "paired error"]
    return (
        markdown(head, rows, slice(3, None))
        + f"\n\nMeasured: `{settings['model']}` at {settings['bits']}, that choice alone as "
        "published unless said otherwise; Frechet EfficientNet-Lite0 distance of "
        f"{settings['images']} images of {settings['sampler_steps']} DDIM steps to 5,000 held-out "
        f"cats, float "
        f"{settings['float']:.1f}; {settings['steps']} steps of batch {settings['batch']} on the "
        f"diffusion loss, mean (least to largest) of {seeds} seeds, at the better of two rates on "
        "seed 0. *Paired error*: median squared error of those images against the float model's "
        "from the same noise. The published 200,000 steps may make up for a bad start. "
        f"{where(found)}."
    )


def published_size(found: dict) -> str:
    """Seconds and memory of each stage of the published commands."""
    names = {"churches": "LSUN-churches", "cifar10": "CIFAR-10"}
    rows, sizes = [], []
    for key, name in names.items():
        part = found[key]
        sizes.append(
            f"{name}: a checkpoint of {part['checkpoint_mb']:.0f} MiB, "
            f"{part['weights_mb']:.0f} MiB of float32 weights"
        )
        for stage in part["stages"]:
            said = ""
            if "over_checkpoint" in stage:
                said = f"{stage['over_checkpoint']:.2f} of the checkpoint, beyond the imports"
            elif "over_weights" in stage:
                said = f"{stage['over_weights']:.1f} of the weights, the whole process"
            rows.append(
                [f"{name}, {stage['stage']}", f"{stage['seconds']:.0f}",
                 f"{stage['peak_mb']:.0f}", said]
            )  # fmt: skip
    head = ["", "seconds", "peak MiB", "which is"]
    return markdown(head, rows, slice(1, 3)) + f"\n\n{'; '.join(sizes)}. {where(found)}."


def demo(found: dict) -> str:
    """What ``make demo`` printed, and where."""
    settings, rows = found["settings"], [list(cells(DemoRow(**row))) for row in found["rows"]]
    return (
        f"{markdown(list(HEAD), rows, slice(2, None))}\n\n`make demo` on {where(found)}, "
        f"{found['machine']['threads']} threads: {found['seconds']:.0f} s, {settings['images']} "
        f"images a model, {settings['steps']} DDIM steps."
    )


NNCF = "NNCF static int8"
ENGINES = {
    "torch": "PyTorch eager, channels last",
    "torch.compile": "torch.compile",
    "OpenVINO float32": "OpenVINO, float32",
    NNCF: "OpenVINO, int8 by NNCF (static)",
    "onednn W8A8": "`onednn`, W8A8",
    "W8A8 static": "`openvino`, W8A8, static scales",
    "W8A8": "**`openvino`, W8A8**",
    "W8A8, attention": "**`openvino`, W8A8, attention=8**",
    "W4A8": "**`openvino`, W4A8**",
    "W8A8, plain OpenVINO": "the W8A8 file in plain OpenVINO, reshaped",
    "W8A8, plain OpenVINO, any size": "the W8A8 file in plain OpenVINO, free sizes",
    "ONNX Runtime float32": "ONNX Runtime, float32",
    "W8A8, ONNX Runtime": "the W8A8 .onnx in ONNX Runtime",
}


def _compared(found: dict, names: list[str]) -> str:
    """Milliseconds a call and their ratios to NNCF's, by batch."""
    seconds, rows = found["unet"]["seconds"], []
    for name in names:
        row = [ENGINES[name]]
        for batch in seconds.values():
            row += (
                [f"{batch[name] * 1e3:.1f}", f"{batch[name] / batch[NNCF]:.2f}"]
                if name in batch
                else ["-", "-"]
            )
        error = found["error"]["error"].get(name)
        row.append("-" if error is None else f"{error / found['error']['error'][NNCF]:.2f}")
        rows.append(row)
    head = ["ms a call", "batch 1", "/ NNCF", "batch 8", "/ NNCF", "error / NNCF"]
    return markdown(head, rows, slice(1, 6))


def engines(found: dict) -> str:
    """Every engine on the 35.7M-parameter UNet, then the embedded models."""
    rows = [
        [
            name,
            *(
                f"{times[column] * 1e3:.2f}"
                for column in ("torch", "torch.compile", "W8A8", "W4A8")
            ),
        ]
        for name, times in found["embedded"]["seconds"].items()
    ]
    head = ["embedded model, batch 1, ms", "PyTorch eager", "torch.compile", "W8A8", "W4A8"]
    files = {name: part["bytes"] / 1e6 for name, part in found["unet"]["files"].items()}
    measured = [name for name in ENGINES if name in found["unet"]["seconds"]["1"]]
    return (
        f"{_compared(found, measured)}\n\n"
        f"{markdown(head, rows, slice(1, 5))}\n\n"
        f"Medians of interleaved calls, {found['threads']} threads of {where(found)}. The error "
        "is of the trained cats-ddpm, squared, on calls that calibration never saw. Files: "
        f"{files['W8A8.xml']:.0f} MB at W8A8, {files['W4A8.xml']:.0f} MB at W4A8."
    )


def peers(found: dict) -> str:
    """The engines that a practitioner would choose between."""
    names = ["torch", "OpenVINO float32", NNCF, "W8A8", "W4A8"]
    return (
        f"{_compared(found, names)}\n\nA UNet of 35.7M parameters, {found['threads']} threads of "
        f"{where(found)}."
    )


def size(found: dict) -> str:
    """Seconds and memory of every stage of a large model."""
    rows = []
    for row in found["rows"]:
        peak, after = (f"{row[key]:.0f}" if key in row else "-" for key in ("peak_mb", "after_mb"))
        file = f"{row['file_mb']:.0f}" if "file_mb" in row else "-"
        rows.append([row["model"], row["what"], f"{row['seconds']:.2f}", peak, after, file])
    head = ["", "", "seconds", "peak MiB", "MiB after", "file MiB"]
    return (
        f"{markdown(head, rows, slice(2, 6))}\n\nA UNet of Stable Diffusion 1.5's shape, 860M "
        "random parameters, 3279 MiB in float32; calls on latents of 32 x 32. "
        f"{found['threads']} thread of {where(found)}. Memory is the whole process's, Python and "
        "libraries included."
    )


def size_peers(found: dict) -> str:
    """A call of a large model beside other engines."""
    seconds = {row["what"]: row["seconds"] for row in found["rows"]}
    whole = seconds["float in PyTorch"]
    rows = [[name, f"{s:.2f}", f"{whole / s:.1f}x"] for name, s in seconds.items()]
    head = ["", "seconds", "faster than float"]
    return (
        f"{markdown(head, rows, slice(1, 3))}\n\nOne call of the same model, medians of "
        f"interleaved calls. {found['threads']} thread of {where(found)}."
    )


PEER_HEAD = [
    "bits", "project", "weights", "inputs", "median", "geometric mean", "mean", "KB", "int8",
    "ms", "/ float", "s to quantize",
]  # fmt: skip


def _peer_cells(row: dict) -> list[str]:
    """A row of the table of peers; parts that were not measured are dashes."""

    def cell(form: str, name: str, times: float = 1) -> str:
        return format(row[name] * times, form) if name in row else "-"

    integer = f"{row['integer']} of {row['products']}" if "products" in row else "-"
    ratio = f"{row['ms'] / row['float_ms']:.2f}" if "ms" in row else "-"
    name = f"**{row['project']}**" if row["project"] == OURS else row["project"]
    if row["note"]:
        name += f" ({row['note']})"
    if "missing" in row:
        name += f": not installed, `{row['missing']}`"
    if "failed" in row:
        name += f": `{row['failed']}`"
    return [
        row["setting"], name, cell(".0%", "weights"), cell(".0%", "inputs"), cell(".2g", "median"),
        cell(".2g", "geometric"), cell(".2g", "mean"), cell(".0f", "bytes", 1e-3), integer,
        cell(".1f", "ms"), ratio, cell(".0f", "seconds"),
    ]  # fmt: skip


def beside_peers(found: dict) -> str:
    """Every quantizer on every model, at every setting."""
    pages = []
    for model in dict.fromkeys(row["model"] for row in found["rows"]):
        rows = [_peer_cells(row) for row in found["rows"] if row["model"] == model]
        pages.append(f"`{model}`:\n\n{markdown(PEER_HEAD, rows, slice(2, None))}")
    settings = found["settings"]
    versions = dict.fromkeys(row["version"] for row in found["rows"] if "version" in row)
    return "\n\n".join(pages) + (
        f"\n\n{settings['images']} images of {settings['steps']} steps; calls at batch 1, medians "
        f"of {settings['rounds']}, {settings['threads']} thread. {', '.join(versions)}; "
        f"{where(found)}."
    )


OURS = "tdquant, default"
WHOLE = 0.5
"""Least share of multiplications with inputs of few bits, to be compared with ours."""


STATIC, EDGES = "tdquant, static", "tdquant, edges of 8 bits"
SHOWN = ["W8A8", "W5A8", "W4A8", "W8A5"]
LESS = 0.05
"""Share of multiplications by which ours may have fewer with weights of few bits than another."""


def peers_in_short(found: dict) -> str:
    """Our squared errors as shares of those of the best of the others that quantize most of the
    inputs, by median; where no other can, of static scales. Where the others leave less in float
    than the default, ours is what leaves nothing.
    """
    rows = []
    for model in dict.fromkeys(row["model"] for row in found["rows"]):
        cells = [_shares(found["rows"], model, setting) for setting in SHOWN]
        rows.append([model, *cells])
    return f"{markdown(['median / mean', *SHOWN], rows, slice(0, 0))}\n\n{where(found)}."


def _shares(rows: list[dict], model: str, setting: str) -> str:
    measured = {
        row["project"]: row
        for row in rows
        if (row["model"], row["setting"]) == (model, setting) and "median" in row
    }
    others = [
        row for name, row in measured.items() if "tdquant" not in name and row["inputs"] >= WHOLE
    ]
    others = others or [row for name, row in measured.items() if name == STATIC]
    if OURS not in measured or not others:
        return "-"
    best, ours = min(others, key=lambda row: row["median"]), measured[OURS]
    if ours["weights"] < best["weights"] - LESS:
        ours = measured.get(EDGES, ours)
    shares = " / ".join(f"{ours[key] / best[key]:.2g}" for key in ("median", "mean"))
    note = ", edges=8" if ours["project"] == EDGES else ""
    return f"{shares} {best['project'].removeprefix('tdquant, ')}{note}"


OUTCOMES = {"refused": "an error", "same": "what was there", "other": "another file"}
"""What may become of a damaged file; everything else is a failure."""


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
    pages.append(markdown(["kill -9", "cases", "ended in the same bits"], rows, slice(1, 3)))
    rows = [
        [name, row.get("refused", 0), row.get("written", 0),
         sum(n for key, n in row.items() if key not in ("refused", "written"))]
        for name, row in found["disks"]["table"].items()
    ]  # fmt: skip
    head = ["full or read-only disk", "refused, old files whole", "there was room", "failures"]
    pages.append(markdown(head, rows, slice(1, 4)))
    rows = [[n, row["calls"], row["different"]] for n, row in found["threads"]["table"].items()]
    pages.append(markdown(["8 threads", "calls", "different"], rows, slice(1, 3)))
    rows = [
        [f"session of {name}", row["shapes"], row["megabytes_first_half"],
         row["megabytes_second_half"]]
        for name, row in found["shapes"]["table"].items()
    ]  # fmt: skip
    head = ["shapes", "", "MB over the first half", "MB over the second half"]
    pages.append(markdown(head, rows, slice(1, 4)))
    return "\n\n".join([*pages, f"{where(found)}."])


FILES = ".xml", ".onnx"
REASON = re.compile(r" {2,}why: (.*?)(?= {2,}fix:|$)", re.S)


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
        f"{markdown(head, rows, slice(2, 6))}\n\nReasons, by stage, as they were raised:\n\n"
        + "\n".join(lines)
    )


def filled(text: str) -> str:
    """A page with its tables made anew."""

    def table(match: re.Match[str]) -> str:
        start, file, name, end = match.groups()
        found = json.loads((RESULTS / f"{file or name}.json").read_text())
        return f"{start}\n{globals()[name](found)}\n\n{end}"

    return TABLE.sub(table, text)


def main():
    for page in PAGES:
        before = page.read_text()
        after = filled(before)
        if after != before:
            page.write_text(after)
            print(f"wrote {page}")


if __name__ == "__main__":
    main()
