import torch

import tdquant as tdq

from ..denoisers import Mixed, calls


def test_correction_moves_the_mean_output_towards_the_float_models():
    exact = Mixed().eval()
    errors = []
    for correct in (False, True):
        model = tdq.quantize(
            Mixed().eval(), tdq.Recipe(weights=2, edges=2, activations=32), verbose=False
        )
        assert not hasattr(model.conv_in.input_quantizer, "grid")
        model = tdq.quantize(
            Mixed().eval(), tdq.Recipe(weights=2, edges=2, activations=8), verbose=False
        )
        tdq.calibrate(model, calls(), bias_correction=correct, progress=False)
        with torch.no_grad():
            shift = sum((model(x, t) - exact(x, t)).mean((0, 2, 3)) for x, t in calls())
        errors.append(shift.square().sum().item())
    assert errors[1] < 0.5 * errors[0]
