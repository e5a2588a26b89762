"""Offloaded, cast, half-precision and pickled models."""

import copy
import multiprocessing
import pickle

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from diffusers import DDPMScheduler

import tdquant as tdq
from tdquant.errors import BackendError, ClockError, ConversionError
from tests.denoisers import Mixed, calls

RECIPE = tdq.Recipe(weights=8, activations=8, scale="temporal")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def live():
    batches = list(calls(4, 2))
    return tdq.calibrate(tdq.quantize(Mixed(), RECIPE), batches, progress=False)


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_an_offloaded_live_model_computes_the_same(live, where, x, tmp_path):
    model = copy.deepcopy(live).eval()
    with torch.no_grad():
        want = model(x, torch.tensor(300))
        if where == "cpu":
            cpu_offload(model, CPU)
        else:
            disk_offload(model, str(tmp_path), CPU)
        assert model.conv_in.weight.is_meta
        assert torch.equal(model(x, torch.tensor(300)), want)


def test_an_offloaded_model_is_calibrated_where_it_computes(live, x):
    model = copy.deepcopy(live)  # whose roles are known: they decide what is quantized
    cpu_offload(model, CPU)
    tdq.calibrate(model, list(calls(4, 2)), progress=False)
    steps = [b for n, b in model.named_buffers() if n.endswith("time_range")]
    assert steps
    assert all(b.device == CPU for b in steps)
    assert torch.allclose(model(x, torch.tensor(300)), live(x, torch.tensor(300)), atol=1e-2)


def test_verbs_that_read_weights_refuse_offloaded_ones(live):
    model, net = copy.deepcopy(live), Mixed()
    cpu_offload(model, CPU)
    cpu_offload(net, CPU)
    for verb in (
        lambda: tdq.freeze(model),
        lambda: tdq.reconstruct(model, list(calls(2, 2)), progress=False),
        lambda: tdq.quantize(net, RECIPE),
        lambda: tdq.balance(net, list(calls(2, 2)), progress=False),
    ):
        with pytest.raises(ConversionError, match="offloaded"):
            verb()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_compact_model_follows_a_cast(live, dtype, x, tmp_path):
    frozen = tdq.freeze(live)
    folder = tdq.save(frozen, tmp_path / "m")
    compact = tdq.load(folder, model=Mixed(), compact=True).to(dtype)
    found = compact(x.to(dtype), torch.tensor(300))
    assert found.dtype == dtype
    assert torch.allclose(found.float(), frozen(x, torch.tensor(300)), atol=2e-2)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("make", [copy.deepcopy, tdq.freeze])
def test_scales_stay_float32_when_half_precision_is_loaded(live, make, assign):
    model = make(live)
    state = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.load_state_dict(state, assign=assign)
    found = {k: v.dtype for k, v in model.state_dict().items() if "quantizer" in k}
    assert set(found.values()) <= {torch.float32, torch.int32}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_are_sampled_and_trained(dtype):
    class Images(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, i):
            return torch.full((6, 8, 8), i / 4)

    scheduler, silent = DDPMScheduler(), {"progress": False}
    model = tdq.quantize(Mixed().to(dtype), RECIPE)
    recorded = list(tdq.trajectories(Mixed().to(dtype), scheduler, 2, (6, 8, 8), steps=3))
    assert {x.dtype for x, _ in recorded} == {dtype}
    tdq.calibrate(model, recorded, **silent)
    images = tdq.sample(model, scheduler, 2, (6, 8, 8), steps=3, **silent)
    assert images.dtype == torch.float32
    assert images.isfinite().all()
    tdq.train(model, Images(), scheduler, steps=2, batch=2, **silent)
    assert len(model.tdq.training.losses) == 2


def _outputs(models, x):
    with torch.no_grad():
        return [model(x, torch.tensor(300)) for model in models]


@pytest.mark.slow
def test_models_are_sent_to_a_spawned_process(live, x, tmp_path):
    frozen = tdq.freeze(live).eval()
    compact = tdq.load(tdq.save(frozen, tmp_path / "m"), model=Mixed(), compact=True)
    models = [copy.deepcopy(live).eval(), frozen, compact, tdq.compile(frozen, "reference")]
    right = _outputs(models, x)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(_outputs, (models, x))
    assert all(map(torch.equal, found, right))


@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps])
def test_a_model_on_an_engine_says_that_it_is_not_copied(live, copied, x):
    compiled = tdq.compile(tdq.freeze(live), "openvino")
    with pytest.raises(BackendError, match="cannot be copied or pickled"):
        copied(compiled)


def test_an_interrupted_call_leaves_no_timestep(live, x):
    model = copy.deepcopy(live)

    def interrupt(*_):
        raise KeyboardInterrupt

    hook = model.reflect.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model(x, torch.tensor(3))
    hook.remove()
    with pytest.raises(ClockError):
        model.linear(torch.zeros(1, 12))


def test_modules_with_a_number_called_scale_compile_to_one_graph(live, x):
    model = tdq.freeze(live)
    model.up.scale = model.linear.scale = 0.5
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    for rows in (x, torch.cat([x, x])):
        assert torch.equal(compiled(rows, torch.tensor(3)), model(rows, torch.tensor(3)))
