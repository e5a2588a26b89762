"""What runs a frozen denoiser, in its place in an unmodified pipeline: the reference, a compiled
OpenVINO graph, a session of an exported file.
"""

import pytest
import torch

import tdquant as tdq
from tdquant.calls.from_pipeline import denoisers
from tdquant.clock import clock_of
from tdquant.errors import EngineAttributeError, ExportError, TDQError

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import diffusers

from tests.pipelines import PIPELINES, put, sample
from tests.pipelines.proof import NO_GRAPH

QUICK = ("stable_diffusion_xl", "hunyuan_dit", "flux", "wan", "wan_by_token", "cogvideox")


def quick_or_slow(names, quick):
    return [n if n in quick else pytest.param(n, marks=pytest.mark.slow) for n in names]


class Slots:
    """A pipeline, its frozen denoisers with a call of each, and the images of two steps."""

    def __init__(self, name):
        self.pipe, call = PIPELINES[name]()
        self.call = call | {"num_inference_steps": 2}
        recording = tdq.trajectories(self.pipe, [self.call], progress=False)
        self.frozen, self.examples = {}, {}
        for slot, model in denoisers(self.pipe).items():
            tdq.quantize(model, tdq.Recipe(scale="table"))
            tdq.calibrate(model, recording[slot], estimator="minmax", progress=False)
            self.frozen[slot] = tdq.freeze(model)
            self.examples[slot] = next(iter(recording[slot]))
        self.images = self.sample(self.frozen)

    def sample(self, models):
        return sample(put(self.pipe, models), self.call)

    def distance(self, models):
        """Of the images from those of the frozen models, relative."""
        return float((self.sample(models) - self.images).norm() / self.images.norm())


# Few of the values near a rounding boundary fall on its other side, by one step.
NEAR = 0.02


@pytest.mark.parametrize("name", quick_or_slow(PIPELINES, QUICK))
def test_the_reference(name):
    slots = Slots(name)
    models = {n: tdq.compile(m, "reference") for n, m in slots.frozen.items()}
    assert slots.distance(models) < NEAR


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in PIPELINES if n not in NO_GRAPH])
def test_a_compiled_graph(name):
    pytest.importorskip("openvino")
    slots = Slots(name)
    models = {n: tdq.compile(m, "openvino") for n, m in slots.frozen.items()}
    assert slots.distance(models) < NEAR


@pytest.mark.slow
@pytest.mark.parametrize("name", NO_GRAPH)
def test_a_model_without_a_graph_is_refused_when_it_is_compiled_by_an_example(name):
    pytest.importorskip("openvino")
    slots = Slots(name)
    for slot, model in slots.frozen.items():
        with pytest.raises(ExportError, match=NO_GRAPH[name]):
            tdq.compile(model, "openvino").prepare(**slots.examples[slot])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["stable_diffusion_1", "stable_diffusion_xl", "stable_diffusion_3", "wan", "ltx"]
)
def test_a_session_of_a_file(name, tmp_path):
    pytest.importorskip("openvino")
    slots = Slots(name)
    models = {
        n: tdq.open_session(tdq.export(m, tmp_path / f"{n}.xml", slots.examples[n]))
        for n, m in slots.frozen.items()
    }
    assert slots.distance(models) < NEAR


@pytest.fixture(scope="module")
def flux(tmp_path_factory):
    """A Flux pipeline with a session of a file in the place of its transformer."""
    pytest.importorskip("openvino")
    slots = Slots("flux")
    file = tmp_path_factory.mktemp("flux") / "model.xml"
    tdq.export(slots.frozen["transformer"], file, slots.examples["transformer"])
    slots.session = tdq.open_session(file)
    return slots


def test_a_session_in_the_place_of_a_transformer(flux):
    assert flux.distance({"transformer": flux.session}) < NEAR


def test_what_pipelines_read(flux):
    frozen, session = flux.frozen["transformer"], flux.session
    assert session.config.in_channels == session.config["in_channels"] == 16
    assert session.config.guidance_embeds is True
    assert session.num_parameters() == frozen.num_parameters()
    assert session.num_parameters(only_trainable=True) == 0
    assert session.inner_dim == frozen.inner_dim
    embedder = session.time_text_embed.timestep_embedder.linear_1
    assert embedder.in_features == frozen.time_text_embed.timestep_embedder.linear_1.in_features
    assert len(session.transformer_blocks) == len(frozen.transformer_blocks)
    assert not session.is_cache_enabled
    with session.cache_context("cond", step_index=1):
        assert session.eval() is session
    assert not hasattr(session, "attn_processors")
    assert not hasattr(session.time_text_embed, "set_processor")


def test_a_cast_pipeline_makes_its_inputs_in_that_type(flux):
    session = flux.session
    assert session.dtype == next(session.parameters()).dtype == torch.float32
    session.to(torch.bfloat16)
    call = {
        name: value.bfloat16() if value.is_floating_point() else value
        for name, value in flux.examples["transformer"].items()
        if isinstance(value, torch.Tensor)
    }
    assert session.dtype == session(**call, return_dict=False)[0].dtype == torch.bfloat16
    assert session.float().dtype == torch.float32
    assert session.device == torch.device("cpu")


REFUSED = {
    "an attention processor": lambda pipe, s: s.set_attn_processor(None),
    "fused projections": lambda pipe, s: s.fuse_qkv_projections(),
    "a LoRA": lambda pipe, s: pipe.load_lora_weights(
        {"transformer.x.lora_A.weight": torch.zeros(2, 4)}
    ),
    "an IP-Adapter": lambda pipe, s: s._load_ip_adapter_weights([]),
    "a cache": lambda pipe, s: s.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.1)),
    "a hook": lambda pipe, s: diffusers.hooks.apply_group_offloading(
        s, onload_device=torch.device("cpu"), offload_type="leaf_level"
    ),
    "an attribute below": lambda pipe, s: s.time_text_embed.set_processor(None),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_changes_a_denoiser_is_refused(flux, what):
    put(flux.pipe, {"transformer": flux.session})
    with pytest.raises(EngineAttributeError, match="change the float model"):
        REFUSED[what](flux.pipe, flux.session)
    assert flux.distance({"transformer": flux.session}) < NEAR


def test_a_pipeline_with_a_session_is_not_saved(flux, tmp_path):
    put(flux.pipe, {"transformer": flux.session})
    with pytest.raises(ExportError, match=r"FluxPipeline\.transformer[\s\S]*frozen model"):
        flux.pipe.save_pretrained(tmp_path / "pipe")
    with pytest.raises(ExportError, match="frozen model"):
        flux.session.save_pretrained(tmp_path / "pipe")
    assert not (tmp_path / "pipe").exists()
    put(flux.pipe, flux.frozen).save_pretrained(tmp_path / "pipe")
    assert (tmp_path / "pipe" / "model_index.json").is_file()


def test_nor_is_one_with_a_compiled_model(flux, tmp_path):
    for backend in ("reference", "openvino"):
        model = tdq.compile(flux.frozen["transformer"], backend)
        with pytest.raises(TDQError, match="compiled"):
            put(flux.pipe, {"transformer": model}).save_pretrained(tmp_path / "pipe")
        assert not (tmp_path / "pipe").exists()


def test_a_compiled_model_is_told_of_before_its_first_call(flux):
    frozen = flux.frozen["transformer"]
    model = tdq.compile(frozen, "openvino")
    assert model.config.in_channels == 16
    assert model.inner_dim == frozen.inner_dim
    assert model.num_parameters() == frozen.num_parameters()


def test_timesteps_of_tokens_are_one_where_they_are_equal(flux):
    """Of a sample; others are an error and no guess."""
    argument = clock_of(flux.frozen["transformer"]).argument
    call = {k: v for k, v in flux.examples["transformer"].items() if k != "return_dict"}
    time = torch.as_tensor(call[argument]).reshape(1, 1)
    one = flux.session(**call)[0]
    assert torch.equal(flux.session(**call | {argument: time.expand(1, 3)})[0], one)
    with pytest.raises(TDQError, match="3 timesteps"):
        flux.session(**call | {argument: time * torch.tensor([[1.0, 0.0, 1.0]])})
