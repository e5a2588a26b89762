"""The study of alternatives: its arms, what its rows say, and all of it on a toy model."""

import json
import sys

import pytest
import torch

import tdquant as tdq
from tdquant.models.pipe import Pipe
from tests.studies.test_studies import studies

__all__ = ["studies"]

TOY = {"images": 6, "sampler_steps": 3, "trajectories": 2, "calibration_steps": 4, "calls": 2}


class Toy(torch.nn.Module):
    """Linear layers over tokens; the input of ``moving`` is large at early times, that of
    ``costly`` always and weighs most.
    """

    def __init__(self):
        super().__init__()
        self.enter = torch.nn.Linear(4, 16)
        self.moving = torch.nn.Linear(16, 16)
        self.costly = torch.nn.Linear(16, 16)
        self.leave = torch.nn.Linear(32, 4)

    def forward(self, x, timestep):
        h = self.enter(x.flatten(2).mT).tanh()
        grown = (timestep.float() / 250).exp().reshape(-1, 1, 1)
        a = self.moving(h * grown) / grown
        both = torch.cat([a, 9 * self.costly(3 * h + h**3)], -1)
        return self.leave(both).mT.view_as(x)


@pytest.fixture
def toy(studies, monkeypatch):
    """The study, of a toy model."""
    module, protocol = studies("alternatives"), studies("protocol")
    from diffusers import DDIMScheduler

    torch.manual_seed(0)
    pipe = Pipe(Toy().eval(), None, DDIMScheduler(clip_sample=False), (4, 2, 2), "toy")
    monkeypatch.setattr(protocol, "load", lambda name: pipe)
    about = module.About(module.HELD_OUT, ("W8A8", "W8A4"), split=True, tokens=True)
    monkeypatch.setattr(module, "MODELS", {"toy": about})
    monkeypatch.setattr(module, "SETTINGS", TOY)
    return module


def test_the_whole_study_on_a_toy_model(toy, monkeypatch, tmp_path):
    arms = ["static", "tdquant's default", "input-dynamic, per token", "2 most moving at 8 bits"]
    words = ["--arm", *arms, "--bits", "W8A4", "--seeds", "0"]
    monkeypatch.setattr(sys, "argv", ["alternatives", *words])
    toy.main()
    study = json.loads((tmp_path / "alternatives.json").read_text())
    tdq.lab.report.formats.StudyFile.model_validate(study)
    assert study["verdict"] == "not finished"
    added, instead, best, errors = study["tables"]
    assert {row["label"] for row in added["rows"]} == {
        "static", "static, 20 knots", "tdquant's default", "2 most moving at 8 bits",
    }  # fmt: skip
    assert {row["arm"] for row in instead["rows"]} == set(arms) - {"static"}
    assert [row["seeds"] for row in best["rows"]] == [1]
    assert len(errors["rows"]) == 8
    assert all(row["command"].endswith("--again") for row in errors["rows"])
    wider = {run["wider"] for run in study["runs"] if run["arm"] == arms[-1]}
    assert all(names.startswith("moving") for names in wider)


def test_arms_do_what_they_say(toy, studies):
    arms, protocol = studies("arms"), studies("protocol")
    made = arms.Calibrations(protocol.Subject("toy", 4, 3), TOY, 0)
    assert made.ranked("moving", "W8A4")[0] == "moving"
    assert made.ranked("costly", "W8A4")[0] == "costly"

    def scales(*key):
        model, about = made.frozen("W8A4", *key)
        inputs = dict(arms.activation_quantizers(model))
        return {name.removesuffix(arms.INPUT): q for name, q in inputs.items()}, about

    found, about = scales("1 most moving in float", "without")
    assert set(found) == {"costly"}
    assert about["wider"] == "moving"
    assert about["share"] == pytest.approx(256 / (64 + 256 + 256 + 128))
    found, _ = scales("1 most moving at 8 bits", "s(t)")
    assert [found[n].grid.bits for n in ("moving", "costly")] == [8, 4]
    assert len(found["moving"].scale.knots) == 1000
    found, _ = scales("static", "20 knots")
    assert (
        found["moving"].scale.knots.tolist()
        == made.observed()[1].seen["moving" + arms.INPUT].times().tolist()
    )
    x = torch.randn(2, 3, 16)
    found, _ = scales("input-dynamic, per token", "without")
    assert found["costly"].step(x).shape == (2, 3, 1)
    assert float((found["costly"](x) - x).abs().div(x.abs().amax(-1, True)).max()) < 0.08
    found, _ = scales("input-dynamic, per sample", "without")
    assert found["costly"].step(x).shape == (2, 1, 1)


def test_errors_are_kept_at_three_digits(studies):
    contrasts = studies("contrasts")
    errors = 10 ** torch.linspace(-11, 0.6, 64, dtype=torch.float64)
    text = contrasts.packed(errors)
    assert torch.allclose(contrasts.unpacked(text), errors, rtol=1.2e-3)
    assert len(text) < 64 * 6
    assert contrasts.unpacked(contrasts.packed(torch.zeros(1))) == 1e-12


def test_rows_of_arms_that_made_the_same_models_are_no_other_evidence(studies):
    contrasts = studies("contrasts")
    errors = torch.rand(64, generator=torch.Generator().manual_seed(0)).double() + 0.1
    ratios = {
        ("static", "without"): 1.0, ("static", "s(t)"): 0.5,
        ("channel factors", "without"): 1.0, ("channel factors", "s(t)"): 0.5,
        ("split shortcuts", "without"): 0.4, ("split shortcuts", "s(t)"): 0.4,
        ("input-dynamic, per sample", "without"): 0.25,
        ("tdquant's default", "without"): 0.3, ("tdquant's default", "s(t)"): 0.2,
    }  # fmt: skip
    runs = [
        {"model": "a", "bits": "W8A5", "arm": arm, "time": time, "seed": seed,
         "errors": contrasts.packed(errors * ratio)}
        for (arm, time), ratio in ratios.items()
        for seed in range(4 if arm == "static" else 3)
    ]  # fmt: skip
    table = contrasts.errors_of(runs)
    told = {row["arm"]: row["verdict"] for row in contrasts.added(table)}
    assert told == {
        "static": "time helps", "tdquant's default": "time helps",
        "split shortcuts": "time does not help", "channel factors": "same as static",
    }  # fmt: skip
    told = {row["arm"]: row["verdict"] for row in contrasts.replaced(table)}
    assert told["input-dynamic, per sample"] == "time hurts"
    assert told["channel factors"] == "time helps"
    (best,) = contrasts.beside_best(table)
    assert (best["arm"], best["geometric"]) == ("input-dynamic, per sample", 0.8)
    place = contrasts.sorted_rows(contrasts.added(table), lambda row: 0)
    assert place[0]["verdict"] == "time does not help"
    assert place[-1]["verdict"] == "same as static"


@pytest.mark.parametrize(
    ("ratio", "verdict"), [(0.5, "holds"), (1.0, "does not hold"), (None, "holds in part")]
)
def test_the_verdict_of_the_study(toy, studies, ratio, verdict):
    contrasts, ledger = studies("contrasts"), studies("ledger")
    book = ledger.Ledger("alternatives", toy.KEYS, toy.SETTINGS)
    rng = torch.Generator().manual_seed(0)
    for key in toy.plans(["toy"]):
        timed = key["time"] != "without"
        if not timed:
            base = torch.rand(8, generator=rng).double() + 0.5
        much = ratio or (0.5 if key["bits"] == "W8A4" else 2.0)
        errors = base * (much if timed else 1)
        numbers = {"mean": 1.0, "median": 1.0, "geometric": 1.0, "share": 0.0, "moving": 1.0}
        book.runs.append({**key, **numbers, "errors": contrasts.packed(errors)})
    toy.tell(book)
    assert book.kept["verdict"] == verdict
