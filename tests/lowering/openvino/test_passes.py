"""Every rewrite of a graph: what it is for is done, and what is computed stays."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tdquant as tdq
from tdquant.lowering.exporters import about, prepared
from tdquant.lowering.openvino import passes as passes
from tdquant.lowering.openvino.exporter import convert
from tdquant.lowering.openvino.time import split_time
from tests.lowering.models import One, frozen

ov = pytest.importorskip("openvino")

OPTIONS = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}


def graph_of(module, *inputs):
    """The graph of a module, of static shapes, its inputs named a, b, ..."""
    graph = ov.convert_model(module.eval(), example_input=tuple(inputs))
    for port, name in zip(graph.inputs, "abc", strict=False):
        port.get_tensor().set_names({name})
    graph.reshape({i: list(x.shape) for i, x in enumerate(inputs)})
    return graph


def run(graph, *inputs):
    found = ov.Core().compile_model(graph, "CPU", OPTIONS)([x.numpy() for x in inputs])
    return [torch.from_numpy(np.array(y)) for y in found.values()]


def kinds(graph):
    return [node.get_type_name() for node in graph.get_ops()]


def check(graph, module, *inputs, tolerance=1e-5):
    with torch.no_grad():
        y = module(*inputs)
    for found, wanted in zip(run(graph, *inputs), y if type(y) is tuple else (y,), strict=True):
        assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()


def norm(groups, channels, **options):
    made = nn.GroupNorm(groups, channels, **options)
    nn.init.normal_(made.weight)
    nn.init.normal_(made.bias)
    return made


@pytest.mark.parametrize("shape", [(2, 12, 7, 5), (2, 12, 9), (1, 12, 3, 4, 5)])
@pytest.mark.parametrize("groups", [1, 3, 12])
def test_norms_are_sums_by_channel(shape, groups):
    torch.manual_seed(0)
    module, x = norm(groups, 12, eps=1e-3), torch.randn(shape)
    graph = graph_of(module, x)
    passes.decompose_norms(graph)
    assert not {"GroupNormalization", "MVN"} & set(kinds(graph))
    check(graph, module, x)
    check(graph, module, 50 + x, tolerance=1e-3)  # a mean of 50 deviations costs digits


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_norms_of_equal_numbers_are_their_bias(value):
    module, x = norm(3, 12), torch.full((2, 12, 8, 8), value)
    graph = graph_of(module, x)
    passes.decompose_norms(graph)
    (y,) = run(graph, x)
    assert torch.allclose(y, module.bias[:, None, None].expand_as(y), atol=1e-3)


class Block(nn.Module):
    """Attention over the positions of an image, as diffusers lays it out."""

    def __init__(self, channels=12, heads=3):
        super().__init__()
        self.norm, self.heads = norm(3, channels), heads
        self.conv = nn.Conv2d(channels, channels, 1)
        self.qkv, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x):
        b, c, h, w = x.shape
        x = self.conv(x)
        rows = x.view(b, c, h * w).transpose(1, 2)
        rows = self.norm(rows.transpose(1, 2)).transpose(1, 2)
        q, k, v = (
            part.view(b, -1, self.heads, c // self.heads).transpose(1, 2)
            for part in self.qkv(rows).chunk(3, -1)
        )
        y = F.scaled_dot_product_attention(q, k, v)
        y = self.out(y.transpose(1, 2).reshape(b, -1, c))
        return y.transpose(-1, -2).reshape(b, c, h, w) + x


def test_images_are_rows_without_being_moved():
    torch.manual_seed(0)
    module, x = Block(), torch.randn(2, 12, 6, 5)
    graph = graph_of(module, x)
    passes.optimize(graph, "t")
    assert "ScaledDotProductAttention" not in kinds(graph)
    check(graph, module, x)
    turns = [
        list(node.input_value(1).get_node().get_data())
        for node in graph.get_ordered_ops()
        if node.get_type_name() == "Transpose" and len(node.get_input_shape(0)) != 4
    ]
    assert turns == []  # of three dimensions none is left: those move memory


class Kept(nn.Module):
    """Attention whose result is zero where a token is masked, as in LongCat's audio model."""

    def __init__(self, operation):
        super().__init__()
        self.operation = operation

    def forward(self, x, keep):
        heads = x.unflatten(2, (2, -1)).transpose(1, 2)
        y = F.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2)
        return self.operation(y, (keep > 0).float()[:, :, None, None] + 1).flatten(2)


@pytest.mark.parametrize(
    "operation",
    [torch.mul, torch.sub, torch.div, lambda y, k: torch.div(k, y), lambda y, k: (y * k + k) * k],
)
def test_attention_is_scaled_before_its_heads_are_transposed(operation):
    torch.manual_seed(0)
    module, x, keep = Kept(operation), torch.randn(2, 5, 12), torch.randn(2, 5)
    graph = graph_of(module, x, keep)
    passes.optimize(graph, "t")
    behind = [
        user.get_node().get_type_name()
        for node in graph.get_ops()
        if node.get_type_name() == "Transpose"
        and node.input_value(0).get_node().get_type_name() == "MatMul"
        for user in node.output(0).get_target_inputs()
    ]
    assert not {"Multiply", "Subtract", "Divide"} & set(behind)  # which ends the process
    check(graph, module, x, keep)


@pytest.mark.parametrize("options", [{"attn_mask": torch.randn(5, 5)}, {"is_causal": True}])
def test_attention_with_a_mask_stays_right(options):
    class Masked(nn.Module):
        def forward(self, q, k, v):
            return F.scaled_dot_product_attention(q, k, v, **options)

    inputs = [torch.randn(2, 3, 5, 4) for _ in range(3)]
    graph = graph_of(Masked(), *inputs)
    passes.optimize(graph, "t")
    check(graph, Masked(), *inputs)


@pytest.mark.parametrize(("sizes", "left"), [((2, 3), 0), ((1, 4), 1)])
def test_splits_of_a_concatenation_are_its_parts(sizes, left):
    class Joined(nn.Module):
        def forward(self, a, b):
            first, second = torch.cat([a, b], 1).split(sizes, 1)
            return first * 2, second + 1

    a, b = torch.randn(2, 2, 3), torch.randn(2, 3, 3)
    graph = graph_of(Joined(), a, b)
    passes.optimize(graph, "t")
    assert kinds(graph).count("VariadicSplit") == left
    check(graph, Joined(), a, b)


class Timed(nn.Module):
    """Blocks with a projection each of one embedding of the timestep."""

    def __init__(self, bias=True):
        super().__init__()
        self.embed = nn.Linear(1, 16)
        self.projections = nn.ModuleList(nn.Linear(16, n, bias=bias) for n in (3, 3, 3))
        self.other = nn.Linear(3, 3)

    def forward(self, a, b):
        embedding = F.silu(self.embed(b[:, None] / 1000))
        for projection in self.projections:
            a = self.other(a) + projection(F.silu(embedding))
        return a


@pytest.mark.parametrize("bias", [True, False])
def test_products_of_the_timestep_become_one(bias):
    torch.manual_seed(0)
    module, inputs = Timed(bias), (torch.randn(2, 3), torch.tensor([3.0, 700.0]))
    graph = graph_of(module, *inputs)
    before = kinds(graph).count("MatMul")
    passes.optimize(graph, "b")
    assert kinds(graph).count("MatMul") == before - 2
    check(graph, module, *inputs)
    graph = graph_of(module, *inputs)
    passes.optimize(graph, "a")  # with another timestep none is of the timestep alone
    assert kinds(graph).count("MatMul") == before


def test_what_depends_on_the_timestep_alone_is_split_off():
    torch.manual_seed(0)
    module, inputs = Timed(), (torch.randn(2, 3), torch.tensor([3.0, 700.0]))
    graph = graph_of(module, *inputs)
    passes.optimize(graph, "b")
    (whole,) = run(graph, *inputs)
    time = split_time(graph, "b")
    assert [port.any_name for port in time.inputs] == ["b"]
    names = [port.any_name for port in graph.inputs]
    assert names == ["a", *(f"time.{i}" for i in range(len(names) - 1))]
    assert kinds(graph).count("MatMul") == 3
    (y,) = run(graph, inputs[0], *run(time, inputs[1]))
    assert torch.equal(y, whole)


@pytest.mark.parametrize("kind", ["sample", "both", "output"])
def test_a_timestep_that_meets_the_sample_is_handed_over(kind):
    class Direct(nn.Module):
        def forward(self, a, b):
            if kind == "output":
                return a + 1, b * 2
            y = a * b[:, None]
            return y + torch.sin(b)[:, None] if kind == "both" else y

    inputs = (torch.randn(2, 3), torch.tensor([3.0, 700.0]))
    graph = graph_of(Direct(), *inputs)
    time = split_time(graph, "b")
    parts = run(time, inputs[1]) if time else []
    names = [name for port in graph.inputs for name in port.get_names()]
    own = [inputs[1]] if "b" in names else []
    assert bool(parts) == (kind != "sample")
    assert bool(own) == (kind != "output")
    found = run(graph, inputs[0], *own, *parts)
    y = Direct()(*inputs)
    for one, other in zip(found, y if type(y) is tuple else (y,), strict=True):
        assert torch.allclose(one, other)


def test_sizes_that_depend_on_values_keep_a_graph_whole():
    class Sized(nn.Module):
        def forward(self, a, b):
            count = b.sum().long()
            return a + torch.arange(count)[None, :3].float() + b[:, None]

    module, inputs = Sized(), (torch.randn(2, 3), torch.tensor([3.0, 7.0]))
    graph = graph_of(module, *inputs)
    assert split_time(graph, "b") is None
    check(graph, module, *inputs)


def test_a_session_computes_it_once_a_timestep(tmp_path):
    model = frozen(One(nn.Conv2d(6, 6, 3, padding=1)), 4)
    x = torch.randn(2, 6, 8, 8)
    session = tdq.open_session(tdq.export(model, tmp_path / "m.xml", (x, 3)))
    session(x, 3)
    (compiled,) = session.engine._compiled.values()
    calls, time = [], compiled.time
    compiled.time = lambda inputs: calls.append(inputs["t"].tolist()) or time(inputs)
    for t in (3, 5, 3, torch.tensor([3, 5]), 5):
        assert torch.allclose(session(x, t), model(x, torch.as_tensor(t)), rtol=1e-4, atol=1e-4)
    assert calls == [[5.0, 5.0], [3.0, 5.0]]


@pytest.mark.parametrize("side", [8, 20])
def test_zero_points_leave_small_images(side):
    model = frozen(One(nn.Conv2d(6, 6, 3, padding=1)), 8)
    x = torch.randn(2, 6, side, side)
    copied, call = prepared(model, (x, 3))
    graph = convert(copied, call, about(copied))
    (levels,) = (node for node in graph.get_ops() if node.get_type_name() == "FakeQuantize")
    lowest = float(levels.input_value(3).get_node().get_data().reshape(()))
    assert lowest == (0 if side == 8 else -128)
