"""Recording the calls of pipelines."""

import json

import pytest
import torch
from diffusers import DDIMScheduler
from torch import nn

import tdquant as tdq
from tdquant.errors import ModelError, StorageError
from tests.pipelines import PIPELINES

pytest.importorskip("transformers")


def flat(calls):
    """All tensors of calls, in order."""

    def walk(value):
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, dict):
            for key in sorted(value):
                yield from walk(value[key])
        elif isinstance(value, (list, tuple)):
            for each in value:
                yield from walk(each)

    return [tensor for call in calls for tensor in walk(call)]


def same(a, b):
    a, b = flat(a), flat(b)
    return len(a) == len(b) > 0 and all(map(torch.equal, a, b))


@pytest.fixture
def guided():
    pipe, _ = PIPELINES["stable_diffusion_1"]()
    pipe.scheduler = DDIMScheduler()
    return pipe


def test_a_guided_pipeline_is_recorded_with_both_branches(guided):
    calls = list(tdq.trajectories(guided, ["a cat", "a dog"], steps=3, height=16, width=16))
    assert len(calls) == 6
    assert all(len(call["sample"]) == 2 for call in calls)
    assert all(call["encoder_hidden_states"].shape[0] == 2 for call in calls)
    assert len({float(call["timestep"]) for call in calls}) == 3
    guided.unet(**calls[0])  # what was recorded can be called


def test_iterating_again_and_in_other_batches_gives_the_same_calls(guided):
    options = {"steps": 2, "height": 16, "width": 16, "guidance_scale": 1.0}
    one = tdq.trajectories(guided, ["a", "b", "c"], **options)
    assert same(one, one)
    first = [c["sample"] for c in one]  # prompt by prompt
    second = [c["sample"] for c in tdq.trajectories(guided, ["a", "b", "c"], batch=2, **options)]
    assert torch.allclose(torch.cat([first[0], first[2]]), second[0])
    other = tdq.trajectories(guided, ["a", "b", "c"], seed=1, **options)
    assert not same(one, other)


def test_saved_calls_are_the_same(guided, tmp_path):
    recording = tdq.trajectories(guided, ["a cat", "a dog"], steps=2, height=16, width=16)
    saved = recording.save(tmp_path / "calls")
    assert same(recording, saved)
    assert same(saved, tdq.trajectories(tmp_path / "calls"))
    assert len(saved) == 4
    assert {f.suffix for f in (tmp_path / "calls").iterdir()} == {".json", ".safetensors"}
    index = json.loads((tmp_path / "calls" / "calls.json").read_text())
    assert index["made_by"]["pipeline"] == "StableDiffusionPipeline"
    recording.save(tmp_path / "calls")  # again, in its place


def test_what_all_calls_share_is_stored_once(guided, tmp_path):
    few = tdq.trajectories(guided, ["a"], steps=2, height=8, width=8).save(tmp_path / "few")
    many = tdq.trajectories(guided, ["a"], steps=12, height=8, width=8).save(tmp_path / "many")
    size = [sum(f.stat().st_size for f in s.folder.glob("*.safetensors")) for s in (few, many)]
    text = flat(few)[0].nbytes
    assert len(many) == 6 * len(few)
    assert size[1] < 6 * size[0] - 4 * text


def test_two_denoisers_have_calls_of_their_own(tmp_path):
    pipe, call = PIPELINES["wan_of_two"]()
    options = {k: v for k, v in call.items() if k != "num_inference_steps"}
    recording = tdq.trajectories(pipe, 1, steps=4, **options)
    assert set(tdq.denoisers(pipe)) == {"transformer", "transformer_2"}
    with pytest.raises(ModelError, match='recording\\["transformer_2"\\]'):
        list(recording)
    high, low = list(recording["transformer"]), list(recording["transformer_2"])
    assert high
    assert low
    assert min(float(c["timestep"].max()) for c in high) > max(
        float(c["timestep"].max()) for c in low
    )
    saved = recording.save(tmp_path / "calls")
    assert same(saved["transformer_2"], low)
    with pytest.raises(StorageError, match="2 denoisers"):
        list(saved)


def test_a_quantized_pipeline_is_recorded_in_float_and_calibrates_itself(guided):
    pipe = guided
    options = {"steps": 3, "height": 16, "width": 16}
    exact = list(tdq.trajectories(pipe, ["a cat"], **options))
    tdq.quantize(pipe.unet, tdq.Recipe(weights=4, activations=4))
    calls = tdq.trajectories(pipe, ["a cat"], **options)
    assert same(calls, exact)
    seen = tdq.observe(pipe.unet, calls, progress=False).seen
    again = tdq.observe(pipe.unet, exact, progress=False).seen
    for name in seen:  # the run that makes the calls is not observed itself
        assert sum(h.total for h in seen[name].histograms()) == sum(
            h.total for h in again[name].histograms()
        )
    tdq.calibrate(pipe.unet, calls, progress=False)
    images = pipe("a cat", num_inference_steps=2, height=16, width=16, output_type="pt").images
    assert images.isfinite().all()


def test_embedded_pipes_and_bare_denoisers():
    pipe = tdq.models.load_embedded("cats-ddpm")
    short = list(tdq.trajectories(pipe, 2, steps=2))
    long = list(tdq.trajectories(pipe.unet, pipe.scheduler, 2, pipe.shape, steps=2))
    assert same(short, long)


class Empty:
    def __init__(self):
        self.components = {"vae": nn.Linear(1, 1), "scheduler": None}


def test_bad_input(guided, tmp_path):
    with pytest.raises(ModelError, match="no denoiser"):
        tdq.trajectories(Empty(), 1)
    with pytest.raises(ModelError, match="no pipeline"):
        tdq.denoisers(nn.Linear(1, 1))
    unconditional, _ = PIPELINES["ddim"]()
    with pytest.raises(ModelError, match="prompts for a pipeline that takes none"):
        tdq.trajectories(unconditional, ["a cat"])
    with pytest.raises(ModelError, match="no prompts"):
        tdq.trajectories(guided)
    with pytest.raises(ModelError, match="at least one"):
        tdq.trajectories(guided, [])
    with pytest.raises(ModelError, match="takes no colour"):
        tdq.trajectories(unconditional, 2, colour="red")
    with pytest.raises(ModelError, match="takes no heights"):  # its **kwargs swallow it
        tdq.trajectories(guided, ["a"], heights=16)
    with pytest.raises(ModelError, match="no prompts for a pipeline that takes them"):
        list(tdq.trajectories(guided, 2, steps=1, height=16, width=16))
    with pytest.raises(ModelError, match="type int"):
        tdq.trajectories(guided, ["a", 3])
    with pytest.raises(StorageError, match=r"calls\.json is missing"):
        tdq.trajectories(tmp_path)


def test_damaged_recordings(guided, tmp_path):
    saved = tdq.trajectories(guided, ["a"], steps=1, height=8, width=8).save(tmp_path / "c")
    shard = next(saved.folder.glob("*.safetensors"))
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-50])
    with pytest.raises(StorageError, match="cannot be read"):
        list(saved)
    index = saved.folder / "calls.json"
    index.write_text(index.read_text().replace('"version": 2', '"version": 9'))
    with pytest.raises(StorageError, match="newer"):
        tdq.trajectories(saved.folder)
    index.write_text("{")
    with pytest.raises(StorageError, match="is damaged"):
        tdq.trajectories(saved.folder)


def test_a_run_that_fails_leaves_no_folder(guided, tmp_path, monkeypatch):
    recording = tdq.trajectories(guided, ["a", "b"], steps=1, height=8, width=8)
    monkeypatch.setattr(guided.scheduler, "step", None)
    with pytest.raises(TypeError):
        recording.save(tmp_path / "c")
    assert not list(tmp_path.iterdir())


def test_a_number_of_samples_may_be_named():
    pipe = tdq.models.load_embedded("cats-ddpm")
    assert same(tdq.trajectories(pipe, count=1, steps=2), tdq.trajectories(pipe, 1, steps=2))
    with pytest.raises(ModelError, match="expected a number of samples, not None"):
        tdq.trajectories(pipe, steps=2)
    pipe, call = PIPELINES["ddim"]()
    options = {k: v for k, v in call.items() if k != "num_inference_steps"} | {"steps": 2}
    assert same(tdq.trajectories(pipe, count=1, **options), tdq.trajectories(pipe, 1, **options))


class WithoutGenerator:
    """A pipeline that draws its noise from the global random state."""

    def __init__(self):
        self.unet = tdq.models.load_embedded("cats-ddpm").unet
        self.components = {"unet": self.unet}

    def __call__(self, batch_size=1, num_inference_steps=1):
        self.unet(torch.randn(batch_size, *self.shape), torch.tensor(500))

    shape = (3, 32, 32)


def test_a_pipeline_without_a_generator_draws_from_a_random_state_of_its_own():
    pipe, state = WithoutGenerator(), torch.get_rng_state()
    calls = tdq.trajectories(pipe, count=2, steps=1)
    assert same(calls, calls)
    assert torch.equal(torch.get_rng_state(), state)
    one, two = (call["x"] for call in calls)
    assert not torch.equal(one, two)
    assert not same(calls, tdq.trajectories(pipe, count=2, steps=1, seed=1))


def test_a_pipeline_in_bfloat16_that_hands_over_pixels():
    pipe, _ = PIPELINES["ddim"]()
    pipe.to(torch.bfloat16)
    calls = list(tdq.trajectories(pipe, 1, steps=2, progress=False))
    assert [call["sample"].dtype for call in calls] == [torch.bfloat16] * 2
    assert torch.overrides._get_current_function_mode_stack() == []
