"""How far samples of quantized models are from the data, over how far the float model's are.

    python studies/distances.py                          # goes on where it was
    python studies/distances.py --quick                  # 1,000 images, into distances-quick.json
    python studies/distances.py --model cats-ddpm --bits W8A5 --arm static

A distance of 5,000 samples to 5,000 held-out cats is mostly that of the float model, and what
quantization adds is its *excess* over the float model's: the number that is told. Samples have the
same noise in all arms, so the interval of an excess, or of the difference of two arms, is over
subsets that leave the same images out of both. Two feature networks of other data flow and
training, four metrics: Frechet and kernel distance, precision, recall. One seed of calibration.
``arms.py`` has the arms; runs keep their resampled values, from which any two arms are compared.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator
from functools import cache, cached_property
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import tdquant as tdq
from arms import DEFAULT, STATIC, TIME, WITHOUT, Calibrations
from distance_tables import (
    FLOAT,
    absolute,
    added,
    between,
    clauses,
    excesses,
    plots,
    verdict,
    versus,
)
from ledger import Ledger, Run, conduct, parser, sentence
from protocol import MODELS, Subject
from strips import Strips
from tdquant.diffusion.pictures import to_uint8
from tdquant.files.caching import cache_folder
from tdquant.files.digests import hash_tensors
from tdquant.files.writing import replacing
from tdquant.lab.evaluation.references import Reference, open_reference
from tdquant.lab.metrics import SET_METRICS, FeatureNetwork, features_of, load_network, mse
from tdquant.lab.metrics.bootstrap import subsets

TWO_IN_FLOAT, DYNAMIC = "2 most moving in float", "input-dynamic, per sample"
ARMS = {DEFAULT: TIME, STATIC: WITHOUT, TWO_IN_FLOAT: WITHOUT, DYNAMIC: WITHOUT}
"""Arms of ``arms.py`` and whether their steps follow time."""

BITS = ("W8A8", "W8A5", "W4A8", "W4A4")
FIRST = ("W8A5", "W4A4")
NETWORKS = ("efficientnet-lite0", "vgg16")
METRICS = ("frechet", "kid", "precision", "recall")
KEYS = ("model", "bits", "arm", "seed")
SETTINGS = {
    "images": 5000, "sampler_steps": 20, "reference": "cats-heldout", "resamples": 100,
    "trajectories": 16, "calibration_steps": 50, "calls": 32,
}  # fmt: skip
QUICK = SETTINGS | {"images": 1000}
QUESTION = """\
How much farther from the data are samples of quantized models than the float model's, and does the
default come closer than static scales, two inputs in float, and input-dynamic scales?"""
CLAIM = """\
The paper compares FIDs as they are: at W8A5 5.71 on CIFAR-10 and 4.85 on LSUN-churches, against
22.43 and 7.06 of PTQ4DM, with no float model subtracted. Reported for the paper, not checked
against it."""
COMMAND = "python studies/distances.py"
STRIPS = {
    model: Strips(
        f"distances-{model}", f"{model}: every arm from the same noise", "bits", list(BITS),
        (FLOAT, *ARMS),
    )
    for model in MODELS
}  # fmt: skip
SIDE = 32
SEED = 0
"""Of calibration, and of the subsets."""


class Judge:
    """The metrics of images of one model, by two networks.

    Arguments:
        name: Of the model.
        settings: Of the study.
    """

    def __init__(self, name: str, settings: dict[str, Any]) -> None:
        self.subject = Subject(name, settings["images"], settings["sampler_steps"])
        self.settings = settings
        self.kept, self.factor = subsets(settings["images"], settings["resamples"], SEED)

    @cached_property
    def calibrations(self) -> Calibrations:
        return Calibrations(self.subject, self.settings, SEED)

    @cached_property
    def exact(self) -> Tensor:
        """The float model's images ``(N, 3, H, W)``, from the cache if they are there."""
        weights = hash_tensors(self.subject.pipe.unet.state_dict()).hexdigest()[:16]
        count, steps = self.settings["images"], self.settings["sampler_steps"]
        file = cache_folder() / f"study-{self.subject.name}-{weights}-{count}-{steps}.safetensors"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as fresh:
                save_file({"images": self.subject.pictures(self.subject.pipe.unet)}, fresh)
        return load_file(file)["images"]

    def images(self, bits: str, arm: str) -> Tensor:
        """Samples of an arm."""
        if arm == FLOAT:
            return self.exact
        frozen, _ = self.calibrations.frozen(bits, arm, ARMS[arm])
        return self.subject.pictures(tdq.compile(frozen, "openvino"))

    def run(self, bits: str, arm: str, again: bool = False) -> Run:
        """Values and resampled values of every metric, and the median paired error."""
        images = self.images(bits, arm)
        STRIPS[self.subject.name].keep(images, arm, "" if arm == FLOAT else bits, again)
        found: Run = {"paired_median": float(mse(images, self.exact).median())}
        for network in NETWORKS:
            own = features_of(to_uint8(images), loaded(network))["pooled"]
            reference = opened(network, self.settings["reference"])
            for metric, value, draws in self.measured(own, reference):
                found[f"{network} {metric}"] = value
                # Digits below a thousandth of the spread say nothing.
                digits = 3 - math.floor(math.log10(float(draws.std()) or 1))
                told = " ".join(f"{draw:.{max(digits, 0)}f}" for draw in draws.tolist())
                found[f"{network} {metric} draws"] = told
        return found

    def measured(self, own: Tensor, reference: Reference) -> Iterator[tuple[str, float, Tensor]]:
        """Name, value and values of subsets ``(R,)`` of every metric. The kernel distance is that
        of the whole sets: its expectation is that of the mean over subsets, its scatter less.
        """
        whole = torch.arange(len(own))[None]
        for name in METRICS:
            metric = SET_METRICS[name]
            other = reference.of("pooled", whole=not metric.summarized)
            if name == "kid":
                value = float(metric.resample(own, other, whole, SEED))
            else:
                value = metric.compute(own, other, seed=SEED)
            yield name, value, metric.resample(own, other, self.kept, SEED)


@cache
def loaded(network: str) -> FeatureNetwork:
    """A feature network."""
    return load_network(network)


@cache
def opened(network: str, name: str) -> Reference:
    """The reference set with the features of a network."""
    return open_reference(name, loaded(network), ("pooled",), size=(SIDE, SIDE), progress=False)


def plans(models: list[str], bits: list[str], arms: list[str]) -> list[Run]:
    """The runs asked for, those that say most first: the float models; the default and static
    scales at the widths that the paper reports; its other arms there; other widths.
    """
    found = [{"model": m, "bits": FLOAT, "arm": FLOAT, "seed": SEED} for m in models]
    asked = [
        {"model": m, "bits": b, "arm": a, "seed": SEED}
        for b in sorted(bits, key=(*FIRST, *BITS).index) for m in models for a in arms
    ]  # fmt: skip
    return found + sorted(
        asked, key=lambda key: (key["bits"] not in FIRST, key["arm"] not in (DEFAULT, STATIC))
    )


def make_runs(ledger: Ledger, args: argparse.Namespace) -> None:
    judges: dict[str, Judge] = {}

    def run(model: str, bits: str, arm: str, seed: int) -> Run:
        if model not in judges:
            judges[model] = Judge(model, ledger.settings)
        return judges[model].run(bits, arm, ledger.again)

    for key in plans(args.model, args.bits, args.arm):
        ledger.make(key, lambda key=key: run(**key))
        tell(ledger)


def tell(ledger: Ledger) -> None:
    """Tables, and what they say."""
    s = ledger.settings
    place = {arm: i for i, arm in enumerate(ARMS)}
    everything = plans(list(MODELS), list(BITS), list(ARMS))
    made = sum(ledger.find(**key) is not None for key in everything)
    rows, against = (
        sorted(found, key=lambda r: (r["model"], BITS.index(r["bits"]), place[r["arm"]]))
        for found in (excesses(ledger, COMMAND), versus(ledger, DEFAULT, COMMAND))
    )
    about = (
        f"{s['images']} images of {s['sampler_steps']} DDIM steps from the same noise, against "
        f"5,000 held-out cats; one seed of calibration on {s['trajectories']} trajectories. "
        f"Intervals of 95 %, over {s['resamples']} subsets of the images: what other noise would "
        "give, not what another calibration would."
    )
    ledger.write(
        position=2.5,
        title="Distances to the data: what quantization adds, by two networks",
        question=QUESTION,
        claim=CLAIM,
        measured=sentence(clauses(against, DEFAULT), made, len(everything)),
        verdict=verdict(against, made, len(everything), STATIC),
        command=COMMAND,
        tables=[added(rows, about), between(against, DEFAULT), absolute(ledger, COMMAND)],
        figures=[], plots=plots(rows, list(ARMS), BITS), layers=[],
        samples=[grid for strips in STRIPS.values() for grid in strips.told()],
    )  # fmt: skip


def main() -> None:
    quick = "--quick" in sys.argv
    made = parser(__doc__, shared=True, model=MODELS, bits=BITS, arm=list(ARMS))
    made.add_argument(
        "--quick", action="store_true", help="1,000 images, into results/distances-quick.json"
    )
    if quick:
        made.set_defaults(name="distances-quick")
    conduct(made.parse_args(), "distances", KEYS, QUICK if quick else SETTINGS, make_runs, tell)


if __name__ == "__main__":
    main()
