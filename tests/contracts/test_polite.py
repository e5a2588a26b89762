"""Every public verb that takes a model leaves the user's model and process as they were, but for
what it is asked to change; one that fails leaves all of it.
"""

import contextlib
import copy
import threading

import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn

import tdquant as tdq
from tdquant.training.callbacks import Callback
from tests.contracts.politeness import difference, net, numbers, of_model, of_process

X = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
CALLS = [(X, torch.tensor(t)) for t in (0, 500, 999)]
RECIPE = tdq.Recipe(weights=8, activations=8, edges=8, temporal={"hidden": 4, "features": 4})
SILENT = {"progress": False}


class Images(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, i):
        return torch.full((4,), i / 4)


def scheduler():
    return DDIMScheduler(num_train_timesteps=1000)


def live():
    return tdq.quantize(net(), RECIPE)


def calibrated():
    return tdq.calibrate(live(), CALLS, **SILENT)


def frozen():
    return tdq.freeze(calibrated())


def train(model, folder, **options):
    return tdq.train(model, Images(), scheduler(), steps=4, batch=2, **SILENT, **options)


def saved(folder):
    return tdq.save(frozen(), folder / "saved")


def load(model, folder):
    return tdq.load(folder / "saved", model=model)


def sample(model, folder):
    return tdq.sample(model, scheduler(), 2, (4,), steps=4, **SILENT)


def trajectories(model, folder):
    return list(tdq.trajectories(model, scheduler(), 2, (4,), steps=4))


def compiled(backend):
    return lambda m, d: tdq.compile(m, backend, (X, torch.tensor(5)))(X, torch.tensor(5))


TEACHER, STUDENT = net().eval(), calibrated()

CHANGING = {
    "quantize": (net, lambda m, d: tdq.quantize(m, RECIPE)),
    "calibrate": (live, lambda m, d: tdq.calibrate(m, CALLS, **SILENT)),
    "bias correction": (
        live, lambda m, d: tdq.calibrate(m, CALLS, bias_correction=True, **SILENT),
    ),
    "balance": (net, lambda m, d: tdq.balance(m, CALLS, alpha="search", **SILENT)),
    "adaround": (calibrated, lambda m, d: tdq.reconstruct(m, CALLS, iterations=2, **SILENT)),
    "gptq": (calibrated, lambda m, d: tdq.reconstruct(m, CALLS, method="gptq", **SILENT)),
    "train": (calibrated, train),
    "train float": (net, train),
    "load": (net, load),
}  # fmt: skip
"""Verbs that change their model, and how it is made."""

READING = {
    "observe": (calibrated, lambda m, d: tdq.observe(m, CALLS, **SILENT)),
    "sensitivity": (calibrated, lambda m, d: tdq.sensitivity(m, CALLS, **SILENT)),
    "search": (
        calibrated, lambda m, d: tdq.search(tdq.sensitivity(m, CALLS, **SILENT), target_bits=6),
    ),
    "freeze": (calibrated, lambda m, d: tdq.freeze(m)),
    "correct": (frozen, lambda m, d: tdq.correct(m, TEACHER, CALLS, **SILENT)),
    "compile reference": (frozen, compiled("reference")),
    "compile onednn": (frozen, compiled("onednn")),
    "compile openvino": (frozen, compiled("openvino")),
    "save": (frozen, lambda m, d: tdq.save(m, d / "new")),
    "export": (
        frozen,
        lambda m, d: tdq.open_session(tdq.export(m, d / "m.xml", (X, torch.tensor(5))))(
            X, torch.tensor(5)
        ),
    ),
    "sample": (frozen, sample),
    "trajectories": (calibrated, trajectories),
    "summary": (calibrated, lambda m, d: str(tdq.summary(m))),
    "teacher": (net, lambda m, d: train(copy.deepcopy(STUDENT), d, teacher=m, features=["first"])),
    "is_frozen": (frozen, lambda m, d: tdq.is_frozen(m) and tdq.is_quantized(m)),
}  # fmt: skip
"""Verbs that only read it."""

VERBS = CHANGING | READING


def names(leave_out=(), slow=("compile openvino", "export")):
    """The verbs, of which those that trace the model are slow."""
    marks = {name: [pytest.mark.slow] for name in slow}
    return [pytest.param(n, marks=marks.get(n, [])) for n in VERBS if n not in leave_out]


RUNNING = [
    *(name for name in CHANGING if name not in ("quantize", "load")),
    "observe", "sensitivity", "correct", "sample", "trajectories", "teacher",
]  # fmt: skip
"""Verbs that call the model several times."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("polite")
    saved(folder)
    return folder


@pytest.fixture(scope="module")
def models():
    """A model for each of the functions that make one."""
    return {make: make() for make in {make for make, _ in VERBS.values()}}


def fresh(models, name):
    """A copy of the model for a verb."""
    model = copy.deepcopy(models[VERBS[name][0]])
    model.calls = 0
    return model


@pytest.mark.parametrize("name", names(slow=["export"]))
def test_a_verb_leaves_the_process_and_what_it_does_not_change(name, models, folder):
    model, (_, verb) = fresh(models, name), VERBS[name]
    verb(fresh(models, name), folder)  # imports what it needs, which may leave traces of its own
    before, process, values = of_model(model), of_process(), numbers(model)
    verb(model, folder)
    assert difference(process, of_process()) == []
    if name in READING:
        assert difference(before, of_model(model)) == []
        assert all(torch.equal(v, values[k]) for k, v in numbers(model).items())
        return
    after = of_model(model)
    modes = {p: m.training for p, m in model.named_modules() if (p, "itself") in before}
    if name not in ("train", "train float", "load"):  # they return models in evaluation mode
        assert all(mode == before[p, "itself"][2] for p, mode in modes.items())
        for key, found in before.items():
            if key[1] in ("weight", "bias") and key in after:
                assert after[key][0] is found[0], key
                assert after[key][1:] == found[1:] or after[key][3] is found[3], key
    assert [h.__name__ for h in model.first._forward_hooks.values()] in (["_count"], [])


@pytest.mark.parametrize("name", RUNNING)
@pytest.mark.parametrize(
    ("error", "call"),
    [
        (ValueError("of the user"), 1),
        (ValueError("of the user"), 3),
        (KeyboardInterrupt(), 3),
        pytest.param(KeyboardInterrupt(), 1, marks=pytest.mark.slow),
    ],
    ids=repr,
)
def test_an_exception_in_the_middle_leaves_the_model(name, error, call, models, folder):
    model, (_, verb) = fresh(models, name), VERBS[name]
    model.fail = call, error
    before, process, values = of_model(model), of_process(), numbers(model)
    with pytest.raises(type(error)):
        verb(model, folder)
    assert difference(process, of_process()) == []
    assert difference(before, of_model(model)) == []
    if name not in ("train", "train float"):  # steps that were taken stay
        assert all(torch.equal(v, values[k]) for k, v in numbers(model).items())
    if tdq.is_quantized(model):  # no timestep is left either
        with pytest.raises(tdq.TDQError), torch.no_grad():
            model.first(torch.zeros(1, 4))


def test_an_exception_of_the_calls_leaves_the_model(models, folder):
    def broken():
        yield CALLS[0]
        raise OSError("a disk")

    for name in ("calibrate", "balance", "adaround"):
        model = fresh(models, name)
        before = of_model(model)
        verb = {"calibrate": tdq.calibrate, "balance": tdq.balance}.get(name, tdq.reconstruct)
        with pytest.raises(OSError, match="a disk"):
            verb(model, broken(), **SILENT)
        assert difference(before, of_model(model)) == []


def test_an_exception_of_a_callback_leaves_modes_and_process(models, folder):
    class Broken(Callback):
        def after_step(self, run, record):
            raise RuntimeError("of a callback")

    model = fresh(models, "train")
    before, process = of_model(model), of_process()
    with pytest.raises(RuntimeError, match="of a callback"):
        train(model, folder, callbacks=[Broken()])
    assert difference(process, of_process()) == []
    assert [k for k in difference(before, of_model(model)) if k[1] == "itself"] == []


def test_sensitivity_before_anything_was_observed(models):
    model = copy.deepcopy(models[live])
    found, again = (tdq.sensitivity(model, CALLS, **SILENT).weights for _ in range(2))
    assert torch.equal(found["mid"], again["mid"])


def same_result(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, nn.Module):
        a, b = a.state_dict(), b.state_dict()
        return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return all(map(same_result, a, b))
    return type(a) is type(b)


@pytest.mark.parametrize("name", names())
def test_inside_inference_mode_the_result_is_the_same(name, models, folder):
    verb = VERBS[name][1]
    want = verb(fresh(models, name), folder)
    for mode in (torch.inference_mode, torch.no_grad):
        model = fresh(models, name)
        with mode():
            process = of_process()
            found = verb(model, folder)
            assert difference(process, of_process()) == []
            inside = copy.deepcopy(found) if isinstance(found, torch.Tensor) else found
        assert same_result(inside, want), mode
        if isinstance(found, nn.Module):
            assert not any(v.is_inference() for v in found.state_dict().values())


def test_all_of_it_made_inside_learns_outside(folder):
    with torch.inference_mode():
        model = tdq.quantize(net(), RECIPE)
        calls = list(tdq.trajectories(net(), scheduler(), 2, (4,), steps=3))
        tdq.calibrate(model, calls, **SILENT)
    tdq.reconstruct(model, calls, iterations=2, **SILENT)
    train(model, folder)
    model.train()(X, torch.tensor(3)).sum().backward()
    assert model.first.weight.grad is not None


def test_learned_rounding_learns_inside_inference_mode(models):
    found = {}
    for mode in (contextlib.nullcontext, torch.inference_mode):
        model = fresh(models, "adaround")
        with mode():
            tdq.reconstruct(model, CALLS, iterations=20, **SILENT)
        found[mode] = numbers(model)
    a, b = found.values()
    assert all(torch.equal(v, b[k]) for k, v in a.items())
    start = numbers(fresh(models, "adaround"))
    assert any(not torch.equal(v, start[k]) for k, v in a.items())


@pytest.mark.parametrize("name", names())
def test_another_thread_builds_modules_meanwhile(name, models, folder):
    done, faults = threading.Event(), []

    def build():
        while not done.is_set():
            layer = nn.Linear(3, 3)
            layer.weight = nn.Parameter(torch.full((3, 3), 2.0))
            own = layer.weight
            if own.is_meta or layer.bias.is_meta or not torch.equal(own, torch.full((3, 3), 2.0)):
                faults.append(own)
            if own.is_inference() or not (own.requires_grad and torch.is_grad_enabled()):
                faults.append("mode")

    model, (_, verb) = fresh(models, name), VERBS[name]
    thread = threading.Thread(target=build)
    thread.start()
    try:
        verb(model, folder)
    finally:
        done.set()
        thread.join()
    assert faults == []


@pytest.mark.parametrize("name", names(leave_out=("quantize", "balance", "load")))
def test_a_second_call_works_as_the_first(name, models, folder):
    model, (_, verb) = fresh(models, name), VERBS[name]
    first = verb(model, folder)
    second = verb(model, folder)
    if name in READING or name == "calibrate":
        assert same_result(second, first)
