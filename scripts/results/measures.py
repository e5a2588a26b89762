"""Tables and numbers of single benchmarks."""

from scripts.results.tables import markdown, register_number, register_table, threads


@register_table
def transfer(found: dict) -> str:
    """Paired errors with other schedulers and numbers of steps than calibration saw."""
    rows = [
        [row["scheduler"], row["steps"],
         *(f"{row[f'{kind}_median']:.4f}, {row[f'{kind}_mean']:.4f}"
           for kind in ("static", "auto")),
         f"{row['ratio_median']:.2f}"]
        for row in found["rows"]
    ]  # fmt: skip
    head = ["scheduler", "steps", "static: median, mean", "temporal", "ratio of medians"]
    bits, seconds = found["bits"], found["calibration_seconds"]
    return (
        f"{markdown(head, rows, slice(1, None))}\n\n`cats-ddpm` at W{bits[0]}A{bits[1]}, "
        f"{found['images']} images, one seed, calibrated on 50 DDIM steps; paired errors. "
        "Static step sizes are chosen by the percentile, temporal ones by `auto`. "
        f"Calibration took {seconds['auto']:.0f} s, {seconds['static']:.0f} s with static scales. "
        f"{threads(found)}."
    )


RECORDS = {"float": "float", "w4a4": "W4A4", "w4a4-corrected": "W4A4, corrected"}


@register_table
def evaluate(found: dict) -> str:
    """Metrics of the trained model, as it is and corrected."""
    rows, pairs = [], []
    for key, name in RECORDS.items():
        record = found["records"][key]
        m, cost = record["metrics"], record["cost"]
        distance = "{value:.1f} ({low:.1f} to {high:.1f})".format(**m["frechet"])
        rows.append(
            [name, distance, f"{m['kid']['value']:.4f}", f"{m['precision']['value']:.3f}",
             f"{m['recall']['value']:.3f}", f"{cost['megabytes']:.2f}"]
        )  # fmt: skip
        if record["paired"]:
            p, decibels = record["paired"]["metrics"], record["sqnr"]["decibels"]
            pairs.append(
                [name, f"{p['mse']['value']:.4f}", f"{p['mse']['median']:.4f}",
                 f"{p['psnr']['value']:.1f}", f"{p['ssim']['value']:.2f}",
                 f"{sum(decibels) / len(decibels):.1f}"]
            )  # fmt: skip
    head = ["", "Frechet EfficientNet-Lite0", "kernel distance", "precision", "recall", "MB"]
    paired = ["against float", "MSE", "its median", "PSNR, dB", "SSIM", "SQNR of the denoiser, dB"]
    sampling = record["sampling"]
    return (
        f"{markdown(head, rows, slice(1, None))}\n\n{markdown(paired, pairs, slice(1, None))}\n\n"
        f"{sampling['images']:,} images of {sampling['steps']} DDIM steps, batch "
        f"{sampling['batch']}; 95 % intervals. Second table: "
        f"{record['paired']['images']} pairs of samples from the same noise. {threads(record)}."
    )


@register_table
def cost(found: dict) -> str:
    """A forward in simulated arithmetic over the float one."""
    rows = [
        [row["model"], row["batch"], f"{row['float'] * 1e3:.1f}",
         f"{row['quantized'] / row['float']:.2f}", f"{row['frozen'] / row['float']:.2f}"]
        for row in found["forward"]
    ]  # fmt: skip
    head = ["simulated, W4A8", "batch", "float ms", "quantized / float", "frozen / float"]
    return (
        f"{markdown(head, rows, slice(1, None))}\n\nMedians of interleaved calls before "
        f"(*quantized*) and after `freeze` (*frozen*). {threads(found)}."
    )


@register_number
def three_weights_and_activations(found: dict) -> float:
    """Bytes of three copies of the float32 weights, and of one batch of activations."""
    return 3 * 4 * found["parameters"] + found["activation_bytes"]


SCALES = ("static", "dynamic", "temporal", "table", "pact", "nipq")


@register_table
def training(found: dict) -> str:
    """A training step with every kind of scale over the float step."""
    models: dict[str, dict[str, dict]] = {}
    for row in found["rows"]:
        models.setdefault(row["model"], {})[row["scale"]] = row
    rows = [
        [f"{name}, {kinds['float']['parameters'] / 1e6:.1f}M parameters", kinds["float"]["batch"],
         *(f"{kinds[scale]['median_ratio']:.2f}" for scale in SCALES)]
        for name, kinds in models.items()
    ]  # fmt: skip
    return (
        f"{markdown(['step / float step', 'batch', *SCALES], rows, slice(1, None))}\n\nTime of "
        f"a W4A4 training step (forward, backward, AdamW) divided by the float model's, medians "
        f"of {found['rounds']} interleaved rounds. {threads(found)}."
    )


@register_number
def over_static(found: dict) -> str:
    """What a training step takes more with temporal scales than with static ones, in percent."""
    ratios = {(row["model"], row["scale"]): row["median"] for row in found["rows"]}
    models = {row["model"] for row in found["rows"]}
    more = [100 * (ratios[m, "temporal"] / ratios[m, "static"] - 1) for m in models]
    return f"{min(more):.0f} to {max(more):.0f} %"


@register_table
def search(found: dict) -> str:
    """Searched bits beside uniform ones of the same size, and split scales beside whole ones."""
    rows = [
        [row["label"], kind,
         *(f"{row[kind][key]:.2g}" for key in ("call", "call_median", "paired", "paired_median"))]
        for row in found["rows"]
        for kind in ("uniform", "searched", "balanced")
    ]  # fmt: skip
    rows += [
        [row["label"], f"{kind} scales",
         *(f"{row[kind][key]:.2g}" for key in ("call", "call_median", "paired", "paired_median"))]
        for row in found["splits"]
        for kind in ("whole", "split")
    ]  # fmt: skip
    head = ["size", "bits", "call, mean", "call, median", "paired, mean", "paired, median"]
    return (
        f"{markdown(head, rows, slice(2, None))}\n\n`cats-ddpm`, one seed, "
        f"{found['images']} images of "
        f"{found['steps']} DDIM steps. *Call*: squared error of the model's output on calls of "
        f"other trajectories; *paired*: paired error of samples. Measuring the sensitivity of all "
        f"layers took {found['sensitivity_seconds']:.0f} s. {threads(found)}."
    )


@register_table
def reconstruct(found: dict) -> str:
    """Reconstruction of the whole model beside plain calibration."""
    plain: dict[tuple[str, str], dict] = {}
    rows = []
    for row in found["rows"]:
        base = plain.setdefault((row["model"], row["bits"]), row)
        rows.append(
            [row["model"], row["bits"], row["method"], f"{row['mse']:.2g}",
             f"{row['mse'] / base['mse']:.2f}", f"{row['median']:.2g}",
             f"{row['median'] / base['median']:.2f}", f"{row['frechet']:.1f}",
             f"{row['cpu_seconds']:.0f}"]
        )  # fmt: skip
    head = ["model", "bits", "method", "paired mean", "/ plain", "median", "/ plain", "Frechet",
            "CPU s"]  # fmt: skip
    s = found["settings"]
    return (
        f"{markdown(head, rows, slice(3, None))}\n\nPaired errors of {s['images']} images, "
        f"and distance of {s['frechet']} images of {s['frechet_steps']} steps; one seed. "
        f"*adaround-model*: {s['iterations']} updates of the whole model. */ plain*: divided by "
        f"plain calibration. *CPU s*: time of the reconstruction. {threads(found)}."
    )


@register_table
def recording(found: dict) -> str:
    """Memory of recording and observing calls."""
    rows = [
        [row["calls"], f"{row['recording_mb']:.0f}", f"{row['observing_mb']:.0f}",
         f"{row['shards_mb'] / row['calls']:.2f}"]
        for row in found["rows"]
    ]  # fmt: skip
    head = ["calls", "MB while recording", "MB while observing", "MB per call on disk"]
    return (
        f"{markdown(head, rows, slice(0, None))}\n\nGrowth of the process's peak memory while "
        f"calls are recorded to disk and observed: a UNet with the layers of Stable Diffusion 1.5 "
        f"at {found['width']} of its width, with guidance. {threads(found)}."
    )
