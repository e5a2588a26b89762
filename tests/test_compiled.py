"""torch.compile and torch.export: one graph without a break, and the timestep stays an input."""

import io

import pytest
import torch

import tdquant as tdq
from tdquant.lowering.cuda import lower_on
from tests.conftest import quantized
from tests.denoisers import Mixed, calls

TIMES = [torch.tensor(5), torch.tensor(900), torch.tensor([1, 2, 990]), torch.tensor(3.5), 7]

KINDS = {
    "live": lambda live, frozen: live,
    "frozen": lambda live, frozen: frozen,
    "reference": lambda live, frozen: tdq.compile(frozen, "reference"),
    "cuda": lambda live, frozen: lower_on(frozen, "cpu"),
    "corrected": lambda live, frozen: corrected(frozen),
}


def corrected(frozen):
    """The frozen model with a gain and a bias behind its output."""
    plain, shift = Mixed().eval(), torch.linspace(-1, 1, 6).reshape(-1, 1, 1)
    return tdq.correct(frozen, lambda x, t: plain(x, t) + shift, list(calls()), progress=False)


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()


@pytest.fixture(params=KINDS)
def model(request, calibrated, frozen):
    return KINDS[request.param](calibrated.eval(), frozen)


class Graphs(list):
    """A compiler that keeps every graph that it is given and runs it as it is."""

    def __call__(self, graph, inputs):
        self.append(graph)
        return graph.forward


def compiles(model, x, times):
    """Compares a model compiled as one graph with itself; gives its graphs."""
    graphs = Graphs()

    def whole(x, t):
        return model(x, t)

    compiled = torch.compile(whole, fullgraph=True, backend=graphs)
    with torch.no_grad():
        expected = [model(x, t) for t in times]
        for t, y in zip(times, expected, strict=True):
            assert torch.equal(compiled(x, t), y)
    return graphs


def test_one_graph_for_every_time(model, x):
    assert len(compiles(model, x, TIMES[:2])) == 1
    compiles(model, x, TIMES[2:3])


@pytest.mark.parametrize("scale", ["dynamic", "static"])
def test_other_scales(scale, x):
    compiles(tdq.freeze(quantized(scale=scale)), x, TIMES)


def test_the_module_itself_compiles(frozen, x):
    compiled = torch.compile(frozen, fullgraph=True, backend="eager")
    with torch.no_grad():
        for t in TIMES:
            assert torch.equal(compiled(x, t), frozen(x, t))


@torch.no_grad()
def test_a_compiled_call_leaves_nothing_behind(frozen, x):
    graphs, last = Graphs(), frozen.tdq.clock.last
    compiled = torch.compile(lambda x, t: frozen(x, t), fullgraph=True, backend=graphs)
    for t in (5, 6, 7):
        compiled(x, torch.tensor(t))
    assert len(graphs) == 1
    assert not frozen.tdq.clock._now
    assert frozen.tdq.clock.last is last


@torch.no_grad()
def test_export_keeps_the_timestep_an_input(model, x):
    for example, times in ((TIMES[0], TIMES[:2]), (torch.tensor([3, 4, 5]), TIMES[2:3])):
        program = torch.export.export(model, (x, example), strict=False)
        for t in times:
            assert torch.equal(program.module()(x, t), model(x, t))
    assert type(model.tdq.clock.last) is torch.Tensor  # no tensor of the trace


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects")
@torch.no_grad()
def test_an_exported_model_looks_its_scales_up_once(frozen, x, strict, warm):
    model = lower_on(frozen, "cpu")
    if warm:
        model(x, TIMES[1])
    program = torch.export.export(model, (x, TIMES[0]), strict=strict)
    lookups = [node for node in program.graph.nodes if "index_select" in str(node.target)]
    assert len(lookups) == 1
    assert torch.equal(program.module()(x, TIMES[1]), model(x, TIMES[1]))


@torch.no_grad()
def test_an_exported_file_serves_other_batches(frozen, x):
    batch = torch.export.Dim("batch", min=2)
    shapes = {"x": {0: batch}, "timestep": {0: batch}}
    program = torch.export.export(frozen, (x, torch.tensor([1, 2, 3])), dynamic_shapes=shapes)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    opened = torch.export.load(file).module()
    x, t = x.repeat(2, 1, 1, 1)[:5], torch.tensor([0, 999, 500, 3, 4])
    assert torch.allclose(opened(x, t), frozen(x, t), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["frozen", "cuda"])
@torch.no_grad()
def test_inductor(calibrated, frozen, x, kind):
    model = KINDS[kind](calibrated, frozen)
    compiled = torch.compile(model, fullgraph=True)
    for t in TIMES[:4]:
        y = model(x, t)
        assert (compiled(x, t) - y).abs().median() <= 1e-5 * y.abs().max()


@pytest.mark.slow
@torch.no_grad()
def test_the_embedded_model():
    pipe = tdq.models.load_embedded("cats-ddpm")
    recipe = tdq.Recipe(weights=4, activations=8, attention=8)
    model = tdq.quantize(pipe.unet, recipe)
    calls = tdq.trajectories(model, pipe.scheduler, 2, pipe.shape, steps=3)
    tdq.calibrate(model, calls, progress=False)
    frozen, x = tdq.freeze(model), torch.randn(2, *pipe.shape)
    for kind in (model, frozen, lower_on(frozen, "cpu")):
        torch._dynamo.reset()
        assert len(compiles(kind, x, TIMES[:2])) == 1
    program = torch.export.export(frozen, (x, TIMES[0])).module()
    for t in TIMES[:2]:
        assert torch.equal(program(x, t), frozen(x, t))


@pytest.mark.slow
def test_a_compiled_model_learns_as_an_eager_one(x):
    model = quantized(weights=4, activations=6).train()
    grads = {}
    for name in ("eager", "compiled"):
        run = model if name == "eager" else torch.compile(model, backend="aot_eager")
        model.zero_grad()
        run(x, torch.tensor([3, 4, 5])).square().mean().backward()
        grads[name] = {n: p.grad.clone() for n, p in model.named_parameters()}
    for name, grad in grads["eager"].items():
        assert torch.allclose(grad, grads["compiled"][name], rtol=1e-3, atol=1e-6), name
