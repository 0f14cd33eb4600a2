"""The same sweep on one device, on eight, in two processes, in pieces; killed and started again."""

import json
import signal
import socket
import subprocess
import sys
import time

import pytest

from .processes import ROOT, SMALL

ARGUMENTS = [*SMALL, "--temperatures=20", "--checkpoint_seconds=0"]


def records(workdir):
    """The measurements, by what they measure."""
    lines = (workdir / "results.jsonl").read_text().splitlines()
    read = [json.loads(line) for line in lines]
    return {(r["measure"], r.get("space"), r["network"], r["temperature"]): r for r in read}


def assert_same(workdir, other):
    """Counts and rates within half a percent, all other numbers within one."""
    found, expected = records(workdir), records(other)
    assert found.keys() == expected.keys()
    for key, record in expected.items():
        for name, value in record.items():
            if isinstance(value, float):
                rate = "success" in name or "share" in name or name == "accuracy"
                tolerance = {"abs": 0.005} if rate else {"rel": 0.01}
                assert found[key][name] == pytest.approx(value, **tolerance), (key, name)


@pytest.fixture(scope="module")
def alone(launch, tmp_path_factory):
    """A sweep on one device."""
    workdir = tmp_path_factory.mktemp("alone")
    launch("sweep", *ARGUMENTS, f"--workdir={workdir}")
    return workdir


@pytest.mark.parametrize(
    ("variables", "arguments", "count"),
    [
        ({}, [], 1),
        ({"JAX_NUM_CPU_DEVICES": "5"}, [], 5),
        ({"JAX_NUM_CPU_DEVICES": "5"}, ["--devices=3"], 3),
    ],
)
def test_number_of_devices(environment, variables, arguments, count):
    program = "import jax; from launch import common; common.run(lambda: print('devices', jax.device_count()))"
    others = {name: value for name, value in environment.items() if name != "JAX_NUM_CPU_DEVICES"}
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=others | variables, capture_output=True, text=True, check=True)
    assert f"devices {count}\n" in done.stdout


def test_eight_devices(launch, alone, tmp_path):
    launch("sweep", *ARGUMENTS, f"--workdir={tmp_path}", "--devices=8")
    assert_same(tmp_path, alone)


def test_pieces_are_merged(launch, alone, tmp_path):
    for index in range(2):
        launch("sweep", *ARGUMENTS, f"--workdir={tmp_path}", f"--shard={index}/2")
        done = launch("report", f"--workdir={tmp_path}")
        assert ("--shard=1/2 has not begun" in done.stdout) == (index == 0)
    assert_same(tmp_path, alone)
    assert (tmp_path / "table.csv").read_text() == (alone / "table.csv").read_text()


def two(start, workdir):
    """Two processes of one sweep."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    command = [*ARGUMENTS, f"--workdir={workdir}", "--distributed", f"--coordinator=localhost:{port}"]
    return [start("sweep", *command, "--num_processes=2", f"--process_id={number}") for number in (0, 1)]


def test_two_processes_one_killed_and_both_started_again(start, alone, tmp_path):
    processes = two(start, tmp_path)
    try:
        # Once something of the training is on disk.
        deadline = time.monotonic() + 240
        while not list(tmp_path.glob("checkpoints/*/teacher/*/state")):
            assert time.monotonic() < deadline
            assert processes[0].poll() is None
            time.sleep(0.02)
        assert processes[1].kill() == -signal.SIGKILL
        # The other notices, sooner or later; a scheduler would end it.
        time.sleep(1)
        assert not (tmp_path / "report.html").exists()
    finally:
        for process in processes:
            process.kill()
    processes = two(start, tmp_path)
    for process in processes:
        status, (printed, errors) = process.wait(), process.outputs()
        assert status == 0, errors
        assert ("report:" in printed) == (process is processes[0])
    assert_same(tmp_path, alone)


def test_flags_that_do_not_go_together(launch):
    assert "need --distributed" in launch("sweep", "--process_id=1", ok=False).stderr
    done = launch("sweep", "--distributed", "--coordinator=localhost:1", ok=False)
    assert "go together" in done.stderr
    assert "from 0 to n - 1" in launch("sweep", "--shard=3/3", ok=False).stderr
