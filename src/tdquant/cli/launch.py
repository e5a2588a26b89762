"""``--gpus 0,1``: one process for each device, as ``accelerate launch`` or torchrun would start.

On a machine without GPUs each number stands for a process on the CPU.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from types import FrameType

from tdquant.errors import TDQError

INTERRUPTED = 130
"""Exit status of a run that a signal stopped in good order."""

PRESS = 1.0
"""Seconds in which further signals count as the first: nobody presses Ctrl-C that fast."""

GRACE = 10.0
"""Seconds before processes that do not end are killed."""

_TICK = 0.05
_PARENT = "TDQUANT_LAUNCHER"
_COUNT = (
    "import torch; print('devices', torch.cuda.is_available() and torch.cuda.device_count() or 0)"
)


def device_ids(gpus: str | None) -> list[int]:
    """The numbers in ``"0"``, ``"0,"`` or ``"0,1"``.

    Raises:
        TDQError: It is no list of numbers.
    """
    if gpus is None:
        return []
    try:
        ids = [int(part) for part in gpus.split(",") if part.strip()]
    except ValueError:
        ids = [-1]
    if any(i < 0 for i in ids) or len(set(ids)) != len(ids):
        raise TDQError(f"gpus={gpus!r}", where="--gpus", fix="device numbers, such as 0 or 0,1")
    return ids


def own_share() -> tuple[int, int]:
    """Rank of this process, and the number of processes that share its work."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def spread(gpus: str | None, arguments: list[str]) -> int | None:
    """Runs the command on the devices that ``--gpus`` names.

    Returns:
        The exit status of the processes that did the work, or None if this one has to.

    Raises:
        TDQError: It is no list of numbers, or this machine has GPUs, but none with that number.
    """
    ids = device_ids(gpus)
    if "RANK" in os.environ:  # a launcher has started this process already
        _end_with_launcher()
        return None
    if not ids:
        return None
    if not choose_devices(ids):
        os.environ["ACCELERATE_USE_CPU"] = "true"
        print(f"--gpus {gpus}: no GPU here; {len(ids)} on the CPU", file=sys.stderr)
    if len(ids) == 1:
        return None
    return run_together([sys.executable, "-m", "tdquant", *arguments], len(ids))


def choose_devices(ids: list[int]) -> bool:
    """Leaves only these of the visible GPUs visible to this process and to those it starts.

    Arguments:
        ids: Places in CUDA_VISIBLE_DEVICES, or numbers of devices where that is not set.

    Returns:
        Whether there are GPUs at all.

    Raises:
        TDQError: There are, but not all of these.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = None if visible is None else [n.strip() for n in visible.split(",") if n.strip()]
    chosen = [str(i) for i in ids] if names is None else [names[i] for i in ids if i < len(names)]
    # CUDA reads the variable once, when it is first asked for devices, and counting them may ask
    # it. So the choice comes first; if it falls short, another process counts without it.
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(chosen)
    if _count() == len(ids):
        return True
    count = 0 if names == [] else _count_afresh(visible)
    if not count:
        return False
    if visible is None:
        del os.environ["CUDA_VISIBLE_DEVICES"]
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = visible
    missing = [i for i in ids if i >= count] or ids
    places = ", ".join(map(str, range(count)))
    raise TDQError(
        f"no GPU {', '.join(map(str, missing))}",
        where=f"--gpus {','.join(map(str, ids))}",
        why=f"visible: {places}" + (f" (= {', '.join(names[:count])})" if names else ""),
        fix="numbers of visible devices",
    )


def _count() -> int:
    """How many GPUs this process can use."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _count_afresh(visible: str | None) -> int:
    """How many GPUs a new process can use under a value of CUDA_VISIBLE_DEVICES."""
    import torch

    if not torch.backends.cuda.is_built():
        return 0
    environment = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
    if visible is not None:
        environment["CUDA_VISIBLE_DEVICES"] = visible
    output = subprocess.run(
        [sys.executable, "-c", _COUNT], env=environment, stdout=subprocess.PIPE, text=True
    ).stdout
    counts = [line.split()[1] for line in output.splitlines() if line.startswith("devices ")]
    return int(counts[0]) if counts else 0


def leave_group() -> None:
    """Leaves the group of processes, if this is in one: its threads can abort an interpreter that
    ends. Call it after training, or while its error is handled.
    """
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        # A DistributedDataParallel that outlives the group, kept by the frames of an error, joins
        # the group's threads with the interpreter's lock held, and those wait for the lock.
        traceback.clear_frames(sys.exc_info()[2])
        gc.collect()
        torch.distributed.destroy_process_group()


def run_together(command: list[str], count: int) -> int:
    """Runs a command on several processes, which find one another as torchrun's processes do.

    The first SIGINT or SIGTERM is passed on to every process, once; another one, later, stops
    them at once. If one process fails, the others are ended.

    torchrun does not do because a stopped run has to end with a checkpoint and status 130:
    torchrun passes every signal on, so that one that arrives twice, from the terminal and from
    here, stops its processes at once; it kills those that need more than 30 seconds for step and
    checkpoint; and its status is always 1.

    Arguments:
        command: The program and its arguments.
        count: Number of processes.

    Returns:
        0 if all did their work, 130 if a signal stopped them in good order, else the status of
        the first that failed: 128 + n if signal n ended it.
    """
    from tdquant.training.signals import put_back, take_over

    group = _Group()
    before = take_over(group.note)
    try:
        group.start(command, count)
        return group.wait()
    finally:
        group.kill()  # nothing unless starting or waiting failed
        put_back(before)


class _Group:
    """Processes that work together."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self.failed: int | None = None
        self._noted: list[int] = []
        self._asked: float | None = None
        self._stop_at = self._kill_at = float("inf")
        self._stopped = False

    def start(self, command: list[str], count: int) -> None:
        """Starts the processes, each in its own session: signals of the terminal reach only this
        process, which decides what to pass on.
        """
        common = os.environ | {
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
            _PARENT: str(os.getpid()),
        }
        common.setdefault("OMP_NUM_THREADS", "1")  # as torchrun: or each takes every core
        for rank in map(str, range(count)):
            own = common | {"RANK": rank, "LOCAL_RANK": rank}
            self.processes.append(subprocess.Popen(command, env=own, start_new_session=True))

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handles both signals: ``wait`` acts on them."""
        self._noted.append(number)

    def wait(self) -> int:
        """Waits until all have ended; returns the status."""
        while None in [process.poll() for process in self.processes]:  # asks every one
            now = time.monotonic()
            while self._noted:
                self._pass_on(self._noted.pop(0), now)
            if now >= self._stop_at:
                self._stop(now)
            self._notice_failure(now)
            if now >= self._kill_at:
                self.kill()
            time.sleep(_TICK)
        self._notice_failure(time.monotonic())
        if self.failed is not None:
            return self.failed if self.failed > 0 else 128 - self.failed
        # After a signal too: what was done before it arrived is done.
        return INTERRUPTED if any(process.returncode for process in self.processes) else 0

    def kill(self) -> None:
        """Kills those that run, and their children."""
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _pass_on(self, number: int, now: float) -> None:
        if self._asked is None:
            self._asked = now
            self._send(number)
        elif now - self._asked >= PRESS and not self._stopped:
            from tdquant.training.signals import REPEAT

            # Not earlier than the processes take it for another one.
            self._stop_at = min(self._stop_at, max(now, self._asked + REPEAT + 0.5))

    def _stop(self, now: float) -> None:
        self._stop_at, self._stopped = float("inf"), True
        self._kill_at = min(self._kill_at, now + GRACE)
        self._send(signal.SIGINT)

    def _notice_failure(self, now: float) -> None:
        """Ends the others if one has failed: some would wait for it forever."""
        if self.failed is not None or self._stopped:
            return
        good = {None, 0, INTERRUPTED}
        if self._asked is not None:  # it came before the process could do anything about it
            good |= {-signal.SIGINT, -signal.SIGTERM}
        bad = [p.returncode for p in self.processes if p.returncode not in good]
        if bad:
            self.failed = bad[0]
            self._kill_at = min(self._kill_at, now + GRACE)
            self._send(signal.SIGTERM)

    def _send(self, number: int) -> None:
        for process in self.processes:
            process.send_signal(number)  # nothing if it has ended


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end_with_launcher() -> None:
    """Has the kernel (Linux only) send SIGTERM to this process when its launcher is gone, such as
    by SIGKILL.
    """
    parent = os.environ.pop(_PARENT, None)  # not for what this process starts itself
    if parent is None or sys.platform != "linux":
        return
    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>
    ctypes.CDLL(None).prctl(set_parent_death_signal, int(signal.SIGTERM), 0, 0, 0)
    if os.getppid() != int(parent):  # it was gone before this was set
        signal.raise_signal(signal.SIGTERM)
