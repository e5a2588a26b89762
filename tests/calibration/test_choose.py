import torch

from tdquant.calibration.candidates import Candidate
from tdquant.calibration.choose import JUDGED, STATIC, WHOLE, list_choices, time_weights
from tdquant.calibration.concatenations import Concatenation
from tdquant.calibration.judge import Judgement
from tdquant.numerics.grid import Grid
from tdquant.scales import TableScale

GRID = Grid.signed(4)
TWO, ONE = torch.tensor([0.0, 999.0]), torch.zeros(1)


def candidates():
    out = []
    for estimator in ("mse", "minmax"):
        out.append(Candidate(estimator, TableScale(TWO, torch.ones(2)), GRID))
    for estimator in ("mse", "minmax"):
        out.append(Candidate(estimator, TableScale(ONE, torch.ones(1)), GRID))
    return out


def choose(errors, wanted="auto", margin=0.1):
    judgement = Judgement(torch.zeros(1), {"a": torch.tensor([errors]).sqrt()})
    return {
        k: v["a"]
        for k, v in list_choices({"a": wanted}, {"a": candidates()}, judgement, margin).items()
    }


def test_auto_is_temporal_only_beyond_the_margin():
    assert choose([0.85, 9.0, 1.0, 9.0])[JUDGED] == 0
    assert choose([0.95, 9.0, 1.0, 9.0])[JUDGED] == 2
    assert choose([0.95, 9.0, 1.0, 9.0], margin=0.01)[JUDGED] == 0


def test_forced_kinds():
    assert choose([0.1, 0.1, 1.0, 0.9], "static")[JUDGED] == 3
    assert choose([0.99, 2.0, 1.0, 2.0], "temporal")[JUDGED] == 0
    # A flat curve is a temporal scale too: forcing the kind never costs error.
    assert choose([2.0, 2.0, 1.0, 2.0], "temporal")[JUDGED] == 2


def test_one_choice_for_each_estimator_alone():
    found = choose([0.1, 0.5, 1.0, 9.0])
    assert found == {JUDGED: 0, "mse everywhere": 0, "minmax everywhere": 1, STATIC: 2}


def test_time_weights_follow_the_error():
    times = torch.arange(1000.0)
    error = torch.where(times < 500, 1.0, 9.0)[:, None]
    w = time_weights(Judgement(times, {"a": error.sqrt()}), "a", 0, torch.arange(1000.0))
    assert w.shape == (1000,)
    assert (w > 0).all()
    assert 5 < w[900] / w[100] < 9
    flat = time_weights(Judgement(times, {"a": 0 * error}), "a", 0, times)
    assert (flat == 1).all()


def choose_split(whole, first, second, margin=0.1):
    """Choices for one layer over a concatenation, by the effects of one static candidate each."""
    names = ["a.input_quantizer", "a.parts.0.input_quantizer", "a.parts.1.input_quantizer"]
    effects = {
        n: torch.tensor(e)[:, None] for n, e in zip(names, (whole, first, second), strict=True)
    }
    flat = [Candidate("mse", TableScale(ONE, torch.ones(1)), GRID)]
    return list_choices(
        {names[0]: "static"},
        dict.fromkeys(names, flat),
        Judgement(torch.zeros(len(whole)), effects),
        margin,
        {names[0]: Concatenation(-3, (2, 3))},
    )


def test_a_layer_is_split_where_its_parts_together_do_less():
    found = choose_split([1.0, -1.0], [0.3, -0.3], [0.3, -0.3])
    assert set(found[JUDGED]) == {"a.parts.0.input_quantizer", "a.parts.1.input_quantizer"}
    assert set(found[WHOLE]) == {"a.input_quantizer"}
    # Each part is better than the whole, but their errors agree in sign and add up.
    found = choose_split([1.0, -1.0], [0.6, -0.6], [0.6, -0.6])
    assert set(found[JUDGED]) == {"a.input_quantizer"}
    assert WHOLE not in found
    # Better, but by less than the margin.
    assert WHOLE not in choose_split([1.0, -1.0], [0.97, 0.0], [0.0, -0.97])
    assert WHOLE in choose_split([1.0, -1.0], [0.97, 0.0], [0.0, -0.97], margin=0.01)
