"""Roles and batch axes in transformers of diffusers that no family lists."""

import copy

import pytest
import torch

import tdquant as tdq
from tdquant.calls.call import run
from tdquant.clock import find_timestep
from tdquant.errors import ClockError
from tdquant.flow.roles import roles_of
from tdquant.flow.trace import trace
from tdquant.numerics.batch_axis import TOGETHER, BatchAxis

diffusers = pytest.importorskip("diffusers")

from tests.pipelines.parts import model  # noqa: E402

_HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}
TIMES = (0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95)


class Noise:
    """Tensors of one call after the other."""

    def __init__(self, seed):
        self._rng = torch.Generator().manual_seed(seed)

    def __call__(self, *shape):
        return torch.randn(*shape, generator=self._rng)


def _ids(count, axes):
    ids = torch.zeros(count, axes)
    ids[:, -1] = torch.arange(count)
    return ids


def _tokens(noise, t):
    texts = {"encoder_hidden_states": noise(len(t), 6, 12), "timestep": t}
    return {"hidden_states": noise(len(t), 16, 16), **texts, "return_dict": False}


def qwen_image():
    transformer = model(
        diffusers.QwenImageTransformer2DModel, patch_size=1, in_channels=16, out_channels=16,
        num_layers=2, joint_attention_dim=12, axes_dims_rope=(8, 4, 4), **_HEADS,
    )  # fmt: skip

    def call(noise, t):
        mask = torch.ones(len(t), 6, dtype=torch.long)
        shapes = {"encoder_hidden_states_mask": mask, "img_shapes": [[(1, 4, 4)]] * len(t)}
        return _tokens(noise, t) | shapes

    return transformer, call


def flux_2():
    transformer = model(
        diffusers.Flux2Transformer2DModel, in_channels=16, num_layers=1, num_single_layers=1,
        joint_attention_dim=12, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4),
        **_HEADS,
    )  # fmt: skip

    def call(noise, t):
        ids = {"img_ids": _ids(16, 4), "txt_ids": _ids(6, 4)}
        return _tokens(noise, t) | ids | {"guidance": torch.full((len(t),), 4.0)}

    return transformer, call


def bria():
    transformer = model(
        diffusers.BriaTransformer2DModel, in_channels=16, num_layers=1, num_single_layers=1,
        joint_attention_dim=12, axes_dims_rope=[4, 6, 6], **_HEADS,
    )  # fmt: skip
    ids = {"img_ids": _ids(16, 3), "txt_ids": _ids(6, 3)}
    return transformer, lambda noise, t: _tokens(noise, t) | ids


def krea_2():
    transformer = model(
        diffusers.Krea2Transformer2DModel, in_channels=16, num_layers=1, num_key_value_heads=1,
        intermediate_size=24, timestep_embed_dim=16, text_hidden_dim=12, num_text_layers=2,
        text_num_attention_heads=2, text_num_key_value_heads=2, text_intermediate_size=16,
        num_layerwise_text_blocks=1, num_refiner_text_blocks=1, axes_dims_rope=(4, 6, 6), **_HEADS,
    )  # fmt: skip

    def call(noise, t):
        texts = {"encoder_hidden_states": noise(len(t), 6, 2, 12)}
        return _tokens(noise, t) | texts | {"position_ids": _ids(22, 3)}

    return transformer, call


def ernie_image():
    transformer = model(
        diffusers.ErnieImageTransformer2DModel, hidden_size=32, num_attention_heads=2,
        num_layers=1, ffn_hidden_size=48, in_channels=8, out_channels=8, text_in_dim=12,
        rope_axes_dim=(4, 6, 6),
    )  # fmt: skip

    def call(noise, t):
        texts = {"text_bth": noise(len(t), 6, 12), "text_lens": torch.full((len(t),), 6)}
        return {"hidden_states": noise(len(t), 8, 4, 4), "timestep": t, **texts} | {
            "return_dict": False
        }

    return transformer, call


def ltx_2():
    transformer = model(
        diffusers.LTX2VideoTransformer3DModel, in_channels=8, out_channels=8,
        num_attention_heads=2, attention_head_dim=12, cross_attention_dim=24, audio_in_channels=4,
        audio_out_channels=4, audio_num_attention_heads=2, audio_attention_head_dim=6,
        audio_cross_attention_dim=12, num_layers=1, caption_channels=24,
        use_prompt_embeddings=False, use_prompt_adaln_single=False,
    )  # fmt: skip

    def call(noise, t):
        n = len(t)
        return {
            "hidden_states": noise(n, 8, 8), "audio_hidden_states": noise(n, 5, 4),
            "encoder_hidden_states": noise(n, 6, 24),
            "audio_encoder_hidden_states": noise(n, 6, 12),
            "timestep": t[:, None].expand(n, 8), "audio_timestep": t[:, None].expand(n, 5),
            "num_frames": 2, "height": 2, "width": 2, "audio_num_frames": 5, "return_dict": False,
        }  # fmt: skip

    return transformer, call


def hidream():
    transformer = model(
        diffusers.HiDreamImageTransformer2DModel, patch_size=2, in_channels=4, out_channels=4,
        num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        caption_channels=[12, 12], text_emb_dim=8, axes_dims_rope=(4, 2, 2),
        max_resolution=(8, 8), llama_layers=[0, 1], force_inference_output=True,
    )  # fmt: skip

    def call(noise, t):
        n = len(t)
        return {
            "hidden_states": noise(n, 4, 8, 8), "timesteps": t,
            "encoder_hidden_states_t5": noise(n, 6, 12),
            "encoder_hidden_states_llama3": noise(2, n, 6, 12), "pooled_embeds": noise(n, 8),
            "return_dict": False,
        }  # fmt: skip

    return transformer, call


def z_image():
    transformer = model(
        diffusers.ZImageTransformer2DModel, in_channels=4, dim=32, n_layers=1, n_refiner_layers=1,
        n_heads=2, n_kv_heads=2, cap_feat_dim=12, axes_dims=[4, 6, 6], axes_lens=[64, 16, 16],
    )  # fmt: skip

    def call(noise, t):
        lists = {"x": [noise(4, 1, 8, 8) for _ in t], "cap_feats": [noise(6, 12) for _ in t]}
        return {**lists, "t": t, "return_dict": False}

    return transformer, call


EXPECTED = {
    qwen_image: ("img_in", "proj_out", "time_text_embed img_mod txt_mod norm_out"),
    flux_2: ("x_embedder", "proj_out", "time_guidance_embed modulation norm_out"),
    bria: (
        "x_embedder",
        "proj_out",
        "time_embed norm.linear norm1 norm_out",
    ),
    krea_2: ("img_in", "final_layer.linear", "time_embed time_mod_proj"),
    ernie_image: ("x_embedder.proj", "final_linear", "time_embedding adaLN final_norm.linear"),
    ltx_2: (
        "proj_in audio_proj_in",
        "proj_out audio_proj_out",
        "time_embed av_cross_attn",
    ),
    hidream: ("x_embedder.proj", "final_layer.linear", "t_embedder p_embedder adaLN"),
    z_image: ("all_x_embedder.2-1", "all_final_layer.2-1.linear", "t_embedder adaLN"),
}
"""First layers, last layers, and words in the paths of all layers on the time path."""


@pytest.mark.parametrize("make", EXPECTED, ids=lambda make: make.__name__)
@pytest.mark.parametrize("batch", [1, 3])
def test_roles_of_transformers_that_no_family_lists(make, batch):
    transformer, call = make()
    arguments = call(Noise(3), torch.full((batch,), 0.5))
    found = roles_of(transformer, trace(transformer, arguments, find_timestep(transformer)))
    first, last, words = EXPECTED[make]
    assert found.first == set(first.split())
    assert found.last == set(last.split())
    timed = {
        path
        for path, module in transformer.named_modules()
        if type(module) is torch.nn.Linear
        and path in found.batch
        and any(word in path for word in words.split())
    }
    assert found.time_path == timed
    assert all(word in " ".join(timed) for word in words.split())


def prepared(make, recipe):
    transformer, call = make()
    quantized = tdq.quantize(copy.deepcopy(transformer), recipe)
    calls = [call(Noise(i), torch.full((3,), t)) for i, t in enumerate(TIMES)]
    tdq.calibrate(quantized, calls, progress=False)
    return transformer, call, quantized


def error(frozen, transformer, call):
    given = [call(Noise(9 + i), torch.full((3,), t)) for i, t in enumerate((0.1, 0.5, 0.9))]
    with torch.no_grad():
        pairs = [(run(frozen, c), run(transformer, c)) for c in given]
    return float(
        (sum((y - e).square().sum() for y, e in pairs) / sum(e.square().sum() for _, e in pairs))
        .sqrt()
    )  # fmt: skip


def test_qwen_image_at_four_bits(monkeypatch):
    recipe = tdq.Recipe(4, 4, scale="static")
    transformer, call, quantized = prepared(qwen_image, recipe)
    assert quantized.tdq.roles.changed["img_in"] == "first, not inner"
    assert error(tdq.freeze(quantized), transformer, call) < 0.02

    def fail(*args):
        raise RuntimeError("no call of two samples")

    monkeypatch.setattr("tdquant.flow.settle.trace", fail)
    _, _, by_name = prepared(qwen_image, recipe)
    assert "no call of two samples" in by_name.tdq.roles.why
    assert error(tdq.freeze(by_name), transformer, call) > 0.08


@torch.no_grad()
@pytest.mark.parametrize("make", [hidream, ernie_image], ids=lambda make: make.__name__)
def test_equal_times_given_sample_by_sample(make):
    transformer, call, quantized = prepared(make, tdq.Recipe(8, 8, scale="table"))
    batch = quantized.tdq.roles.batch
    if make is hidream:
        assert batch["double_stream_blocks.0.block.ff_i.experts.0.w1"] == TOGETHER
        assert batch["double_stream_blocks.0.block.ff_i.shared_experts.w1"] == BatchAxis(0)
    else:
        assert batch["layers.0.mlp.up_proj"] == BatchAxis(1)
    frozen = tdq.freeze(quantized)
    for size in (1, 2, 5):
        given = call(Noise(7), torch.full((size,), 0.5))
        expected = run(frozen, given)
        assert (expected - run(transformer, given)).norm() < 0.05 * expected.norm()
        for backend in ("reference", "onednn"):
            found = run(tdq.compile(frozen, backend), given)
            assert (found - expected).norm() < 0.02 * expected.norm()
    mixed = call(Noise(7), torch.tensor([0.2, 0.9]))
    if make is hidream:
        with pytest.raises(ClockError, match="which of its rows belong to which sample"):
            run(frozen, mixed)
    else:
        alone = call(Noise(7), torch.tensor([0.2]))
        alone = {k: mixed[k][:1] if isinstance(v, torch.Tensor) else v for k, v in alone.items()}
        assert torch.allclose(run(frozen, mixed)[:1], run(frozen, alone), atol=2e-3)
