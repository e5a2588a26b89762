import copy

import pytest
import torch

import tdquant as tdq
from tdquant.errors import TrainingError
from tdquant.training import Callback, DiffusionObjective, Optimization
from tdquant.training.features import FeatureMatch
from tests.denoisers import Mixed
from tests.training.runs import Noise, run, scheduler


def test_equal_models_match_exactly_and_others_do_not(x):
    net = Mixed().eval()
    match = FeatureMatch(net, ["grouped", "re*"])
    assert match.paths == ["grouped", "reflect"]
    with match.listen(net) as taught:
        net(x, torch.tensor(3))
    with match.listen(copy.deepcopy(net)) as learned:
        net(x, torch.tensor(3))
    assert [t.shape[1] for t in taught] == [12, 12]
    assert learned == []  # the copy was not called
    with match.listen(other := Mixed(seed=1)) as learned:
        other(x, torch.tensor(3))
    assert match.distance(taught, taught) == 0
    assert match.distance(learned, taught) > 0.1


def test_no_hook_stays(x):
    net = Mixed()
    with FeatureMatch(net, ["linear"]).listen(net) as heard:
        net(x, torch.tensor(3))
    net(x, torch.tensor(3))
    assert len(heard) == 1
    assert not net.linear._forward_hooks


def test_idle_patterns_are_named():
    with pytest.raises(TrainingError, match=r"nowhere\.\*, never"):
        FeatureMatch(Mixed(), ["linear", "nowhere.*", "never"])


def test_training_with_features_brings_them_closer():
    objective = DiffusionObjective(scheduler(), teacher=Mixed(), features=["reflect", "up"])
    seen = []

    class Keep(Callback):
        def after_step(self, run, record):
            seen.append(record["features"])

    tdq.train(
        Mixed(seed=1), Noise(), objective=objective, steps=60, batch=8, rate=3e-3,
        optimization=Optimization(warmup=0), callbacks=[Keep()], progress=False,
    )  # fmt: skip
    assert sum(seen[-10:]) < 0.7 * sum(seen[:10])


def test_an_objective_and_its_options_exclude_each_other():
    with pytest.raises(TrainingError, match="objective= and loss="):
        run(objective=DiffusionObjective(scheduler()), loss="l1")
