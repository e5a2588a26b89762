"""A saved model that another process builds without importing diffusers, which takes seconds."""

import torch

import tdquant as tdq
from tdquant.models import UNetModel
from tests.denoisers import calls
from tests.models.compvis.examples import BASE


def saved_unet(folder):
    torch.manual_seed(0)
    model = UNetModel(**BASE).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # published models begin with zeros at their ends
            parameter.copy_(torch.randn(parameter.shape) * 0.1)
    tdq.quantize(model, tdq.Recipe(weights=4, activations=8, scale="static"))
    tdq.calibrate(model, calls(4, 2, (3, 8, 8)), progress=False)
    return tdq.save(tdq.freeze(model), folder)
