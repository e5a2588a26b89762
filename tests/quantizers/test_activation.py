import pytest
import torch
from torch import nn

from tdquant.clock import Clock
from tdquant.errors import CalibrationError
from tdquant.numerics.fake_quantize import fake_quantize
from tdquant.numerics.grid import Grid
from tdquant.quantizers import ActivationQuantizer
from tdquant.scales import PendingScale, TableScale


class Root(nn.Module):
    def __init__(self, scale, grid=None):
        super().__init__()
        self.clock = Clock(self)
        self.q = ActivationQuantizer(grid or Grid.signed(4), scale, self.clock)

    def forward(self, x, t):
        return self.q(x)


TABLE = TableScale(torch.arange(4.0), torch.tensor([0.1, 0.2, 0.4, 0.8]))


def test_mixed_timesteps_equal_one_at_a_time():
    root, x, t = Root(TABLE), torch.randn(4, 3, 5), torch.tensor([3, 0, 2, 0])
    whole = root(x, t)
    for i in range(4):
        assert torch.equal(whole[i : i + 1], root(x[i : i + 1], t[i]))
        assert torch.equal(whole[i], fake_quantize(x[i], TABLE.table[t[i]], -8, 7))


def test_zero_point_travels_in_the_state_dict():
    first = Root(TABLE, Grid.affine(4, 3))
    second = Root(TABLE, Grid.affine(4, 0))
    state = first.state_dict()
    assert state["q.zero_point"].item() == 3
    second.load_state_dict(state)
    assert second.q.grid.zero_point == 3
    del state["q.zero_point"]
    with pytest.raises(RuntimeError, match=r"Missing.*zero_point"):
        second.load_state_dict(state)


def test_pending_scale_names_the_layer():
    with pytest.raises(CalibrationError, match=r"down\.conv"):
        Root(PendingScale("temporal", "down.conv"))(torch.ones(1, 2), 0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_casting_the_model_leaves_tables_in_float32(dtype):
    root = Root(TableScale(torch.arange(1000.0), torch.rand(1000) + 0.1))
    table = root.q.scale.table.detach().clone()
    root.to(dtype)
    assert root.q.scale.table.dtype == root.q.scale.knots.dtype == torch.float32
    assert torch.equal(root.q.scale.table, table)
    assert root(torch.randn(2, 3).to(dtype), 5).dtype == dtype
