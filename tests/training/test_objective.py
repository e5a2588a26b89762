import pytest
import torch

from tdquant.errors import TrainingError
from tdquant.training import DiffusionObjective
from tests.training.runs import scheduler

X = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def drawn(positions=range(4), data=X, step=7, **options):
    objective = DiffusionObjective(scheduler(options.pop("prediction", "epsilon")), **options)
    return objective, objective.draw(data, 1, step, positions, "cpu")


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_noised_sample_and_target_give_the_clean_sample_back(prediction):
    objective, batch = drawn(prediction=prediction)
    a = objective.alpha_bar[batch.t].view(-1, 1, 1, 1)
    clean = {
        "epsilon": (batch.x_t - (1 - a).sqrt() * batch.target) / a.sqrt(),
        "v_prediction": a.sqrt() * batch.x_t - (1 - a).sqrt() * batch.target,
        "sample": batch.target,
    }[prediction]
    assert torch.allclose(clean, X, atol=1e-3)


def test_draws_do_not_depend_on_the_split():
    _, whole = drawn(flip=0.5)
    _, second = drawn(range(2, 4), X[2:], flip=0.5)
    assert torch.equal(whole.x_t[2:], second.x_t)
    assert torch.equal(whole.t[2:], second.t)


def test_draws_depend_on_step_position_and_seed():
    objective, batch = drawn()
    assert not torch.equal(batch.x_t, objective.draw(X, 1, 8, range(4), "cpu").x_t)
    assert not torch.equal(batch.x_t, objective.draw(X, 2, 7, range(4), "cpu").x_t)
    assert not torch.equal(batch.x_t, objective.draw(X, 1, 7, range(4, 8), "cpu").x_t)


def test_timesteps_cover_the_range_and_flips_half():
    data = torch.arange(4.0).expand(2000, 1, 1, 4)
    objective = DiffusionObjective(scheduler("sample"), flip=0.5)
    batch = objective.draw(data, 0, 0, range(2000), "cpu")
    assert batch.t.min() < 10
    assert batch.t.max() > 989
    mirrored = (batch.target[:, 0, 0, 0] == 3).float().mean()
    assert 0.45 < mirrored < 0.55


@pytest.mark.parametrize("loss", ["l1", "l2"])
def test_the_loss_is_the_mean_distance_to_the_target(loss):
    objective, batch = drawn(loss=loss)
    value, parts = objective(lambda x, t: batch.target + 2.0, batch)
    assert value.item() == pytest.approx(2.0 if loss == "l1" else 4.0, rel=1e-5)
    assert parts == {}


def test_min_snr_weights_are_one_where_noise_dominates_and_bounded_elsewhere():
    objective, batch = drawn(min_snr=5.0)
    a = objective.alpha_bar[batch.t]
    snr = a / (1 - a)
    assert torch.allclose(batch.weight, torch.minimum(snr, torch.tensor(5.0)) / snr)
    v, batch = drawn(min_snr=5.0, prediction="v_prediction")
    a = v.alpha_bar[batch.t]
    snr = a / (1 - a)
    assert torch.allclose(batch.weight * (snr + 1), snr.clamp(max=5))


def test_a_teacher_replaces_the_target_by_its_share():
    teacher = torch.nn.Linear(6, 6)

    class Teacher(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = teacher

        def forward(self, x, t):
            return self.net(x)

    net = Teacher()
    objective, batch = drawn(teacher=net, distill=1.0)
    assert objective(net, batch)[0].item() == pytest.approx(0, abs=1e-12)
    half, batch = drawn(teacher=net, distill=0.5)
    value, _ = half(lambda x, t: batch.target, batch)
    apart = (net(batch.x_t, batch.t) - batch.target).square().mean()
    assert value.item() == pytest.approx(0.25 * apart.item(), rel=1e-4)
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert net.training
    half.eval()
    assert net.training


def test_encoding_sees_the_streams_of_the_samples():
    seen = []

    def encode(x, streams):
        seen.append([g.initial_seed() for g in streams])
        return x[:, :1] * 2

    _, batch = drawn(encode=encode)
    assert batch.x_t.shape == (4, 1, 6, 6)
    drawn(range(1, 2), X[1:2], encode=encode)
    assert seen[1] == seen[0][1:2]


def test_conditions_reach_the_model():
    objective, batch = drawn(data=(X, {"y": torch.arange(4)}))
    seen = {}

    def net(x, t, y):
        seen["y"] = y
        return x

    objective(net, batch)
    assert torch.equal(seen["y"], torch.arange(4))


def test_every_mistake_is_listed():
    with pytest.raises(TrainingError) as raised:
        DiffusionObjective(scheduler(), loss="huber", distill=2.0, features=["*"])
    for word in ("huber", "distill=2.0", "features without a teacher"):
        assert word in str(raised.value)


def test_a_scheduler_without_a_discrete_schedule_is_refused():
    from diffusers import FlowMatchEulerDiscreteScheduler

    with pytest.raises(TrainingError, match="alphas_cumprod"):
        DiffusionObjective(FlowMatchEulerDiscreteScheduler())
