"""Launchers run as their users run them: as processes of their own."""

import subprocess

import pytest

from tests.launch import processes
from tests.launch.processes import SMALL


@pytest.fixture(scope="session")
def environment(tmp_path_factory, request):
    """One compilation cache for all launcher tests, so that each program is compiled once."""
    base = tmp_path_factory.getbasetemp()
    # The workers of pytest-xdist have theirs side by side in one directory.
    return processes.environment(
        (base.parent if hasattr(request.config, "workerinput") else base) / "compilation_cache"
    )


@pytest.fixture(scope="session")
def start(environment, tmp_path_factory):
    """Starts a launcher as `python -m launch.NAME` would, without waiting for it."""
    with processes.serve(environment, tmp_path_factory.mktemp("output")) as start:
        yield start


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
