"""A small training run, for tests and, as ``python -m tests.training.runs OUT STEPS OPTIONS``, for
processes that are killed or work together. Further triples are further runs of theirs.
"""

import contextlib
import copy
import functools
import json
import os
import sys
import time
from dataclasses import fields
from types import SimpleNamespace

import torch
from torch.utils.data import Dataset

import tdquant as tdq
from tdquant.cli.launch import leave_group
from tdquant.training import Checkpointing, Optimization
from tests.conftest import THREADS
from tests.denoisers import Mixed, calls


class Noise(Dataset):
    """32 fixed samples."""

    def __init__(self, count=32, slow=0.0):
        self.slow = slow
        self.samples = torch.randn(count, 6, 8, 8, generator=torch.Generator().manual_seed(3))

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        time.sleep(self.slow)
        return self.samples[index]


def scheduler(prediction="epsilon"):
    from diffusers import DDPMScheduler

    return DDPMScheduler(1000, prediction_type=prediction)


@functools.lru_cache
def _quantized(calibrated, scale, exclude):
    net = Mixed()
    recipe = tdq.Recipe(weights=4, activations=4, scale=scale, exclude=exclude)
    tdq.quantize(net, recipe)
    if calibrated:
        tdq.calibrate(net, calls(), progress=False)
    return net


def model(calibrated=True, scale="temporal", exclude=()):
    """A Mixed model at W4A4 of its own."""
    return copy.deepcopy(_quantized(calibrated, scale, exclude))


def spoil(net, at, value=float("nan"), times=1, name="linear.bias"):
    """Lets backward passes from number ``at`` on, ``times`` of them, give one parameter a gradient
    with ``value`` in it.
    """
    seen = iter(range(10**9))

    def hook(gradient):
        if not at <= next(seen) < at + times:
            return gradient
        gradient = gradient.clone()
        gradient.view(-1)[0] = value
        return gradient

    net.get_parameter(name).register_hook(hook)
    return net


def run(out=None, steps=12, net=None, float_model=False, slow=0.0, **options):
    options = {"batch": 8, "warmup": 0, "progress": False, "every": 3, "seed": 5} | options
    for name, kind in (("optimization", Optimization), ("checkpoints", Checkpointing)):
        own = {f.name: options.pop(f.name) for f in fields(kind) if f.name in options}
        options[name] = kind(**own)
    if net is None:
        net = Mixed() if float_model else model()
    net = tdq.train(net, Noise(slow=slow), scheduler(), steps=steps, out=out, rate=1e-3, **options)
    return SimpleNamespace(model=net, **vars(net.tdq.training))


class Sharding:
    """Does on the CPU what Accelerate's FSDP does on GPUs only: every parameter in two halves."""

    distributed_type = "FSDP"

    def __init__(self):
        torch.distributed.init_process_group("gloo")
        self.process_index = torch.distributed.get_rank()
        self.num_processes = torch.distributed.get_world_size()
        self.is_main_process = self.process_index == 0
        self.device = torch.device("cpu")
        self.wait_for_everyone = torch.distributed.barrier

    def prepare(self, model, optimizer):
        names = {p: n for n, p in model.named_parameters()}
        mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (self.num_processes,))
        torch.distributed.fsdp.fully_shard(model.linear, mesh=mesh)
        torch.distributed.fsdp.fully_shard(model, mesh=mesh)
        shards = dict(model.named_parameters())
        for group in optimizer.param_groups:
            group["params"] = [shards[names[p]] for p in group["params"]]
        return model, SimpleNamespace(optimizer=optimizer)

    def reduce(self, tensor, kind):
        torch.distributed.all_reduce(tensor)
        return tensor / self.num_processes if kind == "mean" else tensor

    @contextlib.contextmanager
    def no_sync(self, model):
        model.set_requires_gradient_sync(False)
        yield
        model.set_requires_gradient_sync(True)


def tell(**found):
    # One write, line end included: the processes share a pipe, and torchrun's are unbuffered.
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()


def main():
    sys.modules["peft"] = sys.modules["transformers"] = None  # diffusers imports them for seconds
    torch.set_num_threads(THREADS)
    for i in range(1, len(sys.argv), 3):
        one_run(sys.argv[i], int(sys.argv[i + 1]), json.loads(sys.argv[i + 2]))
    leave_group()


def one_run(out, steps, options):
    if options.pop("sharded", False):
        options["accelerator"] = Sharding()
    spoilt = options.pop("spoilt", None)  # the process and the step of a NaN in a gradient
    if spoilt is not None:
        options["net"] = model()
        if os.environ["RANK"] == str(spoilt[0]):
            spoil(options["net"], spoilt[1])
    try:
        done = run(None if out == "-" else out, steps, **options)
    except tdq.TDQError as error:
        if spoilt is None:
            raise
        digest = [float(p.double().sum()) for p in options["net"].parameters()]
        tell(error=str(error), parameters=digest)
    else:
        if os.environ.get("RANK", "0") == "0":
            tell(losses=done.losses, finished=done.finished)


if __name__ == "__main__":
    main()
