"""Launchers run as their users run them: as processes."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Small enough for seconds; large enough that every part has something to do.
SMALL = ["--num_train=200", "--num_test=100", "--epochs=3", "--num_examples=10"]


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """One compilation cache for all launcher tests, so that each program is compiled once."""
    cache = tmp_path_factory.mktemp("cache")
    # One device: on small runs, more of them cost more than they save.
    return os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_NUM_CPU_DEVICES": "1",
        "JAX_PLATFORMS": "cpu",
        "PYTHONUNBUFFERED": "1",
    }


@pytest.fixture(scope="session")
def launch(environment):
    """Runs `python -m launch.NAME` and returns what it did; fails the test unless it ended as expected."""

    def run(name, *arguments, ok=True):
        command = [sys.executable, "-m", f"launch.{name}", *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert (done.returncode == 0) == ok, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture(scope="session")
def distilled(launch, tmp_path_factory):
    """A run of launch.distill at T = 20, for others to attack."""
    workdir = tmp_path_factory.mktemp("distill")
    launch("distill", "--temperature=20", f"--workdir={workdir}", *SMALL[:3])
    return workdir
