"""Every family's names through one contract, on the real classes where diffusers has them."""

import inspect
from fnmatch import fnmatchcase

import pytest
import torch
from torch import nn

import tdquant as tdq
from tdquant.calls.from_pipeline import denoisers
from tdquant.clock import TIMESTEP_NAMES, find_timestep
from tdquant.errors import ConversionError
from tdquant.families import FAMILIES, GENERIC, family_of
from tdquant.flow.roles import roles_of
from tdquant.flow.trace import trace
from tdquant.layers import QUANTIZED
from tdquant.numerics.batch_axis import BatchAxis

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from tests.models.compvis.examples import BASE  # noqa: E402
from tests.pipelines import PIPELINES  # noqa: E402
from tests.pipelines.parts import model as random_model  # noqa: E402

_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
_SAMPLES = ("sample", "hidden_states", "x")


@pytest.mark.parametrize("family", [*FAMILIES, GENERIC], ids=lambda f: f.name)
def test_names_are_patterns(family):
    assert family.first
    assert family.last
    assert family.time_path
    assert all(isinstance(p, str) and p for p in family.first + family.last + family.time_path)


def test_no_class_is_in_two_families():
    names = [name for family in FAMILIES for name in family.classes]
    assert len(names) == len(set(names))
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)


@pytest.mark.parametrize(
    "name", [c for family in FAMILIES for c in family.classes if hasattr(diffusers, c)]
)
def test_the_timestep_of_every_listed_class_is_found(name):
    cls = getattr(diffusers, name)

    class Shell(nn.Module):
        forward = cls.forward

    argument, _ = find_timestep(Shell())
    assert argument in TIMESTEP_NAMES


def test_subclasses_belong_to_the_family_and_others_are_generic():
    class Mine(diffusers.UNet2DModel):
        pass

    assert family_of(Mine.__new__(Mine)).name == "diffusers-unet"
    assert family_of(nn.Linear(1, 1)) is GENERIC


def called(name):
    """A float denoiser and the arguments of one call of it."""
    if name == "PixelUNet":
        return tdq.models.load_embedded("tiny").unet, {"x": noise(1, 3, 16, 16)}
    if name == "UNetModel":
        return random_model(tdq.models.UNetModel, **BASE), {"x": noise(1, 3, 8, 8)}
    if name == "UNet3DConditionModel":
        unet = random_model(
            diffusers.UNet3DConditionModel,
            block_out_channels=(8, 16),
            down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
            layers_per_block=1,
            norm_num_groups=4,
            cross_attention_dim=8,
            attention_head_dim=4,
        )
        return unet, {"sample": noise(1, 4, 2, 8, 8), "encoder_hidden_states": noise(1, 3, 8)}
    pipe, call = PIPELINES[name]()
    (found, *_), (model, *_) = zip(*denoisers(pipe).items(), strict=True)
    recording = tdq.trajectories(pipe, [call | {"num_inference_steps": 2}], progress=False)
    return model, next(iter(recording[found]))


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def inputs(model, call):
    """Path -> the first input of every layer, in the order in which they are called."""
    seen = {}

    def look(path):
        def hook(layer, args, out):
            seen.setdefault(path, args[0].clone())

        return hook

    layers = [(path, m) for path, m in model.named_modules() if isinstance(m, _LAYERS)]
    handles = [layer.register_forward_hook(look(path)) for path, layer in layers]
    model(**call)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("name", [*PIPELINES, "PixelUNet", "UNetModel", "UNet3DConditionModel"])
def test_names_hit_what_they_should(name):
    """By what the layers see: the time path changes with the timestep and not with the sample,
    and the first and last layers that change with the sample are the edges.
    """
    model, call = called(name)
    family, time = family_of(model), find_timestep(model)[0]
    assert family is not GENERIC
    sample = next(n for n in _SAMPLES if n in inspect.signature(model.forward).parameters)
    rows = max(len(call[sample]), torch.as_tensor(call.get(time, 5)).numel())
    later = call.get(time, torch.tensor(5)) * 0.5 + 0.1
    call = {time: torch.tensor(5), **call}
    base = inputs(model, call)
    moved = inputs(model, call | {time: later})
    other = inputs(model, call | {sample: call[sample] + 1})

    by_sample = [path for path in base if not torch.equal(base[path], other[path])]
    by_time = [
        path
        for path, x in base.items()
        if path not in by_sample
        and not torch.equal(x, moved[path])
        and x.numel() <= rows * x.shape[-1]  # one vector a time: tokens of text see time too
    ]

    def named(patterns):
        return {path for path in base if any(fnmatchcase(path, p) for p in patterns)}

    assert by_time
    assert set(by_time) <= named(family.time_path)
    assert not named(family.time_path) & set(by_sample)
    assert named(family.first) == {by_sample[0]}
    assert named(family.last) == {by_sample[-1]}
    assert named(family.read_by_parent) <= {
        p for p in base if type(model.get_submodule(p)) in QUANTIZED
    }
    flows = trace(model, call, find_timestep(model))
    assert not roles_of(model, flows).changed  # calibration changes nothing
    assert all(flows[path].batch == BatchAxis(0) for path in by_sample)


class Unlisted(nn.Module):
    """A transformer of nobody's: time under a usual name, layers under its own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.patchify = nn.Conv2d(3, 16, 2, stride=2)
        self.t_embedder = nn.Sequential(nn.Linear(1, 16), nn.SiLU(), nn.Linear(16, 32))
        self.mixer = nn.MultiheadAttention(16, 2, batch_first=True)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.to_pixels = nn.ConvTranspose2d(16, 3, 2, stride=2)

    def forward(self, tokens, noise_at=None, *, when=None):
        time = torch.as_tensor(noise_at if when is None else when).float().reshape(-1, 1)
        h = self.patchify(tokens)
        shift, scale = self.t_embedder(time)[:, None].chunk(2, -1)
        rows = h.flatten(2).transpose(1, 2) * (1 + scale) * (1 + 5 * time[:, None]) + shift
        rows = rows + self.mixer(rows, rows, rows)[0]
        rows = rows + self.down(nn.functional.gelu(self.up(rows)))
        return (self.to_pixels(rows.transpose(1, 2).reshape(h.shape)),)


def test_an_unlisted_model_works_by_walking_its_modules(tmp_path):
    model, x = Unlisted().eval(), noise(2, 3, 8, 8)
    expected = model(x, 0.3)[0]
    tdq.quantize(model, tdq.Recipe(scale="table"), timestep="noise_at")
    rows = {row.path: row for row in tdq.summary(model)}
    assert rows["up"].input_bits == 8
    assert rows["t_embedder.0"].weight_bits == 8
    assert rows["t_embedder.0"].input_bits == rows["patchify"].input_bits == 32
    assert rows["down"].input_bits == 32  # the last by order
    calls = [{"tokens": x, "noise_at": torch.tensor(t)} for t in (0.1, 0.3, 0.6, 0.9)]
    tdq.calibrate(model, calls, progress=False)
    frozen = tdq.freeze(model)
    found = frozen(x, 0.3)[0]
    assert 0 < (found - expected).abs().max() < 0.05 * expected.abs().max()
    again = tdq.load(tdq.save(frozen, tmp_path / "saved"), model=Unlisted())
    assert torch.equal(again(x, noise_at=0.3)[0], found)


def test_an_unusual_timestep_has_to_be_told():
    with pytest.raises(ConversionError, match=r'timestep="\.\.\."'):
        tdq.quantize(Unlisted(), tdq.Recipe())
    with pytest.raises(ConversionError, match="no argument 'tau'"):
        tdq.quantize(Unlisted(), tdq.Recipe(), timestep="tau")
