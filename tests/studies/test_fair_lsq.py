"""The study of a fair LSQ: its search, the starts of its arms, and all of it on a toy model."""

import json
import math
import sys

import pytest
import torch
from torch.utils.data import TensorDataset

import tdquant as tdq
from tdquant.errors import TrainingError
from tdquant.models.pipe import Pipe
from tests.studies.test_alternatives import Toy
from tests.studies.test_studies import studies

__all__ = ["studies"]

TOY = {
    "batch": 4, "distill": 1.0, "ema": 0.9, "images": 4, "sampler_steps": 2, "calibration": 3,
    "items": 16, "judged_from": 3, "rungs": [[1, 1, False], [2, 0.5, True], [3, 2, False]],
}  # fmt: skip


def valley(arm, steps):
    """A loss with its least at a rate of 1e-4 and scales at 300 times that, learned raw."""
    away = (math.log10(arm.rate) + 4) ** 2 + (math.log10(arm.step_rate) - math.log10(300)) ** 2
    return away + (arm.form == "log") + 1 / steps


def test_a_walk_ends_where_no_neighbour_is_better(studies):
    search, learners = studies("halving"), studies("learners")
    rungs = [search.Rung(10, 1, True), search.Rung(40, 3)]
    first = learners.arms_of("LSQ")
    assert {arm.rate for arm in first} == {1e-3}
    short, long = search.halving(first, rungs, valley, learners.Arm.neighbours)
    assert (short.best.rate, short.best.step_rate, short.best.form) == (1e-4, 300.0, "raw")
    assert set(short.best.neighbours()) <= set(short.losses)
    assert set(first) < set(short.losses)
    assert list(short.losses.values()) == sorted(short.losses.values())
    assert list(long.losses) == list(short.losses)[:3]
    assert (short.walked, long.walked) == (True, False)
    assert short.best.inside


def test_a_walk_changes_the_rate_of_the_network_alone_too(studies):
    search, learners = studies("halving"), studies("learners")

    def narrow(arm, steps):
        scales = math.log10(arm.rate * arm.step_rate) + 2
        return 10 * scales**2 + (math.log10(arm.rate) + 4) ** 2

    first = learners.arms_of("TDQ")
    (found,) = search.halving(first, [search.Rung(1, 1, True)], narrow, learners.Arm.neighbours)
    assert (found.best.rate, found.best.step_rate) == (1e-4, 100.0)


def test_a_search_ends_at_what_is_not_known_and_goes_on_alike(studies):
    search, learners = studies("halving"), studies("learners")
    rungs, first = [search.Rung(10, 1, True), search.Rung(40, 3)], learners.arms_of("TDQ")
    known, asked = {}, []

    def measure(arm, steps):
        if (arm, steps) not in known:
            asked.append((arm, steps))
        return known.get((arm, steps))

    def outcomes():
        return list(search.halving(first, rungs, measure, learners.Arm.neighbours))

    whole = list(search.halving(first, rungs, valley, learners.Arm.neighbours))
    assert outcomes() == []
    assert asked == [(arm, 10) for arm in first]  # all of them, for processes that share
    rounds = 0
    while len(found := outcomes()) < 2:
        known.update({key: valley(*key) for key in asked})
        asked.clear()
        rounds += 1
    assert rounds > 2
    assert found == whole


def test_an_arm_that_diverged_is_the_worst(studies):
    search = studies("halving")
    (found,) = search.halving(
        "abc", [search.Rung(1)], lambda arm, _: math.inf if arm == "a" else ord(arm), lambda _: ()
    )
    assert list(found.losses) == ["b", "c", "a"]
    assert search.Rung(5, 0.5).reached("bca", False) == ["b", "c"]
    assert search.beside(1, (0, 1, 2)) == [0, 2]
    assert search.beside(0, (0, 1, 2)) == [1]


@pytest.fixture
def toy(studies, monkeypatch):
    """The study, of a toy model."""
    module, protocol = studies("fair_lsq"), studies("protocol")
    from diffusers import DDIMScheduler

    torch.manual_seed(0)
    pipe = Pipe(Toy().eval(), None, DDIMScheduler(clip_sample=False), (4, 2, 2), "toy")
    items = torch.randn(16, 4, 2, 2).clamp(-1, 1)
    monkeypatch.setattr(protocol, "load", lambda name: pipe)
    monkeypatch.setattr(protocol, "Latents", lambda pipe, count: Plain(items[:count]))
    monkeypatch.setattr(module, "MODELS", ("toy",))
    monkeypatch.setattr(module, "SETTINGS", TOY)
    return module


class Plain(TensorDataset):
    def __getitem__(self, index):
        return self.tensors[0][index]


def run(module, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["fair_lsq", "--model", "toy", *words])
    module.main()


@pytest.fixture
def few(studies, monkeypatch):
    """Fewer arms to start from."""
    monkeypatch.setattr(studies("learners"), "FIRST_STEP_RATES", (3.0,))
    monkeypatch.setattr(studies("learners"), "RATES", (3e-4, 1e-3))
    monkeypatch.setattr(studies("learners"), "STEP_RATES", (3.0, 10.0))


def test_the_whole_study_on_a_toy_model(toy, few, monkeypatch, tmp_path, capsys):
    run(toy, monkeypatch, "--seeds", "0", "1")
    said = capsys.readouterr().out
    assert "a training step takes" in said
    study = json.loads((tmp_path / "fair_lsq.json").read_text())
    tdq.lab.report.formats.StudyFile.model_validate(study)
    assert study["verdict"] == "not finished"  # a verdict takes three seeds
    ratios, picks, searched = (table["rows"] for table in study["tables"])
    assert [(row["pair"], row["steps"], row["seeds"]) for row in ratios] == [
        ("TDQ over LSQ", 2, 2), ("TDQ over LSQ", 3, 2),
    ]  # fmt: skip
    assert [row["law"] for row in picks] == ["LSQ", "TDQ"] * 2
    assert [row["inside"] for row in picks] == ["-"] * 4  # at the edge of short ladders
    for pick in picks:
        mine = [r for r in searched if (r["law"], r["steps"]) == (pick["law"], pick["steps"])]
        assert len(mine) == pick["arms"]
        assert min(r["loss"] for r in mine) == mine[0]["loss"]
        assert pick["loss_low"] <= mine[0]["loss"] <= pick["loss_high"]
    made = len(study["runs"])
    run(toy, monkeypatch, "--seeds", "0", "1")
    assert len(json.loads((tmp_path / "fair_lsq.json").read_text())["runs"]) == made
    capsys.readouterr()
    run(toy, monkeypatch, "--seeds", "0", "1", "--law", "TDQ", "--until", "2", "--again")
    said = capsys.readouterr().out
    assert said.count("in the file") == 2  # the best arm on both seeds
    run(toy, monkeypatch, "--seeds", "0", "1", "--law", "S1000", "--until", "2")
    study = json.loads((tmp_path / "fair_lsq.json").read_text())
    pairs = [(row["pair"], row["steps"]) for row in study["tables"][0]["rows"]]
    assert ("S1000 over LSQ", 2) in pairs
    assert ("S1000 over LSQ", 3) not in pairs


def test_what_diverges_loses_and_does_not_end_the_study(toy, few, studies, monkeypatch, tmp_path):
    learners = studies("learners")
    train = learners.tdq.train

    def sometimes(model, *args, rate, **options):
        if options["steps"] == 2 and rate == 1e-3 and options["optimization"].step_rate == 10:
            raise TrainingError("the loss is nan")
        return train(model, *args, rate=rate, **options)

    monkeypatch.setattr(learners.tdq, "train", sometimes)
    run(toy, monkeypatch, "--seeds", "0", "--law", "LSQ", "--until", "2")
    study = json.loads((tmp_path / "fair_lsq.json").read_text())
    rows = study["tables"][2]["rows"]
    lost = [row for row in rows if row.get("loss") is None]
    assert lost
    assert all(row["step_rate"] == 10 for row in lost)
    assert rows[-len(lost) :] == lost


@pytest.mark.parametrize("law", ["LSQ", "TDQ", "S1000"])
def test_arms_start_as_they_say(toy, studies, law):
    learners, protocol = studies("learners"), studies("protocol")
    maker = learners.Learners(protocol.Subject("toy", 4, 2, 16), (8, 4), TOY)
    steps = {}
    for arm in learners.arms_of(law):
        model = maker.calibrated(arm, 0)
        inputs = dict(learners.activation_quantizers(model))
        assert any(".parts." in name for name in inputs) <= (arm.layers == "split")
        quantizer = inputs["moving.input_quantizer"]
        s = quantizer.scale(torch.tensor([0, 999]), torch.randn(2, 3, 16), quantizer.grid)
        steps[arm.form, arm.start, arm.layers] = s.expand(2), quantizer.grid.high
    calls = list(maker.subject.noised(4, 3, 0))
    seen = []
    handle = maker.subject.pipe.unet.moving.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].abs().mean())
    )
    with torch.no_grad():
        for call in calls:
            maker.subject.pipe.unet(*call)
    handle.remove()
    for (_, start, _), (found, high) in steps.items():
        assert bool(found[0] == found[1]) or law == "TDQ" or start == "judged start"
        if start == learners.FLAT:
            own = 2 * float(torch.stack(seen).mean()) / high**0.5
            assert found.tolist() == pytest.approx([own, own], rel=0.1)


def test_the_teacher_keeps_no_more_answers_than_it_may(studies):
    teacher = studies("protocol").Remembered(torch.nn.Bilinear(2, 1, 2), most=2)
    asked = [(torch.randn(3, 2), torch.randn(3, 1)) for _ in range(4)]
    first = [teacher(*one) for one in asked]
    assert len(teacher.answers) == 2
    again = [teacher(*one) for one in asked]
    assert all(map(torch.equal, first, again))
    assert teacher(*asked[0]) is first[0]


@pytest.mark.parametrize(
    ("ratio", "late", "verdict", "words"),
    [
        (0.5, 0.5, "holds", "toy W4A4, 3 steps: TDQ is better, 0.50x"),
        (0.5, 1.0, "holds in part", "toy W4A4, 3 steps: TDQ is not better, 1.00x"),
        (1.0, 1.0, "does not hold", "toy W4A4, 2 steps: TDQ is not better, 1.00x"),
        (2.0, 2.0, "does not hold", "toy W4A4, 2 steps: TDQ is worse, 2.00x"),
    ],
)
def test_the_verdict_is_by_errors_of_samples(toy, studies, ratio, late, verdict, words):
    ledger, learners, search = studies("ledger"), studies("learners"), studies("halving")
    contrasts = studies("contrasts")
    book = ledger.Ledger("fair_lsq", toy.KEYS, TOY)
    images = torch.rand(64, generator=torch.Generator().manual_seed(0)).double() / 100 + 0.01

    def made(arm, steps, seed, judged):
        factor = (late if steps == 3 else ratio) if arm.law == "TDQ" else 1.0
        key = {"model": "toy", "bits": "W4A4", **arm.words(), "steps": steps, "seed": seed}
        loss = valley(arm, steps)
        text = contrasts.packed(images * factor * (1 + seed / 1000))
        errors = {"errors": text, "mean": 0.1, "median": 0.1}
        book.runs.append(key | {"judged": judged, "loss": loss} | (errors if judged else {}))
        return loss

    for law in ("LSQ", "TDQ"):
        for found in search.halving(
            learners.arms_of(law), toy.rungs_of(TOY),
            lambda arm, steps: made(arm, steps, 0, steps >= 3), learners.Arm.neighbours,
        ):  # fmt: skip
            for seed in range(found.steps == 3, 3):
                made(found.best, found.steps, seed, True)
    toy.tell(book)
    assert book.kept["verdict"] == verdict
    assert words in book.kept["measured"]
    assert "1.00x of its loss" in book.kept["measured"]
    assert [row["inside"] for row in book.kept["tables"][1]["rows"]] == ["yes", "yes", "-", "-"]
    book.runs = [run for run in book.runs if run["seed"] != 2]
    toy.tell(book)
    assert book.kept["verdict"] == "not finished"
