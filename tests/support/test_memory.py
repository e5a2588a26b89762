import copy

import torch
from torch import nn

import tdquant as tdq
from tdquant.support.memory import resident_bytes, trim_heap


def test_every_tensor_counts_once():
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
    expected = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    assert resident_bytes(model) == expected
    model.append(model[0])
    assert resident_bytes(model) == expected


def test_integers_take_less(frozen, x):
    fast = tdq.compile(frozen, "onednn", example=(x, torch.tensor(3)))
    kernels = [m for m in fast.modules() if getattr(m, "packed_tensors", None)]
    assert kernels
    assert resident_bytes(fast) > sum(t.numel() for m in kernels for t in m.packed_tensors)
    assert resident_bytes(copy.deepcopy(frozen)) == resident_bytes(frozen)


def test_giving_back_is_harmless():
    trim_heap()
