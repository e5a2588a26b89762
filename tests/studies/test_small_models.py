"""The small models of the studies: the recipe, the loader, and what is committed."""

import dataclasses
import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tdquant as tdq
from tdquant.errors import ModelError, StorageError
from tests.lab.data.written import write_fashion_mnist

STUDIES = Path(__file__).parents[2] / "studies"
PLANNED = (
    "mlp-cats8", "dit-cats", "unet-robots", "unet-fashion", "score-fashion", "dit-robots",
)  # fmt: skip
COMMITTED = sorted(f.parent.name for f in (STUDIES / "models").glob("*/card.json"))


@pytest.fixture
def small(monkeypatch):
    """The package of the small models, and what trains them."""
    monkeypatch.syspath_prepend(str(STUDIES))
    yield importlib.import_module
    for name in [
        n for n in sys.modules if n.partition(".")[0] in ("small_models", "train_models")
    ]:
        sys.modules.pop(name)


@pytest.fixture
def tiny(small, monkeypatch, tmp_path):
    """Trains a tiny plan by the command, into a folder of the test."""
    recipe = small("train_models")
    package = small("small_models")
    plan = dataclasses.replace(
        recipe.PLANS["mlp-cats8"],
        network=package.plans.own(
            "ScoreMLP", shape=[3, 8, 8], width=16, blocks=1, features=8, spread=0.45
        ),
        steps=3, batch=4, pictures=16,
    )  # fmt: skip
    monkeypatch.setitem(recipe.PLANS, "mlp-cats8", plan)
    monkeypatch.setattr(recipe, "CHECKED", 8)
    for module in (recipe, package):
        monkeypatch.setattr(module, "MODELS", tmp_path / "models")

    def command(*words, out="runs"):
        argv = ["train_models.py", "mlp-cats8", "--out", str(tmp_path / out), *words]
        monkeypatch.setattr(sys, "argv", argv)
        recipe.main()
        return tmp_path / "models" / "mlp-cats8"

    return command


def test_the_recipe_ends_in_a_model_that_loads(tiny, small):
    folder = tiny("--steps", "2")
    card = json.loads((folder / "card.json").read_text())
    assert (folder / "samples.png").exists()
    assert card["training"]["steps"] == 2
    assert card["training"]["loss"] > 0
    assert card["training"]["heldout_loss"] > 0
    assert card["training"]["command"].endswith("mlp-cats8 --steps 2")
    model = small("small_models").load("mlp-cats8")
    assert not model.unet.training
    weights = load_file(folder / "weights.safetensors")
    for name, value in model.unet.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, weights[name].float())


def test_a_longer_run_goes_on_where_it_was(tiny):
    folder = tiny("--steps", "2", out="apart")
    short = load_file(folder / "weights.safetensors")
    tiny("--steps", "2")
    again = load_file(folder / "weights.safetensors")
    assert all(torch.equal(short[k], again[k]) for k in short)
    log = folder.parents[1] / "runs" / "mlp-cats8" / "log.jsonl"
    tiny("--steps", "4")
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [2, 4]


def test_minutes_become_steps_that_a_resumed_run_keeps(tiny, small, monkeypatch):
    monkeypatch.setattr(small("train_models"), "affordable", lambda *given: 3)
    folder = tiny()
    monkeypatch.setattr(small("train_models"), "affordable", lambda *given: pytest.fail("again"))
    assert tiny() == folder
    assert json.loads((folder / "card.json").read_text())["training"]["steps"] == 3


def test_more_minutes_are_more_steps(small):
    recipe = small("train_models")
    package = small("small_models")
    plan = recipe.PLANS["score-fashion"]
    network = package.plans.own("FunnelMLP", shape=[1, 14, 14], widths=[8, 4], features=8)
    plan = dataclasses.replace(plan, network=network, batch=4)
    images = package.StoredImages(torch.zeros(8, 1, 14, 14, dtype=torch.uint8), None, "grey")
    one, many = (recipe.affordable(plan, images, minutes, tries=2) for minutes in (0.1, 10))
    assert 1 <= one < many


def test_changed_weights_and_unknown_names_are_refused(tiny, small):
    folder = tiny("--steps", "1")
    load = small("small_models").load
    with pytest.raises(ModelError, match="one of mlp-cats8"):
        load("unet-robots")
    with open(folder / "weights.safetensors", "ab") as file:
        file.write(b"0")
    with pytest.raises(StorageError, match="the card does not know"):
        load("mlp-cats8")


def test_the_plans_are_those_that_were_announced_and_split_once(small):
    package = small("small_models")
    assert tuple(package.PLANS) == PLANNED
    assert not set(package.DEV) & set(package.HELD_OUT)
    seeds = [plan.seed for plan in package.PLANS.values()]
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("name", PLANNED)
def test_every_plan_can_be_sampled_and_learns_from_noised_batches(small, name):
    package = small("small_models")
    plan = package.PLANS[name]
    torch.manual_seed(0)
    network = package.networks.build(plan.network)
    scheduler = package.noising.make_scheduler(plan.scheduler)
    calls = list(tdq.trajectories(network.eval(), scheduler, 2, plan.shape, steps=3))
    assert [x.shape for x, _ in calls] == [(2, *plan.shape)] * 3
    assert all(x.isfinite().all() for x, _ in calls)
    judge = package.noising.objective(scheduler, plan.spread)
    batch = judge.draw(torch.randn(3, *plan.shape), 1, 0, range(3), "cpu")
    loss, _ = judge(network, batch)
    loss.backward()
    assert all(p.grad is not None for n, p in network.named_parameters() if "embedder" not in n)
    again = judge.draw(batch.target, 1, 0, range(3), "cpu")
    assert torch.equal(batch.t, again.t)
    assert tuple(network.eval()(batch.x_t, batch.t[0])[0].shape) in (plan.shape, (3, *plan.shape))


def exact_denoiser(mean, spread):
    """The best estimate of samples from N(mean, spread^2) at a noise level."""
    return lambda x, s: (spread**2 * x + s**2 * mean) / (spread**2 + s**2)


def test_levels_lead_noise_to_the_data(small):
    scheduler = small("small_models").noising.LevelEuler()
    found = tdq.sample(
        exact_denoiser(0.3, 0.45), scheduler, 4000, (1,), steps=200, batch=4000, progress=False
    )
    assert float(found.mean()) == pytest.approx(0.3, abs=0.03)
    assert float(found.std()) == pytest.approx(0.45, rel=0.05)


def test_a_level_weighs_what_makes_all_levels_count_alike(small):
    """The network's own task: target and weight of the loss have unit variance at each level."""
    levels = small("small_models").noising.Levels(0.45)
    x, noise = torch.randn(2, 4000, 16).unbind(0)
    for normal in (-2.0, 0.0, 2.0):
        batch = levels.noised(0.45 * x, noise, torch.full((4000,), normal))
        best = exact_denoiser(0.0, 0.45)(batch.x_t, batch.t[:, None])
        error = (best - batch.target).square().mean(1) * batch.weight
        assert float(error.mean()) == pytest.approx(1.0, rel=0.05)


def test_the_flow_leads_from_noise_to_samples(small):
    flow = small("small_models").noising.Flow()
    x, noise = torch.randn(2, 5, 3)
    batch = flow.noised(x, noise, torch.linspace(-2, 2, 5))
    u = batch.t[:, None] / 1000
    torch.testing.assert_close(batch.x_t - u * batch.target, x)
    torch.testing.assert_close(batch.x_t + (1 - u) * batch.target, noise)


def test_data_of_a_model_come_in_its_shape(small, tmp_path):
    write_fashion_mnist(tmp_path)
    package = small("small_models")
    for name, count in (("mlp-cats8", 5), ("score-fashion", 3)):
        plan = package.PLANS[name]
        art = package.DATA[plan.data]
        found = art.images("heldout", count, plan.shape[-1], str(tmp_path))
        assert len(found) == count
        assert found[0].shape == plan.shape


@pytest.mark.parametrize("name", COMMITTED)
def test_a_committed_model_is_whole(small, name):
    package = small("small_models")
    model = package.load(name)  # checks the digest
    plan = package.PLANS[name]
    card = model.card
    assert (STUDIES / "models" / name / "weights.safetensors").stat().st_size < 8e6
    assert (STUDIES / "models" / name / "samples.png").stat().st_size < 1e5
    assert model.held_out is (name in package.HELD_OUT)
    assert (card["network"], card["scheduler"]) == (plan.network, plan.scheduler)
    assert card["data"]["attribution"]
    assert card["data"]["licence"]
    x = torch.randn(2, *model.shape)
    with torch.no_grad():
        output = model.unet(x, torch.tensor(3.0))
    assert getattr(output, "sample", output).shape == x.shape
    assert model.objective() is not None
