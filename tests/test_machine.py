import torch

from tdquant.machine import machine


def test_a_gpu_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"H100 at {device}")
    assert machine("cuda:1")["device"] == "H100 at cuda:1"
    assert "device" not in machine("cpu")
    assert machine("cuda").keys() - machine().keys() == {"device"}
