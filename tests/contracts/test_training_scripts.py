"""Training loops as diffusers' and accelerate's own scripts write them, over quantized models."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

import tdquant as tdq
from tdquant.clock import clock_of

pytest.importorskip("accelerate")
diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")

from accelerate import Accelerator  # noqa: E402
from accelerate.state import AcceleratorState  # noqa: E402
from diffusers.training_utils import EMAModel  # noqa: E402

from tests.pipelines.parts import model as random_model  # noqa: E402

BLOCKS = {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1,
          "norm_num_groups": 4, "attention_head_dim": 4}  # fmt: skip


def unconditional():
    net = random_model(
        diffusers.UNet2DModel, in_channels=4, out_channels=4, **BLOCKS,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return net, {}


def conditional():
    net = random_model(
        diffusers.UNet2DConditionModel, **BLOCKS, cross_attention_dim=16,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip
    return net, {"encoder_hidden_states": torch.randn(1, 3, 16)}


def transformer():
    net = random_model(
        diffusers.DiTTransformer2DModel, num_attention_heads=2, attention_head_dim=8,
        in_channels=4, out_channels=4, num_layers=2, sample_size=8, patch_size=2,
        num_embeds_ada_norm=1000, norm_num_groups=4,
    )  # fmt: skip
    return net, {"class_labels": torch.tensor([1])}


def call(net, noisy, timesteps, more):
    more = {name: value.expand(len(noisy), *value.shape[1:]) for name, value in more.items()}
    return net(noisy, timestep=timesteps, return_dict=False, **more)[0]


def quantized(make):
    """A live model, and a frozen one with an adapter, of one calibration."""
    net, more = make()
    tdq.quantize(net, tdq.Recipe(4, 8, scale="temporal"))
    rng = torch.Generator().manual_seed(0)
    sample = "sample" if "UNet" in type(net).__name__ else "hidden_states"
    batches = [
        {sample: torch.randn(1, 4, 8, 8, generator=rng), "timestep": torch.tensor([t]), **more}
        for t in range(0, 999, 250)
    ]
    tdq.calibrate(net, batches, estimator="minmax", progress=False)
    adapted = tdq.freeze(net).requires_grad_(False)
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"]), adapted)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:  # else the first gradients of A are zero
                parameter.normal_(0, 0.02, generator=rng)
    return {"live": net, "adapter": adapted}, more


@pytest.fixture(scope="module", params=[unconditional, conditional, transformer])
def subjects(request):
    return quantized(request.param)


@pytest.fixture(params=["live", "adapter"])
def subject(request, subjects):
    return copy.deepcopy(subjects[0][request.param]), subjects[1]


def train(net, more, steps=3, accumulation=2, folder=None, start=0, precision="no"):
    """The loop of diffusers' ``train_unconditional.py``, in short.

    Returns:
        Gradients of the last step before they are clipped, weights and averages.
    """
    AcceleratorState._reset_state(True)
    accelerator = Accelerator(
        cpu=True, gradient_accumulation_steps=accumulation, mixed_precision=precision
    )
    schedule = diffusers.DDPMScheduler()
    rng = torch.Generator().manual_seed(1)
    clean = torch.randn(steps * accumulation * 2, 4, 8, 8, generator=rng)
    loader = DataLoader(TensorDataset(clean), batch_size=2)
    learned = {name: p for name, p in net.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(learned.values(), lr=1e-3)
    net, optimizer, loader = accelerator.prepare(net, optimizer, loader)
    ema = EMAModel(learned.values(), decay=0.9)
    accelerator.register_for_checkpointing(ema)
    net.train()
    if start:
        accelerator.load_state(folder / "state")
    for number, (x,) in enumerate(loader):
        noise, t = torch.randn(x.shape, generator=rng), torch.randint(1000, (2,), generator=rng)
        if number < start * accumulation:
            continue
        torch.manual_seed(number)  # of dropped labels
        with accelerator.accumulate(net):
            noisy = schedule.add_noise(x, noise, t).requires_grad_()  # as reentrant ones need it
            predicted = call(net, noisy, t, more)
            accelerator.backward(F.mse_loss(predicted.float(), noise))
            if accelerator.sync_gradients:
                gradients = {n: p.grad.clone() for n, p in learned.items() if p.grad is not None}
                accelerator.clip_grad_norm_(learned.values(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        if accelerator.sync_gradients:
            ema.step(learned.values())
            if folder is not None and number // accumulation == 0:
                accelerator.save_state(folder / "state")
    weights = {name: parameter.detach().clone() for name, parameter in learned.items()}
    return gradients, weights, ema.shadow_params


PAIRS = [
    ("live", False, "no"), ("live", True, "bf16"), ("adapter", True, "no"),
    ("adapter", False, "bf16"),
]  # fmt: skip
"""Every state with every kind of checkpoint and every precision, and every two of these."""


@pytest.mark.parametrize(("state", "reentrant", "precision"), PAIRS)
def test_gradient_checkpointing_changes_no_gradient(subjects, state, reentrant, precision):
    net, more = copy.deepcopy(subjects[0][state]), subjects[1]
    plain = train(copy.deepcopy(net), more, steps=1, precision=precision)[0]
    exact = train(copy.deepcopy(net), more, steps=1)[0] if precision != "no" else plain

    def run(function, *args):
        return torch.utils.checkpoint.checkpoint(function, *args, use_reentrant=reentrant)

    net.enable_gradient_checkpointing(run if reentrant else None)
    found = train(net, more, steps=1, precision=precision)[0]
    assert found.keys() == plain.keys()
    assert plain
    rounding = 1e-5 if precision == "no" else 0.1
    for name, gradient in plain.items():
        # Sums that cancel are as far off as the precision makes them without checkpointing.
        least = max(1e-7, float((gradient - exact[name]).norm()))
        assert (found[name] - gradient).norm() <= rounding * gradient.norm() + least, name


def test_a_resumed_loop_ends_like_one_that_was_not_stopped(subject, tmp_path):
    net, more = subject
    net.enable_gradient_checkpointing()
    again = copy.deepcopy(net)
    before = {name: parameter.clone() for name, parameter in net.named_parameters()}
    _, weights, averages = train(net, more, folder=tmp_path)
    assert any(not torch.equal(weights[name], before[name]) for name in weights)
    _, resumed, resumed_averages = train(again, more, folder=tmp_path, start=1)
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)
    assert all(map(torch.equal, averages, resumed_averages))


def test_what_was_trained_is_frozen_and_saved(subjects, tmp_path):
    net, more = copy.deepcopy(subjects[0]["live"]), subjects[1]
    net.enable_gradient_checkpointing()
    _, _, averages = train(net, more)
    average = copy.deepcopy(net)
    with torch.no_grad():
        for parameter, mean in zip(average.parameters(), averages, strict=True):
            parameter.copy_(mean)
    for trained in (net, average):
        frozen = tdq.freeze(trained.eval())
        tdq.save(frozen, tmp_path / "model")
        x, t = torch.randn(2, 4, 8, 8), torch.tensor([3, 700])
        with torch.no_grad():
            assert torch.equal(call(tdq.load(tmp_path / "model"), x, t, more),
                               call(frozen, x, t, more))  # fmt: skip
    assert clock_of(net).argument == "timestep"
