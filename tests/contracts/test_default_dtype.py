"""torch's default dtype is the user's: it changes no result and no file."""

import ast
import contextlib
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from torch.utils._pytree import tree_leaves

import tdquant as tdq
from tests.denoisers import Mixed, calls

SHAPE = (6, 8, 8)
FLOATS = {"empty", "eye", "full", "linspace", "logspace", "ones", "rand", "randn", "zeros"}


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def results(dtype, folder):
    """What every verb gives for models and calls that were made in float32."""
    x = next(iter(calls(1, 2)))[0]
    batches, images = list(calls(4)), torch.rand(8, *SHAPE, generator=torch.Generator())
    model, teacher, target, scheduler = Mixed(), Mixed(), Mixed(), DDIMScheduler()
    found = {}
    with default_dtype(dtype):
        recipe = tdq.Recipe(weights=4, activations=6)
        tdq.quantize(model.eval(), recipe)
        found["sensitivity"] = tdq.sensitivity(model, batches, progress=False).weights
        tdq.calibrate(model, batches, progress=False)
        found["live"] = model(x, 999.0), model(x, torch.tensor([3, 700]))
        frozen = tdq.freeze(model)
        found["frozen"] = frozen(x, 999.0), frozen(x, torch.tensor([3, 700]))
        found["times"] = tdq.freeze(model, timesteps=[1.0, 333.0, 999.0])(x, 333.0)
        tdq.save(frozen, folder / "saved")
        found["saved"] = tdq.load(folder / "saved", model=target)(x, 7.0)
        found["reference"] = tdq.compile(frozen, "reference")(x, 7.0)
        found["corrected"] = tdq.correct(frozen, teacher, batches, progress=False)(x, 7)
        drawing = {"shape": SHAPE, "count": 2, "steps": 2, "progress": False}
        found["sample"] = tdq.sample(frozen, scheduler, **drawing)
        found["trajectories"] = list(tdq.trajectories(teacher, scheduler, **drawing))
        tdq.reconstruct(model, batches, iterations=2, progress=False)
        tdq.train(model, images, scheduler, steps=2, batch=4, progress=False)
        found["trained"] = model(x, 7)
        tdq.balance(teacher, batches, progress=False)
        found["balanced"] = teacher(x, 7)
    return found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_the_default_dtype_changes_no_result(dtype, tmp_path):
    expected = results(torch.float32, tmp_path / "float32")
    found = results(dtype, tmp_path / "other")
    for name, one in expected.items():
        for a, b in zip(tree_leaves(one), tree_leaves(found[name]), strict=True):
            assert a.dtype == b.dtype, name
            # torch's optimizers count in the default dtype, which may move a last bit.
            bound = 1e-2 * float(a.detach().abs().max()) if name == "trained" else 0
            torch.testing.assert_close(b, a, rtol=0, atol=bound, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("name", ["x.onnx", "x.xml"])
def test_exported_files_do_not_depend_on_the_default_dtype(name, tmp_path):
    pytest.importorskip("openvino" if name.endswith("xml") else "onnxruntime")
    x, model = next(iter(calls(1, 2)))[0], tdq.quantize(Mixed().eval(), tdq.Recipe(8, 8))
    frozen = tdq.freeze(tdq.calibrate(model, calls(4), progress=False))
    expected = frozen(x, 7)
    with default_dtype(torch.bfloat16):
        tdq.export(frozen, tmp_path / name, example=(x, torch.tensor(7)))
        found = tdq.open_session(tmp_path / name)(x, 7.0)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-2)


def test_no_tensor_of_floats_is_made_in_the_default_dtype():
    made = []
    for file in sorted(Path(tdq.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            owner, name = ast.unparse(node.func.value), node.func.attr
            if (
                owner == "torch"
                and name in FLOATS
                and "dtype" not in {k.arg for k in node.keywords}
            ):
                made.append(f"{file.name}:{node.lineno}: {ast.unparse(node)}")
    assert not made, made
