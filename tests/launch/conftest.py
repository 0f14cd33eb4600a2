"""Launchers run as their users run them: as processes of their own."""

import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Small enough for seconds; large enough that every part has something to do.
SMALL = ["--num_train=200", "--num_test=100", "--epochs=3", "--num_examples=10"]


@pytest.fixture(scope="session")
def environment(tmp_path_factory, request):
    """One compilation cache for all launcher tests, so that each program is compiled once."""
    base = tmp_path_factory.getbasetemp()
    # The workers of pytest-xdist have theirs side by side in one directory.
    cache = (base.parent if hasattr(request.config, "workerinput") else base) / "compilation_cache"
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
        return tuple(pathlib.Path(path).read_text() for path in self._outputs)


@pytest.fixture(scope="session")
def start(environment, tmp_path_factory):
    """Starts a launcher as `python -m launch.NAME` would, without waiting for it."""
    directory = tmp_path_factory.mktemp("output")
    command = [sys.executable, "-m", "tests.launch.fork_server"]
    numbers = itertools.count()
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:

        def ask(order):
            print(json.dumps(order), file=server.stdin, flush=True)
            return json.loads(server.stdout.readline())

        def run(name, *arguments, **config):
            number = next(numbers)
            outputs = {stream: str(directory / f"{number}_{stream}") for stream in ("stdout", "stderr")}
            return Launched(ask, {"start": name, "arguments": arguments, "config": config, **outputs})

        yield run
        server.stdin.close()


@pytest.fixture(scope="session")
def launch(start):
    """Runs a launcher and returns what it did; fails unless it ended as expected."""

    def run(name, *arguments, ok=True, **config):
        process = start(name, *arguments, **config)
        status = process.wait()
        done = subprocess.CompletedProcess(arguments, status, *process.outputs())
        assert (status == 0) == ok, f"{name} {' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture(scope="session")
def distilled(launch, tmp_path_factory):
    """A run of launch.distill at T = 20, for others to attack."""
    workdir = tmp_path_factory.mktemp("distill")
    launch("distill", "--temperature=20", f"--workdir={workdir}", *SMALL[:3])
    return workdir
