"""What the polite contract compares: a user's model and process, before and after a verb."""

import os
import random
import signal
import sys
import warnings

import numpy as np
import torch
from torch import nn

_HOOKS = [name for name in nn.Module().__dict__ if name.endswith("hooks")]


class Net(nn.Module):
    """A denoiser with a frozen batch norm in evaluation mode, dropout in training mode, a frozen
    layer, a gradient, and a user's hook that counts calls.
    """

    def __init__(self):
        super().__init__()
        gen = torch.Generator().manual_seed(0)
        self.time = nn.Linear(1, 4)
        self.first = nn.Linear(4, 8)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.5)
        self.mid = nn.Linear(8, 8)
        self.last = nn.Linear(8, 4)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=gen) / 2)
        self.calls, self.fail = 0, None

    def forward(self, x, t):
        self.calls += 1
        if self.fail is not None and self.calls >= self.fail[0]:
            raise self.fail[1]
        time = torch.as_tensor(t).to(x.dtype).reshape(-1, 1).expand(len(x), 1) / 1000
        h = nn.functional.silu(self.first(x + self.time(time)))
        h = self.drop(nn.functional.silu(self.norm(h)))
        return self.last(h + self.mid(h))


def net():
    model = Net().train()
    model.norm.eval().requires_grad_(False)
    model.mid.requires_grad_(False)
    model.last.weight.grad = torch.ones_like(model.last.weight)
    model.first.register_forward_hook(_count)
    model.register_forward_pre_hook(_nothing)
    return model


def _count(module, args, output):
    module.seen = getattr(module, "seen", 0) + 1


def _nothing(module, args):
    pass


def of_model(model):
    """All that a verb that does not change a model leaves as it is, and one that fails."""
    seen = {}
    for path, module in model.named_modules():
        seen[path, "itself"] = module, type(module), module.training
        for name, value in (*module._parameters.items(), *module._buffers.items()):
            if value is not None:
                seen[path, name] = value, value.dtype, value.requires_grad, value.grad
        for name in _HOOKS:
            seen[path, name] = list(vars(module)[name].values())
    state = getattr(model, "tdq", None)
    seen["tdq"] = None if state is None else {k: v for k, v in vars(state).items() if k != "roles"}
    return seen


def numbers(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def of_process():
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),
        "random": random.getstate(),
        "filters": list(warnings.filters),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "meta_path": list(sys.meta_path),
        "signals": [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)],
        "cwd": os.getcwd(),
        "environment": dict(os.environ),
        "module": {k: v for k, v in vars(nn.Module).items() if k != "__doc__"},
        "modes": len(torch.overrides._get_current_function_mode_stack()),
        "hooks": list(torch.nn.modules.module._global_parameter_registration_hooks),
    }


def difference(before, after):
    """The keys of what is no longer the same."""
    assert before.keys() == after.keys()
    same = lambda a, b: a is b or (not isinstance(a, torch.Tensor) and a == b)  # noqa: E731

    def alike(a, b):
        if isinstance(a, (tuple, list)) and type(a) is type(b) and len(a) == len(b):
            return all(map(alike, a, b))
        return same(a, b)

    return [key for key in before if not alike(before[key], after[key])]
