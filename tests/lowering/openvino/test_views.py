"""What is written in place through views of one tensor is followed by a trace."""

import pytest
import torch
from torch import nn

from tdquant.lowering.openvino.tracing import trace
from tdquant.lowering.openvino.views import FreshViews

ov = pytest.importorskip("openvino")


class TwoSlices(nn.Module):
    """The split rotary embedding of LTX-2: both slices are taken before either is written to."""

    def forward(self, x):
        out = x * 2
        first, second = out[..., :2], out[..., 2:]
        first.addcmul_(x[..., 2:], x[..., 2:])
        second.addcmul_(x[..., :2], -x[..., :2])
        return out.reshape(out.shape[0], -1)


class ReadAfterWrite(nn.Module):
    def forward(self, x):
        whole = x * 2
        part = whole[..., :2]
        whole += 5.0
        return part * x[..., 2:]


class Nested(nn.Module):
    def forward(self, x):
        whole = x * 2
        part, row = whole[..., :2][:, 1:], whole[0]
        whole[..., 0] = 3.0
        part += 1
        row *= 2
        return part + whole.sum() + row[..., 1:].sum()


class Chunks(nn.Module):
    def forward(self, x):
        whole = x * 2
        first, second = whole.chunk(2, -1)
        whole[..., 1:] = 3.0
        return first * second


MODULES = [TwoSlices, ReadAfterWrite, Nested, Chunks]


@pytest.mark.parametrize("module", MODULES)
def test_a_graph_follows_what_is_written_to_views(module):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 5, 4)
    graph = trace(module(), [x])
    (found,) = ov.Core().compile_model(graph, "CPU")([x.numpy()]).values()
    wanted = module()(x)
    assert (torch.from_numpy(found) - wanted).abs().max() <= 1e-6 * wanted.abs().max()


@pytest.mark.parametrize("module", MODULES)
def test_in_torch_nothing_changes(module):
    x = torch.randn(2, 3, 5, 4)
    with FreshViews():
        found = module()(x)
    assert torch.equal(found, module()(x))


def test_views_that_nobody_holds_are_forgotten():
    with FreshViews() as mode:
        whole = torch.zeros(4)
        part = whole[:2]
        assert len(mode._views) == 1
        del part
    assert len(mode._views) == 0
