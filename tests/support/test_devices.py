from types import SimpleNamespace

import torch
from torch import nn

from tdquant.support.devices import device_of


def test_the_device_of_the_first_real_tensor():
    model = nn.Sequential(nn.Linear(2, 2, device="meta"), nn.BatchNorm1d(2))
    assert device_of(model) == torch.device("cpu")


def test_an_offloaded_model_runs_on_its_execution_device():
    model = nn.Sequential(nn.Linear(2, 2, device="meta"))
    model[0]._hf_hook = SimpleNamespace(execution_device="cuda:1")
    assert device_of(model) == torch.device("cuda", 1)


def test_what_is_no_module_runs_on_the_cpu():
    assert device_of(lambda x, t: x) == torch.device("cpu")
    assert device_of(nn.Identity()) == torch.device("cpu")
