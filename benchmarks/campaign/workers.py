"""Calls in processes of their own, which may crash or hang."""

import multiprocessing
import signal

CONTEXT = multiprocessing.get_context("spawn")


class Worker:
    """Runs ``target(argument)`` for one argument after another.

    Arguments:
        target: An importable function. Its result must be picklable.
    """

    def __init__(self, target):
        self._target = target
        self._process = None

    def __call__(self, argument, seconds):
        """The result, or how the process ended; the next call has a new one then."""
        if self._process is None:
            self._pipe, other = CONTEXT.Pipe()
            self._process = CONTEXT.Process(target=_serve, args=(self._target, other), daemon=True)
            self._process.start()
            other.close()
        self._pipe.send(argument)
        try:
            if self._pipe.poll(seconds):
                return self._pipe.recv()
            ending = f"hang: no answer in {seconds} s"
        except EOFError:
            self._process.join(10)
            code = self._process.exitcode or 0
            ending = f"crash: {signal.Signals(-code).name if code < 0 else f'exit {code}'}"
        self.close()
        return {"outcome": ending.split(":")[0], "why": ending}

    def close(self):
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None


def _serve(target, pipe):
    while True:
        try:
            argument = pipe.recv()
        except EOFError:
            return
        pipe.send(target(argument))
