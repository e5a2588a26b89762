import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.conftest import THREADS
from tests.training.runs import run

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _one_thread():
    # As the processes have: other numbers of threads round otherwise.
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(THREADS)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def torchrun(*runs):
    """Starts the runs, each a folder, steps and options, one after the other."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2",
        "--master_port", str(free_port()), "-m", "tests.training.runs",
    ]  # fmt: skip
    for out, steps, options in runs:
        command += [str(out), str(steps), json.dumps(options)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip


def two_processes(*runs):
    """Runs on two gloo processes as ``accelerate launch`` and torchrun start them; what they
    print.
    """
    process = torchrun(*runs)
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors[-3000:]
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A folder with a run whose gradient was spoilt in one process and a whole one after it, and
    what two processes printed.
    """
    folder = tmp_path_factory.mktemp("two")
    spoilt = (folder / "spoilt", 12, {"spoilt": [1, 4]})
    return folder, two_processes(spoilt, (folder / "whole", 12, {}))


def test_every_process_raises_and_keeps_what_it_had(told):
    folder, (*failed, _) = told
    assert len(failed) == 2
    assert failed[0] == failed[1]
    assert "step 5" in failed[0]["error"]
    assert "linear.bias" in failed[0]["error"]
    assert [p.name for p in (folder / "spoilt").glob("checkpoints/*")] == ["step-00000003"]
    assert run(folder / "spoilt", steps=5, accumulate=2).finished  # and one goes on from there


def test_two_processes_train_like_one(told):
    folder, (*_, whole) = told
    # Equal parts add up to equal bits; the whole batch at once differs by rounding, which
    # low-bit rounding amplifies after a while.
    assert whole["losses"] == run(accumulate=2).losses
    assert whole["losses"][:3] == pytest.approx(run(steps=3, warmup=0).losses, rel=1e-5)
    # One process goes on where two stopped.
    on = run(folder / "whole", steps=14, accumulate=2).losses
    assert on == run(steps=14, accumulate=2).losses[12:]


@pytest.mark.slow
def test_two_processes_give_the_loss_curve_of_one_float_run():
    both = two_processes(("-", 12, {"float_model": True}))[0]["losses"]
    assert both == pytest.approx(run(float_model=True).losses, rel=1e-5)


@pytest.mark.slow
def test_sharded_parameters_train_like_whole_ones(tmp_path):
    both = two_processes((tmp_path, 6, {"sharded": True}))[0]["losses"]
    whole = run(steps=6, accumulate=2)
    assert both == pytest.approx(whole.losses, rel=1e-5)
    # What they saved is whole: one process goes on from it.
    assert len(run(tmp_path, steps=8, accumulate=2).losses) == 2


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="looks for processes in /proc")
def test_a_signal_to_every_process_under_torchrun_is_one(tmp_path):
    """As Slurm ends a job: each worker receives it directly, and once more through torchrun."""
    process = torchrun((tmp_path, 100_000, {"every": 10**6}))
    log = tmp_path / "log.jsonl"
    deadline = time.time() + 120
    while not log.exists() and time.time() < deadline:
        time.sleep(0.02)
    commands = {f.parent.name: f.read_text() for f in Path("/proc").glob("[0-9]*/cmdline")}
    ours = [int(number) for number, words in commands.items() if str(tmp_path) in words]
    assert len(ours) == 3
    for number in ours:
        os.kill(number, signal.SIGTERM)
    output, errors = process.communicate(timeout=120)
    told = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    assert [line["finished"] for line in told] == [False], errors[-3000:]
    step = len(told[0]["losses"])
    assert [p.name for p in tmp_path.glob("checkpoints/*")] == [f"step-{step:08d}"]
