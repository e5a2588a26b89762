"""Gradient checkpointing by anybody recomputes with the time and the steps of its own call."""

import copy
import gc
import threading
from functools import partial

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    checkpoint_wrapper as wrapper,
)
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import tdquant as tdq
from tdquant.clock import clock_of
from tdquant.errors import ClockError


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.GroupNorm(2, 8)
        self.first = nn.Conv2d(8, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 1)

    def forward(self, h):
        h = self.first(nn.functional.silu(self.norm(h)))
        return h + self.second(nn.functional.dropout(h, 0.1, self.training))


class Chain(nn.Module):
    """Runs its blocks by ``run(block, h)``."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.run = call
        self.conv_in = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(Block(), Block())
        self.conv_out = nn.Conv2d(8, 3, 3, padding=1)
        self.features = None

    def forward(self, x, timestep):
        times = torch.as_tensor(timestep, dtype=torch.float32).reshape(-1, 1, 1, 1)
        h = self.conv_in(x * (1 + times / 300))
        for block in self.blocks:
            h = self.run(block, h)
        self.features = h
        return self.conv_out(h)


def call(block, h):
    return block(h)


class Stored(torch.autograd.Function):
    """As latent-diffusion's own checkpoint does: inputs are attributes of the context."""

    @staticmethod
    def forward(ctx, function, x):
        ctx.function, ctx.x, ctx.random = function, x, torch.get_rng_state()
        with torch.no_grad():
            return function(x)

    @staticmethod
    def backward(ctx, grad):
        x = ctx.x.detach().requires_grad_()
        with torch.enable_grad(), torch.random.fork_rng():
            torch.set_rng_state(ctx.random)
            y = ctx.function(x)
        torch.autograd.backward(y, grad)
        return None, x.grad


def offloaded(block, h):
    with torch.autograd.graph.save_on_cpu():
        return recorded(block, h)


reentrant = partial(checkpoint, use_reentrant=True)
recorded = partial(checkpoint, use_reentrant=False)
RUNS = {
    "reentrant": reentrant,
    "recorded": recorded,
    "stored": Stored.apply,
    "offloaded": offloaded,
    "wrapped": lambda block, h: wrapper(block, CheckpointImpl.NO_REENTRANT)(h),
    "recorded in recorded": lambda block, h: recorded(lambda h: recorded(block, h * 1), h),
    "recorded in reentrant": lambda block, h: reentrant(lambda h: recorded(block, h * 1), h),
    "reentrant in reentrant": lambda block, h: reentrant(lambda h: reentrant(block, h * 1), h),
    "reentrant in recorded": lambda block, h: recorded(lambda h: reentrant(block, h * 1), h),
}
MIXED, ONE = torch.tensor([3, 500, 900]), torch.tensor(20)


@pytest.fixture(scope="module")
def model():
    model = Chain()
    tdq.quantize(model, tdq.Recipe(activations=5, scale="temporal", temporal={"dropout": 0.3}))
    batches = [(torch.randn(4, 3, 8, 8), t) for t in range(0, 999, 111)]
    return tdq.calibrate(model, batches, progress=False).train()


@pytest.fixture
def x():
    return torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def once(model, x):
    model(x, MIXED).square().sum().backward()


def accumulated(model, x):
    """Two calls, another one, and one backward pass of the first two."""
    first, second = model(x, MIXED), model(x, ONE)
    model(x, 700)
    (first.square().sum() + second.sum()).backward()


def other_order(model, x):
    """As a generator and a discriminator: the pass of the first call after that of the second."""
    first, second = model(x, MIXED), model(x, ONE)
    second.square().sum().backward()
    model(x, 5)
    first.square().sum().backward()


def chained(model, x):
    """A call on what another one returned, as in losses on samples."""
    model(x - 0.1 * model(x, 800), 400).square().sum().backward()


def of_features(model, x):
    """A loss of what hooks see; the output is dropped."""
    model(x, MIXED)
    features = model.features
    model(x, ONE)
    gc.collect()
    features.square().sum().backward()


def twice(model, x):
    loss = model(x, MIXED).square().sum()
    loss.backward(retain_graph=True)
    model(x, ONE)
    loss.backward()


LOOPS = [once, accumulated, other_order, chained, of_features, twice]


def gradients(model, loop, x):
    """Gradients of a copy of the model, and the steps that it has left behind."""
    model = copy.deepcopy(model)
    torch.manual_seed(2)
    loop(model, x)
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module")
def expected(model):
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return {loop: gradients(model, loop, x) for loop in LOOPS}


def same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert torch.allclose(found[name], gradient, rtol=1e-5, atol=1e-6), name


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("run", RUNS)
def test_gradients_are_those_without_checkpointing(run, loop, model, x, expected):
    checkpointed = copy.deepcopy(model)
    checkpointed.run = RUNS[run]
    same(gradients(checkpointed, loop, x), expected[loop])


def test_a_sequence(model, x, expected):
    checkpointed = copy.deepcopy(model)
    checkpointed.blocks = nn.Sequential(checkpointed.blocks)
    checkpointed.run = lambda blocks, h: checkpoint_sequential(blocks, 2, h, use_reentrant=False)
    found = gradients(checkpointed, accumulated, x)
    same({n.replace("blocks.0.", "blocks."): g for n, g in found.items()}, expected[accumulated])


def test_the_whole_model(model, x, expected):
    found = gradients(
        model, lambda m, x: recorded(m, x, MIXED).square().sum().backward(), x.requires_grad_()
    )
    same(found, expected[once])


def test_a_frozen_model_with_learned_inputs(model, x):
    frozen, found = tdq.freeze(model), []
    for run in (call, reentrant, recorded):
        frozen.run = run
        given = x.clone().requires_grad_()
        accumulated(frozen, given)
        found.append(given.grad)
    assert torch.allclose(found[1], found[0])
    assert torch.allclose(found[2], found[0])


@pytest.mark.parametrize("run", ["reentrant", "recorded", "stored"])
def test_threads_that_share_a_model(run, model, x):
    """Each runs calls and backward passes of its own time; the numbers of their nodes overlap."""
    shared = copy.deepcopy(model).eval()  # random numbers are the process's
    times = [10, 350, 700, 990]
    wanted = [pulled(copy.deepcopy(shared), x, t)[1]() for t in times]
    shared.run = RUNS[run]
    found = in_threads(lambda t: [pulled(shared, x, t)[1]() for _ in range(5)][-1], times)
    for a, b in zip(found, wanted, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("run", ["reentrant", "recorded"])
def test_backward_in_another_thread_than_the_call(run, model, x):
    shared = copy.deepcopy(model).eval()
    times = [10, 350, 700, 990]
    wanted = [pulled(copy.deepcopy(shared), x, t)[1]() for t in times]
    shared.run = RUNS[run]
    calls = in_threads(lambda t: pulled(shared, x, t), times)
    for (_, pull), gradient in zip(calls, wanted, strict=True):
        assert torch.allclose(pull(), gradient, rtol=1e-5, atol=1e-6)


def pulled(model, x, t):
    """The output of a call, and a function that returns the gradient of its input."""
    given = x.clone().requires_grad_()
    y = model(given, t)

    def pull():
        y.square().sum().backward()
        return given.grad

    return y, pull


def in_threads(work, items):
    found, together = [None] * len(items), threading.Barrier(len(items))

    def run(i, item):
        together.wait()
        found[i] = work(item)

    threads = [threading.Thread(target=run, args=a) for a in enumerate(items)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_a_part_of_the_model(model, x):
    part, found = copy.deepcopy(model).eval(), []
    x0, x = x, torch.randn(3, 8, 8, 8)
    for run in (call, recorded):
        part.zero_grad()
        with clock_of(part).at(500):
            y = run(part.blocks[0], x)
        part(x0, 3)
        y.sum().backward()
        found.append(part.blocks[0].first.weight.grad.clone())
    assert torch.equal(*found)
    with pytest.raises(ClockError, match="no timestep"):
        recorded(part.blocks[0], x)


def test_nothing_is_kept_of_calls_that_are_gone(model, x):
    model = copy.deepcopy(model)
    model.run = recorded
    for _ in range(3):
        model(x, 3).sum().backward()
    model.features = None
    gc.collect()
    changes = clock_of(model)._timeline._changes
    assert not any(c.value and c.value() for of_thread in changes.values() for c in of_thread)


def test_compiled_blocks_keep_the_call_by_a_context(model, x):
    model, found = copy.deepcopy(model).eval(), []
    for run in (call, partial(recorded, context_fn=clock_of(model).preserve)):
        model.zero_grad()
        model.run = run
        for block in model.blocks:
            block.compile(backend="eager")
        accumulated(model, x)
        found.append({n: p.grad.clone() for n, p in model.named_parameters() if "network" in n})
    same(found[1], found[0])
