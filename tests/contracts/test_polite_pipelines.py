"""Recording and evaluating leave a pipeline and the process as they were."""

import copy

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

import tdquant as tdq
from tests.contracts.politeness import difference, numbers, of_model, of_process
from tests.lab.evaluation.small import Random
from tests.pipelines.parts import model as random_model

CONFIG = {
    "sample_size": 8, "block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"), "dropout": 0.5,
}  # fmt: skip


def unet():
    """In training mode but for one block, which is frozen, with a hook and a gradient."""
    made = random_model(UNet2DModel, **CONFIG).train()
    made.mid_block.eval().requires_grad_(False)
    made.conv_out.bias.grad = torch.ones_like(made.conv_out.bias)
    made.conv_in.register_forward_hook(_count)
    return made


def _count(module, args, output):
    module.seen = getattr(module, "seen", 0) + 1
    if module.seen == getattr(module, "last", -1):
        raise module.error


def record(model, folder):
    pipe = DDIMPipeline(model, DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    given = {"batch_size": 2, "num_inference_steps": 3, "output_type": "np"}
    return list(tdq.trajectories(pipe, [given, given], progress=False))


def record_and_save(model, folder):
    pipe = DDIMPipeline(model, DDIMScheduler())
    given = {"batch_size": 2, "num_inference_steps": 3, "output_type": "np"}
    return list(tdq.trajectories(pipe, [given, given], progress=False).save(folder / "calls"))


def evaluate(model, folder):
    pipe, other = (DDIMPipeline(each, DDIMScheduler()) for each in (model, copy.deepcopy(model)))
    options = {"reference": None, "metrics": [], "resamples": 0, "network": Random()}
    options |= {"images": 2, "steps": 2, "batch": 2, "paired": 2, "progress": False}
    return tdq.evaluate(pipe, folder / "run", against=other, **options)


VERBS = {"record": record, "record and save": record_and_save, "evaluate": evaluate}


@pytest.mark.parametrize("verb", VERBS)
def test_a_pipeline_is_left_as_it_was(verb, tmp_path):
    model = unet()
    VERBS[verb](model, tmp_path / "first")  # imports what it needs
    before, process, values = of_model(model), of_process(), numbers(model)
    with torch.inference_mode():
        inside = of_process()
        VERBS[verb](model, tmp_path / "second")
        assert difference(inside, of_process()) == []
    assert difference(process, of_process()) == []
    assert difference(before, of_model(model)) == []
    assert all(torch.equal(v, values[k]) for k, v in numbers(model).items())
    assert [h.__name__ for h in model.conv_in._forward_hooks.values()] == ["_count"]


@pytest.mark.parametrize("error", [ValueError("of the user"), KeyboardInterrupt()], ids=type)
@pytest.mark.parametrize("verb", VERBS)
def test_an_exception_in_the_middle_leaves_it(verb, error, tmp_path):
    model = unet()
    VERBS[verb](model, tmp_path / "first")
    model.conv_in.last, model.conv_in.error = model.conv_in.seen + 2, error
    before, process = of_model(model), of_process()
    with pytest.raises(type(error)):
        VERBS[verb](model, tmp_path / "second")
    assert difference(process, of_process()) == []
    assert difference(before, of_model(model)) == []


def test_what_is_recorded_does_not_depend_on_the_process(tmp_path):
    torch.manual_seed(1)
    first = record(unet(), tmp_path)
    torch.manual_seed(2)
    with torch.inference_mode():
        second = record(unet(), tmp_path)
    assert len(first) == len(second) == 6
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        assert torch.equal(a["sample"], b["sample"])
        assert not b["sample"].is_inference()  # calibration takes gradients
    assert not torch.equal(first[0]["sample"], first[1]["sample"])
