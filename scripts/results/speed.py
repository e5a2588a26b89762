"""Times and memory of engines on whole networks."""

from scripts.results.tables import markdown, register_table, results, where

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


@register_table
def engines(found: dict) -> str:
    """Every engine on the UNet of benchmarks/cost.py, then the embedded models."""
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


@register_table
def peers(found: dict) -> str:
    """The engines that a practitioner would choose between."""
    names = ["torch", "OpenVINO float32", NNCF, "W8A8", "W4A8"]
    return (
        f"{_compared(found, names)}\n\nA UNet of "
        f"{results('cost')['parameters'] * 1e-6:.1f}M parameters, {found['threads']} threads of "
        f"{where(found)}."
    )


@register_table
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


@register_table
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
