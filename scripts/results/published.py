"""Tables of the published training and commands beside ours."""

from scripts.results.tables import markdown, register_table, where

CHOICES = [
    (None, "ours", "", ""),
    ("scales at the network's rate", "rates",
     "learned step sizes at a tenth of the learning rate, networks of scales at the full rate",
     "the same; measured with `tdquant.rates=equal`: compare at equal rates too, since part of "
     "the distance to LSQ may come from this"),
    ("dropout 0.2 in the scales' networks", "dropout of the scales' networks", "0.2",
     "none, so that training sees the same scales as sampling; measured with "
     "`tdquant.dropout=0.2`"),
    ("one step for each weight", "step sizes of weights", "one per tensor, max(w) / qmax",
     "one per output channel, at the least squared error: max(w) is not the largest absolute "
     "value, and channels differ by more than 4-bit codes cover; measured with "
     "`tdquant.granularity=tensor`, at the least squared error"),
    ("time path in float", "time MLP and embedding projections", "in float",
     "8-bit weights, float inputs; measured with `tdquant.time_weights=32`"),
    ("gradients not clipped", "gradient clipping", "none",
     "norm at most 1; measured with `tdquant.clip=0`"),
    ("published grids, offset and networks", "grids, offset, input of the networks",
     "13 codes at 4 bits; after SiLU 15 codes from -0.2785, in training from -0.2785 / (1 - p) "
     "after dropout of rate p; the UNet's embedding of the raw timestep, `model_channels` wide",
     "16 codes (15 for weights) and an integer zero point, so that the zeros of padding are a "
     "code; features of time over the model's range, as flow models need; measured with dropout, "
     "weights and time path as published too, and every step size starting at the least squared "
     "error"),
    ("the same, started as published", "start of activation scales",
     "mean + 3 sigma of one batch with 100 draws of t, mean + 16 sigma after SiLU; one step size "
     "for all times",
     "candidate curves over time, judged by their error at the model's output; 16 sigma at 4 bits "
     "makes one step wider than the data"),
    ("all as published", "all of these", "`--scheme published --use_dynamic`", ""),
    ("all as published, static (LSQ)", "all of these, LSQ", "`--scheme published`", ""),
]  # fmt: skip
"""Row of the results, the choice, and what the published code and tdquant do."""


@register_table
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
        + f"\n\nEach row of `{settings['model']}` at {settings['bits']} has that choice alone as "
        "published unless stated otherwise. Frechet EfficientNet-Lite0 distance of "
        f"{settings['images']} images of {settings['sampler_steps']} DDIM steps to 5,000 held-out "
        f"cats, float "
        f"{settings['float']:.1f}; {settings['steps']} steps of batch {settings['batch']} on the "
        f"diffusion loss, mean (smallest to largest) of {seeds} seeds, at the better of two rates "
        "on seed 0. *Paired error*: median squared error of those images against the float "
        "model's from the same noise. The published 200,000 steps may make up for a bad start. "
        f"{where(found)}."
    )


@register_table
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
                said = f"{stage['over_checkpoint']:.2f} of the checkpoint (without the imports)"
            elif "over_weights" in stage:
                said = f"{stage['over_weights']:.1f} of the weights (whole process)"
            rows.append(
                [f"{name}, {stage['stage']}", f"{stage['seconds']:.0f}",
                 f"{stage['peak_mb']:.0f}", said]
            )  # fmt: skip
    head = ["", "seconds", "peak MiB", "relative to"]
    return markdown(head, rows, slice(1, 3)) + f"\n\n{'; '.join(sizes)}. {where(found)}."
