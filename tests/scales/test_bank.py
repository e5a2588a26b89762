import copy

import pytest
import torch

from tdquant.quantizers import activation_quantizers
from tdquant.scales import BankedScale, ScaleBank, TableScale, bank_tables


def tables(knots, count=3):
    rng = torch.Generator().manual_seed(0)
    made = [TableScale(knots, torch.rand(len(knots), generator=rng) + 0.1) for _ in range(count)]
    return [*made, TableScale(torch.zeros(1), torch.tensor([0.25]))]


INDICES = torch.arange(200.0)
SIGMAS = torch.linspace(0, 1, 33) ** 2


@pytest.mark.parametrize(
    ("knots", "times"),
    [
        (INDICES, torch.tensor([0, 7, 199, 250, -3])),
        (INDICES, torch.tensor([0.5, 17.25, 199.0, 300.0])),
        (SIGMAS, torch.tensor([0.0, 0.3, 0.31640625, 1.0, 2.0])),
        (torch.tensor([0.0]), torch.tensor([3, 4])),
    ],
    ids=["indices", "between indices", "sigmas", "static"],
)
def test_equals_each_table(knots, times):
    scales = tables(knots)
    bank = ScaleBank(scales)
    x = torch.empty(0)
    for t in (times, times[0]):
        found = bank(t)
        assert found.shape == (len(scales), *t.shape)
        for row, scale in zip(found, scales, strict=True):
            assert torch.allclose(row, scale(t, x, None).expand(t.shape), rtol=1e-6, atol=0)
        assert found.dtype == torch.float32


def test_a_model_makes_one_lookup_a_call(frozen, x, monkeypatch):
    banked = copy.deepcopy(frozen)
    bank_tables(q for _, q in activation_quantizers(banked))
    scales = [q.scale for _, q in activation_quantizers(banked)]
    assert all(isinstance(scale, BankedScale) for scale in scales)
    assert len({scale.bank for scale in scales}) == 1
    lookups = []
    forward = ScaleBank.forward
    monkeypatch.setattr(ScaleBank, "forward", lambda s, t: lookups.append(t) or forward(s, t))
    with torch.no_grad():
        for t in (torch.tensor(431), torch.tensor([0, 431, 999]), torch.tensor(10.5)):
            lookups.clear()
            assert torch.equal(banked(x, t), frozen(x, t))
            assert len(lookups) == 1


def test_tables_over_other_times_have_banks_of_their_own():
    class Holder:
        def __init__(self, scale):
            self.scale = scale

    holders = [Holder(s) for s in (*tables(INDICES), *tables(SIGMAS))]
    before = [h.scale for h in holders]
    bank_tables(holders)
    assert len({h.scale.bank for h in holders}) == 2
    x, t = torch.empty(0), torch.tensor(0.5)
    for holder, table in zip(holders, before, strict=True):
        assert torch.allclose(holder.scale(t, x, None), table(t, x, None), rtol=1e-6)


def test_a_cast_keeps_the_steps_in_float32():
    bank = ScaleBank(tables(INDICES)).to(torch.bfloat16)
    assert bank.steps.dtype == bank.knots.dtype == torch.float32
