"""Checkpoints that are quantized weight by weight as they load."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel

import tdquant as tdq
from tdquant.errors import ConversionError, FreezeError
from tdquant.files.checkpoints import LazyTensor, open_checkpoint
from tdquant.files.checkpoints.safetensors_format import write_safetensors
from tdquant.integrations.diffusers import TDQConfig
from tdquant.quantizers import CodedWeight
from tests.integrations import flux_shards
from tests.live import LiveBytes

ROOT = Path(__file__).parents[2]
WEIGHTS = {"weights": 4, "activations": 32}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("flux")
    flux_shards.write(folder, flux_shards.TINY, 400_000)
    assert len(list(folder.glob("*.safetensors"))) > 3
    return folder


def run(model):
    with torch.no_grad():
        return [model(**call)[0] for call in flux_shards.calls(model)]


def equal(a, b):
    return all(map(torch.equal, a, b))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, None])
def test_as_quantized_whole(checkpoint, dtype):
    config = TDQConfig(frozen_weights=True, **WEIGHTS)
    model = FluxTransformer2DModel.from_pretrained(
        checkpoint, dtype=dtype, quantization_config=config
    )
    whole = FluxTransformer2DModel.from_pretrained(checkpoint, dtype=dtype)
    assert model.dtype == whole.dtype
    tdq.quantize(whole, tdq.Recipe(**WEIGHTS))
    assert any(isinstance(m, CodedWeight) for m in model.modules())
    assert tdq.is_frozen(model)
    assert equal(run(model), run(tdq.freeze(whole)))


@pytest.mark.parametrize("form", ["tdq", "diffusers"])
def test_saved_and_loaded(checkpoint, tmp_path, form):
    model = flux_shards.load(checkpoint, **WEIGHTS)
    if form == "tdq":
        back = tdq.load(tdq.save(model, tmp_path / "m"), compact=True)
    else:
        model.save_pretrained(tmp_path / "m", max_shard_size="200KB")
        back = FluxTransformer2DModel.from_pretrained(tmp_path / "m", dtype=torch.bfloat16)
        kept = json.loads((tmp_path / "m" / "config.json").read_text())["quantization_config"]
        assert "frozen_weights" not in kept  # readers before it would refuse the word
    assert equal(run(back), run(model))


def test_activations_are_calibrated_afterwards(checkpoint, tmp_path):
    model = flux_shards.load(checkpoint, weights=4, activations=8, scale="temporal")
    with pytest.raises(FreezeError, match="frozen"):
        model.save_pretrained(tmp_path / "m")
    tdq.calibrate(model, flux_shards.calls(model, 4), progress=False)
    frozen = tdq.freeze(model)
    back = tdq.load(tdq.save(frozen, tmp_path / "m"), compact=True)
    assert equal(run(back), run(frozen))
    frozen.save_pretrained(tmp_path / "d")
    again = FluxTransformer2DModel.from_pretrained(tmp_path / "d", dtype=torch.bfloat16)
    assert equal(run(again), run(frozen))


def test_memory_is_that_of_the_codes(checkpoint):
    whole = FluxTransformer2DModel.from_pretrained(checkpoint, dtype=torch.float32)
    sizes = [p.numel() for p in whole.parameters()]
    del whole
    config = TDQConfig(frozen_weights=True, edges=4, time_weights=4, **WEIGHTS)
    with LiveBytes() as live:
        model = FluxTransformer2DModel.from_pretrained(
            checkpoint, dtype=torch.bfloat16, quantization_config=config
        )
    codes = sum(p.nbytes for p in model.parameters())
    assert codes < 1.1 * sum(sizes)
    # float32 is 4 a number, and the search of steps and multipliers has buffers.
    assert live.peak < codes + 20 * max(sizes)


def test_a_bad_weight_is_named(checkpoint, tmp_path):
    flux_shards.write(tmp_path, flux_shards.TINY, 10**9)
    (file,) = tmp_path.glob("*.safetensors")
    name = "single_transformer_blocks.1.proj_mlp.weight"
    with open_checkpoint(file) as found:
        bad = found[name].load()
        bad[3, 5] = torch.nan
        found[name] = LazyTensor(bad.shape, bad.dtype, lambda: bad)
        write_safetensors(found, tmp_path / "new", {"format": "pt"})
    (tmp_path / "new").replace(file)
    with pytest.raises(ConversionError, match="1 weights are NaN") as info:
        flux_shards.load(tmp_path, **WEIGHTS)
    assert info.value.where == "single_transformer_blocks.1.proj_mlp"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is Linux's")
def test_two_billion_parameters_in_their_share_of_16_gb(tmp_path):
    """12 billion in 16 GB is 1.33 bytes a parameter, Python and its libraries included."""
    (tmp_path / "flux").mkdir()
    count = flux_shards.write(tmp_path / "flux", flux_shards.TWO_BILLION, 400_000_000)
    assert count > 2e9
    command = [sys.executable, "-m", "tests.integrations.flux_shards"]
    done = subprocess.run(
        [*command, str(tmp_path / "flux"), str(tmp_path / "out")],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["parameters"] == count
    assert found["peak"] < 16e9 / 12e9 * count
    size = sum(f.stat().st_size for f in (tmp_path / "out").iterdir())
    assert size < 0.65 * count  # four bits, and float edges
