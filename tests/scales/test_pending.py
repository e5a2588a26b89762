import pytest
import torch

import tdquant as tdq
from tests.denoisers import Mixed, calls


def quantized():
    return tdq.quantize(Mixed().eval(), tdq.Recipe(4, 6, scale="temporal", remedies=()))


def test_tensors_of_a_calibrated_model_are_for_a_calibrated_one():
    saved = tdq.calibrate(quantized(), calls(4), progress=False)
    state = {name: tensor.clone() for name, tensor in saved.state_dict().items()}
    state["grouped.weight"] += 0.1
    model = quantized()
    with pytest.raises(RuntimeError) as raised:
        model.load_state_dict(state)
    assert str(raised.value).count("this one is not calibrated: call tdq.calibrate") == 1
    tdq.calibrate(model, calls(4), progress=False).load_state_dict(state)
    saved.load_state_dict(state)
    x = torch.ones(1, 6, 8, 8)
    assert torch.equal(model(x, 7), saved(x, 7))


def test_tensors_of_an_uncalibrated_model_load_into_one():
    model = quantized()
    model.load_state_dict(quantized().state_dict())
