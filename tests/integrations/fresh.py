"""Programs in interpreters that have imported neither diffusers nor tdquant.

Each is forked from one process that has imported torch, which is most of what a program pays for.
"""

import json
import os
import subprocess
import sys
import traceback


class Fresh:
    """Runs programs, one after the other, each in a process of its own."""

    def __init__(self):
        self.server = subprocess.Popen(
            [sys.executable, "-m", "tests.integrations.fresh"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def run(self, code, output):
        """Status of a program; what it prints and its traceback are in the file ``output``."""
        self.server.stdin.write(json.dumps([code, str(output)]) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def close(self):
        self.server.communicate()


def _run(code, output):
    """Status of a program that writes to ``output``, in the process that was forked for it."""
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    try:
        exec(compile(code, "program", "exec"), {"__name__": "__main__"})
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


if __name__ == "__main__":
    import torch  # noqa: F401

    assert not {"diffusers", "tdquant", "transformers", "accelerate", "peft"} & sys.modules.keys()
    for line in sys.stdin:
        if not (child := os.fork()):
            os._exit(_run(*json.loads(line)))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
