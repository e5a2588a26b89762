"""e. Which layers move: how activations follow the timestep, and what temporal scales save where.

    python studies/movement.py

The float model is observed along trajectories. For each quantized layer: Pearson's r between the
timestep and the standard deviation of its input; the range of the mse step over time, largest over
smallest; and the share of the squared rounding error that a step for each time saves against the
best single step, at 8 and at 4 bits.
"""

import torch

import tdquant as tdq
from ledger import AGAIN, column, conduct, parser
from protocol import MODELS, Subject
from tdquant.calibration.candidates import choose_grid
from tdquant.calibration.estimators import estimate
from tdquant.calibration.histogram import pooled, squared_error
from tdquant.quantizers import activation_quantizers

SETTINGS = {"trajectories": 32, "steps": 50}
KEYS = ("model", "layer", "seed")
QUESTION = """\
How many layers see activations that follow the timestep, and where does a scale that follows
them save error?"""
CLAIM = """\
The paper reports |Pearson r| between timestep and activation variation above 0.5 in 62 % of
layers and above 0.7 in 39 %, about 30 % of layers that barely depend on it (the middle blocks),
and less dependence in latent models than in pixel models. Reported for the paper, not checked
against it."""
COMMAND = "python studies/movement.py"
REPORTED = {0.5: 0.62, 0.7: 0.39}
"""Bound of |r| -> share of the layers above it, as reported."""
STILL = 0.3
"""Bound of |r| below which a layer is taken to depend barely on the timestep."""


def spread(histogram):
    """Standard deviation of what a histogram counted."""
    centres, mass = histogram.centres().double(), histogram.counts.double()
    mean = (centres * mass).sum() / mass.sum()
    return float((((centres - mean).square() * mass).sum() / mass.sum()).sqrt())


def errors(histograms, grid):
    """Mean squared error relative to the power at each time, with a step for each time and with
    the best single one.
    """
    single = estimate(pooled(histograms), grid, "mse")
    one = own = 0.0
    for histogram in histograms:
        centres, mass = histogram.centres(), histogram.counts
        power = float((centres.square() * mass).sum() / mass.sum()) or 1.0
        steps = torch.tensor([single, estimate(histogram, grid, "mse")])
        found = squared_error(histogram, steps, grid.low, grid.high) / power
        one, own = one + float(found[0]), own + float(found[1])
    return own / len(histograms), one / len(histograms)


def layers_of(name, settings, seed):
    """One run a layer."""
    subject = Subject(name, 1, 1, 64)
    pipe = subject.pipe
    probe = subject.quantized(tdq.Recipe(remedies=()))
    calls = tdq.trajectories(
        pipe.unet, pipe.scheduler, settings["trajectories"], pipe.shape, steps=settings["steps"],
        seed=1000 + seed,
    )  # fmt: skip
    seen = tdq.observe(probe, calls, calls=1, seed=seed, progress=False).seen
    for path, quantizer in activation_quantizers(probe):
        histograms, times = seen[path].histograms(), seen[path].times().double()
        spreads = torch.tensor([spread(h) for h in histograms], dtype=torch.float64)
        row = {
            "layer": path.removesuffix(".input_quantizer"),
            "type": type(probe.get_submodule(path.rpartition(".")[0])).__name__,
            "r": float(torch.corrcoef(torch.stack([times, spreads]))[0, 1]),
            "times": times.tolist(),
        }
        for bits in (8, 4):
            grid = choose_grid(seen[path], type(quantizer.grid).signed(bits), quantizer.symmetric)
            steps = torch.tensor([estimate(h, grid, "mse") for h in histograms])
            row[f"range{bits}"] = float(steps.max() / steps.min())
            row[f"error{bits}"], row[f"static{bits}"] = errors(histograms, grid)
            row[f"saved{bits}"] = 1 - row[f"error{bits}"] / row[f"static{bits}"]
            row[f"steps{bits}"] = steps.tolist()
        yield row


def make_runs(ledger, args):
    for model in args.model:
        ledger.make_together(
            {"model": model, "seed": 0},
            lambda model=model: layers_of(model, ledger.settings, 0),
        )


def tell(ledger):
    rows, maps, words = [], [], []
    shares = {}
    for model in MODELS:
        found = ledger.select(model=model)
        if not found:
            continue
        r = torch.tensor([run["r"] for run in found]).abs()
        shares[model] = [float((r > bound).double().mean()) for bound in REPORTED]
        still = [run["layer"] for run in found if abs(run["r"]) < STILL]
        middle = sum("mid" in layer for layer in still)
        ranges = torch.tensor([run["range4"] for run in found])
        words.append(
            f"{model}: |r| > 0.5 in {shares[model][0]:.0%} of {len(found)} layers, > 0.7 in "
            f"{shares[model][1]:.0%}, < {STILL} in {len(still) / len(found):.0%}, {middle} of "
            f"these {len(still)} in the middle; the 4-bit step moves by "
            f"{float(ranges.median()):.1f}x in the median layer and {float(ranges.max()):.0f}x in "
            "the widest"
        )
        best = sorted(found, key=lambda run: run["saved4"], reverse=True)
        for run in best:
            kept = ("model", "layer", "r", "range8", "range4", "saved8", "saved4")
            rows.append(
                {k: run[k] for k in kept} | {"command": f"{COMMAND} --model {model} {AGAIN}"}
            )
        maps.append(
            {
                "title": f"{model}: the best 4-bit step over time",
                "times": found[0]["times"],
                "layers": [
                    {
                        "path": run["layer"], "type": run["type"], "input_bits": 4, "scale": "mse",
                        "steps": run["steps4"], "error": run["error4"],
                        "error_static": run["static4"], "saved": run["saved4"],
                        "range": run["range4"], "correlation": run["r"],
                    }
                    for run in found
                ],
            }
        )  # fmt: skip
    gain = [row for row in rows if row["saved4"] > 0.1]
    done = len(shares) == len(MODELS)
    part = done and shares["cats-ddpm"][0] > 0.5 and shares["cats-ldm"][0] < shares["cats-ddpm"][0]
    close = done and all(
        abs(share - told) < 0.15
        for share, told in zip(shares["cats-ddpm"], REPORTED.values(), strict=True)
    )
    verdict = (
        "not finished"
        if not done
        else "holds"
        if part and close
        else "holds in part"
        if (max(s[0] for s in shares.values()) > 0.5)
        else "does not hold"
    )
    ledger.write(
        position=5,
        title="Which layers move with the timestep",
        question=QUESTION,
        claim=CLAIM,
        measured=". ".join(words) + f". A step for each time saves more than a tenth of the error "
        f"at 4 bits in {len(gain)} of {len(rows)} layers, all in all.",
        verdict=verdict,
        command=COMMAND,
        tables=[
            {
                "title": "Every layer's input",
                "note": "r: Pearson correlation of the timestep and the standard deviation. "
                      "Range: largest over smallest mse step. Saved: share of the relative "
                "squared rounding error that a step for each time saves against the best "
                "single one.",
                "group": ["model"],
                "columns": [
                    column("layer", "Layer"),
                    column("r", "r", 2),
                    column("range8", "Range, 8 bits", 2),
                    column("range4", "Range, 4 bits", 2),
                    column("saved8", "Saved, 8 bits", 3),
                    column("saved4", "Saved, 4 bits", 3),
                ],
                "rows": rows,
            }
        ],
        figures=[], plots=[], samples=[], layers=maps,
    )  # fmt: skip


def main() -> None:
    arguments = parser(__doc__, model=MODELS).parse_args()
    conduct(arguments, "movement", KEYS, SETTINGS, make_runs, tell)


if __name__ == "__main__":
    main()
