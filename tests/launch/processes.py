"""Launchers as processes, started by a fork server, for the fixtures and for `tests.launch.hostile_flags`."""

import contextlib
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Small enough for seconds; large enough that every part has something to do.
SMALL = ["--num_train=200", "--num_test=100", "--epochs=3", "--num_examples=10"]


def environment(cache):
    """The environment of a launcher in tests, with a compilation cache that all share."""
    # One device: on small runs, more of them cost more than they save.
    return os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_PLATFORMS": "cpu",
        "PYTHONUNBUFFERED": "1",
    }


class Launched:
    """A launcher in a process of its own, which may be waited for or killed."""

    def __init__(self, ask, order):
        self._ask, self._outputs = ask, (order["stdout"], order["stderr"])
        for path in self._outputs:
            pathlib.Path(path).write_text("")
        self.pid = ask(order)
        self._status = None

    def poll(self):
        """The exit status, minus a signal's number; None while it runs."""
        if self._status is None:
            self._status = self._ask({"poll": self.pid})
        return self._status

    def wait(self):
        """The exit status."""
        if self._status is None:
            self._status = self._ask({"wait": self.pid})
        return self._status

    def kill(self):
        """Ends it as an operator would, and returns the exit status; nothing is done to one that has ended."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
        return self.wait()

    def outputs(self):
        """What it has written to stdout and to stderr."""
        return tuple(pathlib.Path(path).read_text(errors="replace") for path in self._outputs)


@contextlib.contextmanager
def serve(environment, directory):
    """Yields what starts a launcher as `python -m launch.NAME` would, without waiting for it.

    Args:
      environment: of the launchers.
      directory: takes their outputs.
    """
    command = [sys.executable, "-m", "tests.launch.fork_server"]
    numbers = itertools.count()
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:

        def ask(order):
            print(json.dumps(order), file=server.stdin, flush=True)
            return json.loads(server.stdout.readline())

        def start(name, *arguments, cwd=None, timeout=None, **config):
            number = next(numbers)
            outputs = {stream: str(directory / f"{number}_{stream}") for stream in ("stdout", "stderr")}
            settings = {"cwd": str(cwd or ROOT), "timeout": timeout, "config": config}
            return Launched(ask, {"start": name, "arguments": arguments, **settings, **outputs})

        yield start
        server.stdin.close()
