"""What else pipelines offer, with a quantized denoiser: callbacks, offloading, textual inversion,
regional compilation.
"""

import threading

import pytest
import torch
import torch._dynamo.testing
from accelerate import cpu_offload
from diffusers import DiffusionPipeline
from diffusers.hooks import apply_group_offloading

import tdquant as tdq
from tdquant.clock import Moment
from tests.pipelines import PIPELINES, sample


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hooks")
    pipe, call = PIPELINES["stable_diffusion_1"]()
    tdq.quantize(pipe.unet, tdq.Recipe(weights=4, activations=8, scale="temporal"))
    calls = tdq.trajectories(pipe, ["a cat"], steps=4, height=8, width=8, progress=False)
    tdq.calibrate(pipe.unet, calls, progress=False)
    pipe.unet = tdq.freeze(pipe.unet)
    pipe.save_pretrained(folder)
    return folder, call, sample(pipe, call)


@pytest.fixture
def pipe(made):
    return DiffusionPipeline.from_pretrained(made[0], safety_checker=None)


def test_callbacks_see_every_step(made, pipe):
    _, call, images = made
    seen = []

    def note(pipe, step, timestep, tensors):
        seen.append((step, int(timestep)))
        return tensors

    assert torch.equal(sample(pipe, call, callback_on_step_end=note), images)
    assert [step for step, _ in seen] == list(range(len(seen)))
    assert len(seen) >= 4


def test_offloaded_to_the_host_layer_by_layer(made, pipe):
    _, call, images = made
    cpu_offload(pipe.unet, execution_device=torch.device("cpu"))
    assert pipe.unet.conv_in.weight.is_meta
    assert torch.equal(sample(pipe, call), images)


def test_offloaded_in_groups(made, pipe):
    _, call, images = made
    device = torch.device("cpu")
    apply_group_offloading(pipe.unet, device, device, "block_level", num_blocks_per_group=1)
    assert torch.equal(sample(pipe, call), images)


def test_repeated_blocks_compiled(made, pipe):
    _, call, images = made
    torch._dynamo.reset()
    counted = torch._dynamo.testing.CompileCounter()
    pipe.unet.compile_repeated_blocks(backend=counted, fullgraph=True)
    assert torch.allclose(sample(pipe, call), images, atol=1e-3)
    graphs = counted.frame_count
    assert graphs >= 1
    changed = sample(pipe, call, num_inference_steps=7)  # other times, the same graphs
    assert counted.frame_count == graphs
    torch._dynamo.reset()
    fresh = DiffusionPipeline.from_pretrained(made[0], safety_checker=None)
    assert torch.allclose(sample(fresh, call, num_inference_steps=7), changed, atol=1e-3)


def test_threads_cannot_mix_their_times_in_compiled_blocks(made, pipe):
    calls = list(tdq.trajectories(pipe, ["a cat"], steps=2, height=8, width=8, progress=False))
    torch._dynamo.reset()
    pipe.unet.compile_repeated_blocks(backend="eager", fullgraph=True)
    with torch.no_grad():
        pipe.unet(**calls[0])
        clock = pipe.unet.tdq.clock
        other = threading.Thread(target=lambda: clock._set(Moment(torch.tensor(5))))
        other.start()
        other.join()
        # fullgraph: dynamo reports the ClockError that the block would raise
        with pytest.raises(Exception, match=r"ClockError|no timestep is known"):
            pipe.unet(**calls[0])
    torch._dynamo.reset()


@pytest.mark.slow
def test_the_whole_denoiser_compiled(made, pipe):
    _, call, images = made
    pipe.unet.compile(backend="aot_eager")
    assert torch.allclose(sample(pipe, call), images, atol=1e-3)
    torch._dynamo.reset()


def test_textual_inversion(made, pipe):
    _, call, images = made
    pipe.load_textual_inversion({"<new>": torch.randn(1, 16)}, token="<new>")
    changed = sample(pipe, {**call, "prompt": "a <new>"})
    assert changed.isfinite().all()
    assert not torch.equal(changed, images)


def test_slices_tiles_and_channels_last(made, pipe):
    _, call, images = made
    pipe.unet.to(memory_format=torch.channels_last)
    pipe.vae.enable_tiling()
    assert torch.allclose(sample(pipe, call), images, atol=1e-2)
