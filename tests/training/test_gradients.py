"""Gradients that are not finite, although the loss is."""

import json
import math

import pytest
import torch
from torch import nn

import tdquant as tdq
from tdquant.errors import TrainingError
from tdquant.training import loop
from tdquant.training.callbacks import Callback
from tdquant.training.checkpoints import Checkpoints
from tdquant.training.learner import SMALLEST_SCALE, Learner
from tests.denoisers import Mixed
from tests.training.runs import Noise, model, run, spoil


class Counting(Mixed):
    """A Mixed model with a buffer that its forward pass changes."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x, timestep, gain=None):
        self.calls += 1
        return super().forward(x, timestep, gain)


@pytest.fixture
def learners(monkeypatch):
    """Takes every learner down that a run makes."""
    made = []

    class Noted(Learner):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            made.append(self)

    monkeypatch.setattr(loop, "Learner", Noted)
    return made


class Remember(Callback):
    """Everything of a learner after each step, in ``after[step]``."""

    def __init__(self, learners):
        self.learners, self.after = learners, {}

    def after_step(self, run, record):
        self.after[run.step] = everything(self.learners[-1])


def everything(learner):
    tensors = learner.tensors()
    flat = {f"{kind}/{k}": v.clone() for kind, group in tensors.items() for k, v in group.items()}
    return flat, learner.average.updates


def same(a, b):
    (left, count), (right, other) = a, b
    return (
        count == other
        and left.keys() == right.keys()
        and all(torch.equal(left[k], right[k]) for k in left)
    )


@pytest.mark.parametrize("clip", [1.0, 0])
@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_everything_is_as_before_the_step(tmp_path, learners, value, clip):
    net = spoil(Counting(), 4, float(value))
    remember = Remember(learners)
    with pytest.raises(TrainingError) as raised:
        run(tmp_path, net=net, callbacks=[remember], clip=clip)
    for word in ("step 5", "gradients are not finite: linear.bias", "clip="):
        assert word in str(raised.value)
    assert "bf16" not in str(raised.value)
    assert same(everything(learners[0]), remember.after[4])
    assert net.calls == 4
    assert all(p.grad is None for p in net.parameters())
    assert [p.name for p in tmp_path.glob("checkpoints/*")] == ["step-00000003"]
    # With other settings, it goes on from the last checkpoint.
    done = run(tmp_path, net=Counting(), clip=0.5)
    assert (done.finished, len(done.losses)) == (True, 9)
    assert all(math.isfinite(loss) for loss in done.losses)


def test_a_run_that_was_stopped_so_ends_like_one_that_was_not(tmp_path):
    with pytest.raises(TrainingError, match="step 6"):
        run(tmp_path, net=spoil(model(), 5))
    again, whole = run(tmp_path, net=model(calibrated=False)), run()
    assert again.losses == whole.losses[3:]
    for a, b in zip(again.average.parameters(), whole.average.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_part_of_the_batch_is_enough():
    with pytest.raises(TrainingError, match="step 3"):
        run(net=spoil(model(), 4), accumulate=2)


def test_the_first_parameters_are_named():
    net = Mixed()
    names = [name for name, _ in net.named_parameters()]
    for name in names[:5]:
        spoil(net, 0, name=name)
    with pytest.raises(TrainingError) as raised:
        run(net=net)
    assert f"not finite: {', '.join(names[:3])}, ...\n" in str(raised.value)


def test_a_norm_beyond_the_numbers_is_told_from_a_gradient():
    net = spoil(Mixed(), 1, 3e38)
    spoil(net, 1, 3e38, name="conv_in.bias")
    with pytest.raises(TrainingError, match=r"is inf in step 2(?s:.*)their norm is not: \S+bias"):
        run(net=net)


def test_a_loss_of_minus_infinity_is_not_finite():
    class Falling(nn.Module):
        calls = 0

        def draw(self, data, seed, step, positions, device):
            return data

        def forward(self, model, batch):
            self.calls += 1
            t = torch.zeros(len(batch[0]))
            loss = model(batch[0], t).square().mean()
            return loss - (float("inf") if self.calls == 2 else 0.0), {}

    with pytest.raises(TrainingError, match="the loss is -inf in step 2"):
        tdq.train(Mixed(), Noise(), objective=Falling(), steps=3, batch=8, progress=False)


def test_zero_clips_nothing():
    norms = []

    class Watch(Callback):
        def after_step(self, run, record):
            norms.append(record["norm"])

    free = run(steps=4, clip=0, callbacks=[Watch()])
    wide = run(steps=4, clip=10 * max(norms))
    tight = run(steps=4, clip=min(norms) / 10)
    assert free.losses == wide.losses
    assert free.losses != tight.losses


class Watch(Callback):
    def __init__(self):
        self.records = []

    def after_step(self, run, record):
        self.records.append(record)


def test_fp16_skips_a_step_that_overflows(tmp_path, learners):
    net = spoil(Mixed(), 2, float("inf"), times=3)
    watch, remember = Watch(), Remember(learners)
    done = run(tmp_path, steps=8, net=net, precision="fp16", callbacks=[watch, remember])
    assert done.finished
    assert [r["skipped"] for r in watch.records] == [0, 0, 1, 1, 1, 0, 0, 0]
    assert same(remember.after[2], remember.after[5])
    assert not same(remember.after[5], remember.after[6])
    assert learners[0].average.updates == 5
    assert learners[0].scaler.get_scale() == 65536 / 8
    # The scale goes on as well.
    saved = Checkpoints(tmp_path / "checkpoints").latest().state
    assert (saved["scaler"]["scale"], saved["updates"]) == (65536 / 8, 5)
    assert json.loads((tmp_path / "log.jsonl").read_text())["skipped"] == 0


def test_fp16_gives_up_where_no_scale_helps(tmp_path, learners):
    net = spoil(Mixed(), 4, times=100)
    remember = Remember(learners)
    with pytest.raises(TrainingError) as raised:
        run(tmp_path, steps=50, net=net, precision="fp16", callbacks=[remember], every=4)
    for word in ("linear.bias", "scale of the loss of 0.5", "bf16", "step 21"):
        assert word in str(raised.value)
    assert learners[0].scaler.get_scale() < SMALLEST_SCALE
    assert same(everything(learners[0]), remember.after[4])
    assert Checkpoints(tmp_path / "checkpoints").latest().step == 20


def test_fp16_and_a_norm_beyond_the_numbers():
    # Its scale has no part in it: the gradient itself, without the scale, is too large.
    net = spoil(Mixed(), 1, 3e38, name="linear.weight")
    for name in ("conv_in.bias", "conv_out.bias"):
        spoil(net, 1, 3e38, name=name)
    with pytest.raises(TrainingError, match=r"step 2(?s:.*)their norm is not"):
        run(net=net, precision="fp16")
