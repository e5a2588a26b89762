import warnings

import pytest
import torch

import tdquant as tdq
from tdquant.diffusion import make_scheduler
from tests.conftest import quantized
from tests.denoisers import Mixed, calls

DDIM = {"num_train_timesteps": 1000, "clip_sample": False}


def said(batches, **recipe):
    model = quantized(calibrated=False, **recipe)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        tdq.calibrate(model, batches, progress=False)
    few = [w for w in found if "distinct time" in str(w.message)]
    assert all(w.category is UserWarning and w.filename == __file__ for w in few)
    return [str(w.message) for w in few]


def sampled(steps):
    scheduler = make_scheduler("ddim", DDIM)
    return tdq.trajectories(
        Mixed().eval(), scheduler, 2, (6, 8, 8), steps=steps, batch=2, progress=False
    )


@pytest.mark.parametrize(("steps", "what"), [(1, "1 distinct time,"), (3, "3 distinct times,")])
def test_few_sampler_steps_are_told_for_scales_over_time(steps, what):
    for scale in ("temporal", "auto", "table"):
        (message,) = said(sampled(steps), scale=scale)
        assert what in message
        assert "trajectories(..., steps=" in message
    assert not said(sampled(steps), scale="static")
    assert not said(sampled(steps), scale="dynamic")


def test_eight_sampler_steps_are_enough():
    assert not said(sampled(8))


def test_calls_are_counted_by_their_times_not_by_their_number():
    x = torch.randn(4, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    (message,) = said([(x + i / 10, torch.tensor(500)) for i in range(6)])
    assert "1 distinct time," in message
    assert not said([(x, torch.tensor([0, 300, 600, 900]))])
    assert not said(list(calls(4)))
    observations = tdq.observe(quantized(calibrated=False), sampled(2), progress=False)
    (message,) = said(observations)
    assert "2 distinct times," in message
