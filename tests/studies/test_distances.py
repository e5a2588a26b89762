"""The study of distances: what its rows say, and all of it on a toy model."""

import json
import sys

import pytest
import torch
from diffusers import DDIMScheduler

import tdquant as tdq
from tdquant.lab.metrics import NETWORKS, SET_METRICS
from tdquant.models.pipe import Pipe
from tests.lab.evaluation import small
from tests.studies.test_studies import studies

__all__ = ["studies"]

TOY = {
    "images": 12, "sampler_steps": 2, "reference": "cats:heldout:12", "resamples": 5,
    "trajectories": 2, "calibration_steps": 4, "calls": 2,
}  # fmt: skip


class Toy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.enter = torch.nn.Conv2d(3, 6, 3, padding=1)
        self.middle = torch.nn.Conv2d(6, 6, 1)
        self.leave = torch.nn.Conv2d(6, 3, 1)

    def forward(self, x, timestep):
        return self.leave(
            self.middle(self.enter(x).tanh() * (1 + timestep.reshape(-1, 1, 1, 1) / 500)).tanh()
        )


@pytest.fixture
def toy(studies, monkeypatch, tmp_path):
    """The study, of a toy model and with a network of random weights."""
    module, protocol = studies("distances"), studies("protocol")
    torch.manual_seed(0)
    pipe = Pipe(Toy().eval(), None, DDIMScheduler(clip_sample=False), (3, 32, 32), "toy")
    monkeypatch.setattr(protocol, "load", lambda name: pipe)
    monkeypatch.setenv("TDQUANT_CACHE", str(tmp_path / "cache"))
    for name in module.NETWORKS:
        monkeypatch.setitem(NETWORKS, name, lambda weights, download: small.Random())
    for name, value in {"MODELS": ("cats-ddpm",), "BITS": ("W8A8", "W4A4"), "SETTINGS": TOY,
                        "ARMS": {"static": "without", "input-dynamic, per sample": "without"},
                        "DEFAULT": "input-dynamic, per sample"}.items():  # fmt: skip
        monkeypatch.setattr(module, name, value)
    return module


@pytest.mark.filterwarnings("ignore:Frechet distance|kernel distance")
def test_the_whole_study_on_a_toy_model_and_again(toy, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["distances", "--bits", "W4A4"])
    toy.main()
    study = json.loads((tmp_path / "distances.json").read_text())
    tdq.lab.report.formats.StudyFile.model_validate(study)
    assert study["verdict"] == "not finished"
    assert study["measured"].endswith("3 of 5 runs made.")
    assert [run["bits"] for run in study["runs"]] == ["float", "W4A4", "W4A4"]
    added, between, values = study["tables"]
    assert [row["arm"] for row in added["rows"]] == ["static", "input-dynamic, per sample"]
    exact, static = study["runs"][:2]
    for network in toy.NETWORKS:
        for metric in toy.METRICS:
            name = f"{network} {metric}"
            row = added["rows"][0]
            assert row[name] == pytest.approx(static[name] - exact[name], rel=1e-3, abs=1e-6)
            assert row[f"{name}_low"] <= row[name] <= row[f"{name}_high"]
    assert {row["arm"] for row in between["rows"]} == {"static"}
    assert len(values["rows"]) == 3
    capsys.readouterr()
    toy.main()
    assert "model=" not in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:Frechet distance|kernel distance")
def test_values_are_those_of_the_metrics(toy):
    judge = toy.Judge("cats-ddpm", TOY)
    own = torch.randn(12, 5, generator=torch.Generator().manual_seed(1))
    other = torch.randn(12, 5, generator=torch.Generator().manual_seed(2))
    reference = toy.Reference("made up", 12, "none", "", {"pooled": other})
    found = {name: value for name, value, _ in judge.measured(own, reference)}
    for name in ("frechet", "precision", "recall"):
        assert found[name] == SET_METRICS[name].compute(own, other)
    # Without subsets of a part, the mean over pairs of subsets is the value of the whole sets.
    assert found["kid"] == pytest.approx(SET_METRICS["kid"].compute(own, other))


def test_an_interval_of_a_difference_leaves_the_same_images_out(studies):
    tables = studies("distance_tables")
    noise = [3.0, -1.0, 2.0, -4.0]
    a = {"n": 5.0, "n draws": " ".join(str(5.5 + x) for x in noise)}
    b = {"n": 3.0, "n draws": " ".join(str(3.0 + x) for x in noise)}
    found = tables.difference(a, b, "n", 100)
    assert (found.value, found.low, found.high) == (2.0, 2.0, 2.0)
    b["n draws"] = " ".join(str(3.0 - x) for x in noise)
    wide = tables.difference(a, b, "n", 100)
    # Twice the scatter, times the factor of subsets that leave a tenth out.
    assert wide.high - wide.low == pytest.approx(3 * 2 * 6.75, rel=0.1)


def test_both_distances_decide(studies):
    tables = studies("distance_tables")

    def row(frechet, kid, arm="static"):
        ends = {"frechet": frechet, "kid": kid}
        made = {f"{k}{e}": v[i] for k, v in ends.items() for i, e in enumerate(("_low", "_high"))}
        made |= {"frechet": sum(frechet) / 2, "model": "m", "bits": "W4A4", "network": "one"}
        made["arm"] = arm
        return made | {"verdict": tables.decided(made)}

    closer, farther = row((-3, -1), (-2, -1)), row((1, 3), (1, 2), "other")
    undecided = row((-3, -1), (-1, 1))
    found = [each["verdict"] for each in (closer, farther, undecided)]
    assert found == ["closer", "farther", "not decided"]
    first, *rest = tables.clauses([closer, undecided, farther], "default")
    assert first == (
        "strongest counter-example: other on m at W4A4 is closer by 2 (1 to 3, Frechet one "
        "distance)"
    )
    assert rest[0].endswith("of 2 pairs (model, width, network): closer in 1, 1 not decided")
    assert tables.verdict([closer, undecided], 2, 2, "static") == "holds in part"
    assert tables.verdict([closer], 2, 2, "static") == "holds"
    assert tables.verdict([undecided], 2, 2, "static") == "does not hold"
    assert tables.verdict([closer], 1, 2, "static") == "not finished"
