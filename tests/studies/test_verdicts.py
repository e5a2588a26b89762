"""Verdicts on paired errors: known answers, and how often the intervals hold the truth."""

import importlib
import math
import sys
from pathlib import Path

import pytest
import torch

STUDIES = Path(__file__).parents[2] / "studies"


@pytest.fixture
def verdicts(monkeypatch):
    monkeypatch.syspath_prepend(str(STUDIES))
    yield importlib.import_module("verdicts")
    sys.modules.pop("verdicts", None)


def drawn(ratio, seed, images=64, seeds=3, of_image=0.5, of_seed=0.02, rest=0.3):
    """Errors of an arm and of one that is ``ratio`` times as large, with the scatter given of
    images, of seeds, and of both together; images differ by decades.
    """
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=rng, dtype=torch.float64)

    without = (2 * normal(images) + 0.05 * normal(seeds, images) - 6).exp()
    scatter = of_image * normal(images) + of_seed * normal(seeds, 1) + rest * normal(seeds, images)
    return without * ratio * scatter.exp(), without


@pytest.mark.parametrize(
    ("ratio", "scatter", "verdict"),
    [
        (0.4, {}, "time helps"),
        (2.5, {}, "time hurts"),
        (1.0, {"of_image": 0.02, "of_seed": 0.002, "rest": 0.02}, "time does not help"),
        (1.03, {"of_image": 0.02, "of_seed": 0.002, "rest": 0.02}, "time does not help"),
        (0.985, {"of_image": 0.01, "of_seed": 0.001, "rest": 0.01}, "time does not help"),
        (1.0, {}, "not decided"),
        (0.7, {"of_seed": 0.6}, "not decided"),
    ],
)
def test_verdicts_of_known_ratios(verdicts, ratio, scatter, verdict):
    found = [verdicts.compared(*drawn(ratio, s, **scatter), 200).verdict for s in range(20)]
    assert found.count(verdict) >= 18
    opposite = {"time helps": "time hurts", "time hurts": "time helps"}.get(verdict)
    assert opposite not in found


def test_equal_errors_say_that_time_does_not_help(verdicts):
    errors, _ = drawn(1.0, 0)
    found = verdicts.compared(errors, errors)
    assert found.verdict == "time does not help"
    assert found.ratios["mean"] == verdicts.Ratio(1.0, 1.0, 1.0)


def test_fewer_than_three_seeds_decide_nothing(verdicts):
    errors, without = drawn(0.1, 0, seeds=2)
    assert verdicts.compared(errors, without).verdict == "not decided"
    found = verdicts.compared(errors[:1], without[:1])
    assert found.verdict == "not decided"
    assert found.ratios["geometric"].high < 0.2


def test_a_gain_has_to_exceed_what_another_seed_makes(verdicts):
    errors, without = drawn(0.7, 0, of_image=0.01, of_seed=0.001, rest=0.01)
    assert verdicts.compared(errors, without).verdict == "time helps"
    another = torch.tensor([[0.5], [1.0], [2.0]])  # of both arms alike
    found = verdicts.compared(errors * another, without * another)
    assert found.ratios["geometric"].high < 1
    assert found.threshold == pytest.approx(2.0, rel=0.05)
    assert found.verdict == "not decided"


def test_a_few_images_that_explode_take_a_gain_back(verdicts):
    errors, without = drawn(0.4, 1, of_image=0.1, rest=0.1)
    assert verdicts.compared(errors, without).verdict == "time helps"
    worst = without.mean(0).argmax()
    errors[:, worst] = 4.0
    found = verdicts.compared(errors, without)
    assert found.ratios["geometric"].high < 1
    assert found.ratios["mean"].value > 1
    assert found.verdict == "not decided"


@pytest.mark.parametrize(
    "scatter",
    [
        {"of_image": 0.8, "of_seed": 0.0, "rest": 0.2},
        {"of_image": 0.3, "of_seed": 0.1, "rest": 0.3},
        {"of_image": 0.1, "of_seed": 0.5, "rest": 0.1},
    ],
    ids=["images", "both", "seeds"],
)
def test_intervals_hold_the_truth_as_often_as_they_say(verdicts, monkeypatch, scatter):
    ratio, count, held = 0.7, 150, 0
    for seed in range(count):
        found = verdicts.compared(*drawn(ratio, seed, **scatter), 200)
        interval = found.ratios["geometric"]
        held += interval.low <= ratio <= interval.high
    # Intervals may err on the wide side.
    assert held / count >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / count)
