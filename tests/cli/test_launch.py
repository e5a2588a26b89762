import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
import torch

from tdquant.cli import launch
from tdquant.cli.launch import choose_devices, device_ids, run_together, spread
from tdquant.cli.options import split_overrides, truth
from tdquant.cli.train import learning_rate
from tdquant.errors import TDQError
from tdquant.lab.run_folder import RunFolder
from tdquant.training import signals
from tests.lab.runs.tiny import workspace

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("text", "ids"), [(None, []), ("0", [0]), ("0,", [0]), ("0,1", [0, 1]), ("3, 1", [3, 1])]
)
def test_device_numbers(text, ids):
    assert device_ids(text) == ids


@pytest.mark.parametrize("text", ["a", "-1", "0,0", "0;1"])
def test_what_is_no_device(text):
    with pytest.raises(TDQError, match="--gpus"):
        device_ids(text)


def test_one_device_or_a_launched_process_works_itself(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "")
    assert spread("0", []) is None
    monkeypatch.setenv("RANK", "1")
    assert spread("0,1", []) is None


def test_truth():
    import argparse

    assert [truth(w) for w in ("True", "yes", "1", "False", "no", "0")] == [True] * 3 + [False] * 3
    with pytest.raises(argparse.ArgumentTypeError):
        truth("maybe")


def test_overrides_are_told_from_files(tmp_path):
    file = tmp_path / "a=b.yaml"
    file.touch()
    assert split_overrides(["c.yaml", "x.y=3", str(file)]) == (["c.yaml", str(file)], ["x.y=3"])


def test_learning_rates(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert learning_rate(5e-5, False, {"batch_size": 32}, 2)[0] == 5e-5
    assert learning_rate(5e-5, True, {"batch_size": 32}, 2)[0] == pytest.approx(5e-5 * 64)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert learning_rate(5e-5, True, {"batch_size": 32}, 1)[0] == pytest.approx(5e-5 * 64)


def test_visible_devices_are_those_that_were_named(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "")
    assert spread("2", []) is None
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "6"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert spread("3", []) is None
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"


@pytest.fixture
def gpus(monkeypatch):
    """A machine with a number of GPUs, whose CUDA looks at the environment once."""
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "")

    def count(physical, visible):
        number = 0
        for name in range(physical) if visible is None else visible.split(","):
            if not str(name).isdigit() or int(name) >= physical:
                break  # as CUDA: the devices before the first that is not there
            number += 1
        return number

    def make(physical, visible):
        seen = []
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

        def here():
            seen.append(count(physical, os.environ["CUDA_VISIBLE_DEVICES"]))
            return seen[0]

        monkeypatch.setattr(launch, "_count", here)
        monkeypatch.setattr(launch, "_count_afresh", lambda visible: count(physical, visible))

    return make


@pytest.mark.parametrize(
    ("physical", "visible", "ids", "chosen"),
    [
        (2, None, [0], "0"),
        (2, None, [1, 0], "1,0"),
        (8, "4,5,6", [2], "6"),
        (8, "4, 5, 6", [0, 2], "4,6"),
    ],
)
def test_numbers_are_places_among_the_visible(gpus, physical, visible, ids, chosen):
    gpus(physical, visible)
    assert choose_devices(ids) is True
    assert os.environ["CUDA_VISIBLE_DEVICES"] == chosen
    assert os.environ["ACCELERATE_USE_CPU"] == ""


@pytest.mark.parametrize(
    ("physical", "visible", "gpu", "words"),
    [
        (2, None, "5", ["no GPU 5 [--gpus 5]", "visible: 0, 1\n"]),
        (2, None, "0,5,7", ["no GPU 5, 7 [--gpus 0,5,7]", "visible: 0, 1\n"]),
        (2, None, "2,0", ["no GPU 2 [--gpus 2,0]", "visible: 0, 1\n"]),
        (8, "4,5,6", "3", ["no GPU 3", "visible: 0, 1, 2 (= 4, 5, 6)\n"]),
        (8, "4,5,6", "2,3", ["no GPU 3", "visible: 0, 1, 2 (= 4, 5, 6)\n"]),
        (6, "4,5,6", "2", ["no GPU 2", "visible: 0, 1 (= 4, 5)\n"]),
    ],
)
def test_a_device_that_is_not_there(gpus, physical, visible, gpu, words):
    gpus(physical, visible)
    with pytest.raises(TDQError) as raised:
        spread(gpu, [])
    for word in words:
        assert word in str(raised.value)
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == visible


@pytest.mark.parametrize(
    ("physical", "visible"), [(0, None), (0, "4,5,6"), (2, ""), (2, "-1"), (0, "0")]
)
def test_without_gpus_a_number_is_a_process(gpus, physical, visible, capsys):
    gpus(physical, visible)
    assert spread("3", []) is None
    assert os.environ["ACCELERATE_USE_CPU"] == "true"
    assert "no GPU here; 1 on the CPU" in capsys.readouterr().err


def test_devices_are_counted_by_another_process(monkeypatch):
    """Whose torch is another here: it sees as many as are named."""
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    told = "print('devices', len(os.environ.get('CUDA_VISIBLE_DEVICES', '1,2').split(',')))"
    monkeypatch.setattr(launch, "_COUNT", "import os; print('hello'); " + told)
    assert launch._count_afresh("4,5,6") == 3
    assert launch._count_afresh(None) == 2
    monkeypatch.setattr(launch, "_COUNT", "raise SystemExit(1)")
    assert launch._count_afresh(None) == 0


def test_what_counts_devices_runs():
    counted = subprocess.run([sys.executable, "-c", launch._COUNT], capture_output=True, text=True)
    import torch

    assert counted.stdout == f"devices {launch._count()}\n"
    assert launch._count() == (torch.cuda.device_count() if torch.cuda.is_available() else 0)


def python(program):
    """A process that notes its signals in ``signals-RANK`` of the present folder."""
    prelude = (
        "import os, signal, sys, time\n"
        "rank = int(os.environ['RANK'])\n"
        "def note(*numbers):\n"
        "    for number in numbers:\n"
        "        signal.signal(number, lambda n, f: open(f'signals-{rank}', 'a').write(f'{n} '))\n"
        "def ready(): open(f'ready-{rank}', 'w').close()\n"
        "def signals(): return open(f'signals-{rank}').read().split()\n"
        "def wait(count=1):\n"
        "    while not os.path.exists(f'signals-{rank}') or len(signals()) < count:\n"
        "        time.sleep(0.01)\n"
    )
    return [sys.executable, "-c", prelude + program]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "GRACE", 0.5)
    monkeypatch.setattr(launch, "PRESS", 0.1)
    monkeypatch.setattr(signals, "REPEAT", 0.0)
    return tmp_path


def when_ready(count, *actions):
    """Runs actions, a second apart, when that many processes are ready."""

    def work():
        deadline = time.time() + 60
        while len(list(Path().glob("ready-*"))) < count and time.time() < deadline:
            time.sleep(0.01)
        for action in actions:
            action()
            time.sleep(1)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def press(number=signal.SIGINT):
    return lambda: os.kill(os.getpid(), number)


def test_processes_find_one_another(folder, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    names = "WORLD_SIZE LOCAL_WORLD_SIZE RANK LOCAL_RANK OMP_NUM_THREADS MASTER_ADDR MASTER_PORT"
    program = (
        f"print(*[os.environ[n] for n in '{names}'.split()], file=open(f'env-{{rank}}', 'w'))"
    )
    assert run_together(python(program), 3) == 0
    told = [Path(f"env-{rank}").read_text().split() for rank in range(3)]
    assert [line[:6] for line in told] == [
        ["3", "3", str(rank), str(rank), "1", "127.0.0.1"] for rank in range(3)
    ]
    assert len({line[6] for line in told}) == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert run_together(python(program), 1) == 0
    assert Path("env-0").read_text().split()[4] == "5"


@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("sys.exit(7 if rank == 1 else 0)", 7),
        ("os.kill(os.getpid(), signal.SIGKILL) if rank == 1 else time.sleep(600)", 137),
        # Nobody asked: a signal that ends a process is a failure.
        ("os.kill(os.getpid(), signal.SIGTERM) if rank == 1 else time.sleep(600)", 143),
        ("sys.exit(3) if rank == 1 else time.sleep(600)", 3),
        ("sys.exit(130)", 130),
    ],
)
def test_the_status_is_that_of_the_one_that_failed(folder, program, status):
    assert run_together(python(program), 2) == status


def test_the_others_may_save_before_they_end(folder):
    program = (
        "note(signal.SIGTERM); ready()\n"
        "if rank == 0: wait(); open('saved', 'w'); sys.exit(0)\n"
        "while not os.path.exists('ready-0'): time.sleep(0.01)\n"
        "sys.exit(3)"
    )
    assert run_together(python(program), 2) == 3
    assert Path("saved").exists()


def test_one_that_does_not_end_is_killed(folder):
    program = (
        "note(signal.SIGTERM, signal.SIGINT); ready()\n"
        "while not os.path.exists('ready-0'): time.sleep(0.01)\n"
        "sys.exit(3) if rank else time.sleep(600)"
    )
    began = time.monotonic()
    assert run_together(python(program), 2) == 3
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_passed_on_once(folder, number):
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    program = (
        "note(signal.SIGINT, signal.SIGTERM); ready(); wait(); time.sleep(0.5); sys.exit(130)"
    )

    def thrice():
        for _ in range(3):
            press(number)()

    thread = when_ready(2, thrice)
    assert run_together(python(program), 2) == 130
    thread.join()
    for rank in range(2):
        assert Path(f"signals-{rank}").read_text().split() == [str(int(number))]
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_what_was_done_before_the_signal_arrived_is_done(folder):
    thread = when_ready(2, press())
    assert run_together(python("note(signal.SIGINT); ready(); wait()"), 2) == 0
    thread.join()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_processes_without_a_handler_end_by_the_signal(folder, number):
    program = "signal.signal(signal.SIGINT, signal.SIG_DFL); ready(); time.sleep(600)"
    thread = when_ready(2, press(number))
    assert run_together(python(program), 2) == 130
    thread.join()


def test_one_that_fails_after_the_signal_has_failed(folder):
    program = "note(signal.SIGINT, signal.SIGTERM); ready(); wait(); sys.exit(5 * rank)"
    thread = when_ready(2, press())
    assert run_together(python(program), 2) == 5
    thread.join()


def test_a_later_signal_stops_at_once(folder):
    program = "note(signal.SIGINT); ready(); wait(2); sys.exit(130)"
    thread = when_ready(2, press(), press())
    assert run_together(python(program), 2) == 130
    thread.join()


def test_what_does_not_stop_at_once_is_killed(folder):
    program = "note(signal.SIGINT, signal.SIGTERM); ready(); time.sleep(600)"
    began = time.monotonic()
    thread = when_ready(2, press(signal.SIGTERM), press(signal.SIGTERM))
    assert run_together(python(program), 2) == 130
    assert time.monotonic() - began < 60
    thread.join()


def test_what_a_killed_process_has_started_goes_with_it(folder):
    program = (
        "import subprocess\n"
        "note(signal.SIGTERM)\n"
        "if rank == 0:\n"
        "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "    print(child.pid, file=open('child', 'w')); ready(); time.sleep(600)\n"
        "while not os.path.exists('ready-0'): time.sleep(0.01)\n"
        "sys.exit(3)"
    )
    assert run_together(python(program), 2) == 3
    state = Path(f"/proc/{Path('child').read_text().strip()}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"


def test_a_program_that_is_not_there_leaves_the_handlers(folder):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(FileNotFoundError):
        run_together([str(folder / "nothing")], 2)
    assert signal.getsignal(signal.SIGINT) is before


def test_handlers_that_c_code_had_installed(folder, monkeypatch):
    """Python shows them as None, and cannot install them again."""
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    install = signal.signal

    def from_c(number, handler):
        install(number, handler)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(signal, "signal", from_c)
            assert run_together(python("sys.exit(4)"), 1) == 4
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        for number, handler in before.items():
            install(number, handler)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return workspace(tmp_path_factory.mktemp("workspace"))


def train(place, logs, gpus, steps):
    """The published command, at the head of a process group as a terminal starts it."""
    command = [sys.executable, str(ROOT / "main.py"), "--base", str(place / "config.yaml")]
    command += ["--ckpt", str(place / "model.safetensors"), "--scale_lr", "False", "--n_bit_w"]
    command += ["4", "--n_bit_a", "4", "--name", "run", "--use_dynamic", "--logdir", str(logs)]
    command += ["--quiet", "--train", "True", "--threads", "1", "--max_steps", str(steps)]
    share = 2 if gpus == "0,1" else 4  # of the same batch
    command += ["tdquant.save_every=1000000", f"data.params.batch_size={share}"]
    command += [] if gpus is None else ["--gpus", gpus]
    environment = {k: v for k, v in os.environ.items() if k != "RANK"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def processes_with(word):
    """Numbers of the processes that have a word on their command line."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if word in file.read_text():
                found.append(int(file.parent.name))
        except OSError:
            continue  # it has ended meanwhile
    return found


def interrupted(place, logs, gpus, stop):
    """A run that is stopped in the middle of training; its status and what it wrote."""
    process = train(place, logs, gpus, 1_000_000)
    log, deadline = logs / "run" / "log.jsonl", time.time() + 120
    while not log.exists() and process.poll() is None and time.time() < deadline:
        time.sleep(0.02)
    assert log.exists(), process.communicate()[1]
    stop(process.pid)
    output, errors = process.communicate(timeout=120)
    return process.returncode, output + errors


def group(number):
    return lambda pid: os.killpg(pid, number)


def alone(number):
    return lambda pid: os.kill(pid, number)


@pytest.mark.skipif(not Path("/proc").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize(
    ("gpus", "stop"),
    [
        pytest.param("0,1", group(signal.SIGINT), id="two-ctrl-c", marks=pytest.mark.slow),
        pytest.param("0,1", alone(signal.SIGTERM), id="two-sigterm", marks=pytest.mark.slow),
        pytest.param(None, group(signal.SIGINT), id="one-ctrl-c", marks=pytest.mark.slow),
        pytest.param("0", alone(signal.SIGTERM), id="one-sigterm"),
    ],
)
def test_training_that_is_stopped_leaves_a_checkpoint(place, tmp_path, gpus, stop):
    status, told = interrupted(place, tmp_path, gpus, stop)
    assert status == 130, told
    assert "the same command goes on from there" in told
    assert processes_with(str(tmp_path)) == []
    folder = RunFolder(tmp_path / "run")
    step = folder.checkpoints.latest().step
    assert [p.name for p in folder.checkpoints.folder.iterdir()] == [f"step-{step:08d}"]
    process = train(place, tmp_path, gpus, step + 2)
    output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert "going on in" in output
    assert folder.checkpoints.latest().step == step + 2


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells children on Linux only")
def test_nobody_is_left_when_the_launcher_is_killed(place, tmp_path):
    status, told = interrupted(place, tmp_path, "0,1", alone(signal.SIGKILL))
    assert status == -signal.SIGKILL
    deadline = time.time() + 120
    while processes_with(str(tmp_path)) and time.time() < deadline:
        time.sleep(0.05)
    assert processes_with(str(tmp_path)) == []
    assert RunFolder(tmp_path / "run").checkpoints.latest() is not None, told
