"""Launchers run as their users run them: as processes of their own."""

import json
import os
import pathlib
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


@pytest.fixture(scope="session")
def fork_server(environment):
    """The process that launchers are forked from."""
    command = [sys.executable, "-m", "tests.launch.fork_server"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        yield server
        server.stdin.close()


@pytest.fixture(scope="session")
def launch(fork_server, tmp_path_factory):
    """Runs a launcher as `python -m launch.NAME` would and returns what it did; fails unless it ended as expected."""
    directory = tmp_path_factory.mktemp("output")

    def run(name, *arguments, ok=True):
        outputs = directory / "stdout", directory / "stderr"
        for path in outputs:
            path.write_text("")
        order = {"name": name, "arguments": arguments, "stdout": str(outputs[0]), "stderr": str(outputs[1])}
        print(json.dumps(order), file=fork_server.stdin, flush=True)
        status = int(fork_server.stdout.readline())
        done = subprocess.CompletedProcess(arguments, status, *(path.read_text() for path in outputs))
        assert (status == 0) == ok, f"{name} {' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture(scope="session")
def distilled(launch, tmp_path_factory):
    """A run of launch.distill at T = 20, for others to attack."""
    workdir = tmp_path_factory.mktemp("distill")
    launch("distill", "--temperature=20", f"--workdir={workdir}", *SMALL[:3])
    return workdir
