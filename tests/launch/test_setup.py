"""How launchers start and end: flags, paths, help, and errors of every kind, without tracebacks."""

import errno
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from ddjax import attacks, checkpoints, runs
from launch import _errors, _help, _setup
from tests.launch.processes import ROOT

# Runs one function as a launcher in a process of its own.
PROGRAM = """
import sys
from launch import _setup
import jax, numpy as np
def main():
    {body}
_setup.run(main)
"""


def run_main(body, *flags, environment=None, stdout=subprocess.PIPE):
    command = [sys.executable, "-c", PROGRAM.format(body=body), *flags]
    return subprocess.run(
        command, cwd=ROOT, env=environment or os.environ, stdout=stdout, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize(
    ("error", "sentence", "status"),
    [
        (ValueError("epsilon must be positive"), "epsilon must be positive", 2),
        (runs.RunError("another run"), "another run", 2),
        (OSError(errno.EACCES, "Permission denied", "/x"), "Permission denied: /x", 2),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), "no space is left on the disk for /x; ", 2),
        (RuntimeError("orbax: write failed: No space left on device"), "no space is left on the disk; ", 2),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nmore"), "out of memory; a smaller --batch", 2),
        (MemoryError(), "out of memory; ", 2),
        (KeyboardInterrupt(), "interrupted; ", 130),
        (UnicodeEncodeError("ascii", "\udc80", 0, 1, "no"), "'ascii' codec can't encode", 2),
        (TypeError("first\nsecond"), "TypeError: first (unexpected; --traceback", 1),
        (ValueError(), "ValueError (unexpected;", 1),
    ],
)
def test_errors_become_one_sentence_and_a_status(error, sentence, status):
    message, found = _errors.explain(error)
    assert message.startswith(sentence)
    assert "\n" not in message
    assert found == status


def test_full_disk_is_found_behind_another_error():
    error = checkpoints.CheckpointError("the checkpoint is damaged")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert _errors.explain(error)[0].startswith("no space is left on the disk; ")


@pytest.mark.parametrize("shape", [(500,), (20, 30), (4, 5, 6, 7)])
def test_errors_do_not_print_arrays(shape):
    values = np.random.default_rng(0).normal(size=shape)
    for text in (str(values), repr(values), str(values.tolist())):
        message, _ = _errors.explain(ValueError(f"before {text} after"))
        assert len(message) < 300
        assert message.startswith("before")
        assert message.endswith("after")
    assert "0." not in _errors.explain(ValueError(f"before {values.tolist()} after"))[0]


def test_errors_keep_small_arrays_and_are_cut():
    assert (
        _errors.explain(ValueError("a shape of [1, 2, 3] and [0.5 0.25]"))[0] == "a shape of [1, 2, 3] and [0.5 0.25]"
    )
    assert len(_errors.explain(ValueError("word " * 1000))[0]) < _errors.LONGEST + 10


def test_errors_print_no_traceback_unless_asked():
    done = run_main("raise RuntimeError('from a library')")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("error: RuntimeError: from a library")
    done = run_main("raise RuntimeError('from a library')", "--traceback")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_interrupt_ends_in_one_sentence():
    command = [sys.executable, "-c", PROGRAM.format(body="print('ready', flush=True); import time; time.sleep(60)")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stderr.startswith("interrupted; ")
    assert stderr.count("\n") == 1


def test_interrupt_while_importing_ends_without_a_traceback():
    program = "import launch; raise KeyboardInterrupt"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == "interrupted\n"
    assert done.returncode == -signal.SIGINT


def test_user_without_a_home_runs_without_a_cache(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert _setup.compilation_cache() == str(pathlib.Path.home() / ".cache" / "ddjax" / "xla")

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(pathlib.Path, "home", homeless)
    assert _setup.compilation_cache() is None


def test_paths_may_begin_with_the_home_directory(tmp_path):
    done = run_main("print(_setup.FLAGS.workdir)", "--workdir=~/x", environment=os.environ | {"HOME": str(tmp_path)})
    assert done.stdout == f"{tmp_path}/x\n"
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("--workdir=gs://bucket/x", "--workdir must be a local directory, got gs://bucket/x"),
        ("--workdir=~nobody_of_this_name/x", "there is no home directory for ~nobody_of_this_name"),
        ("--workdir=", "--workdir must name a directory"),
        ("--checkpoint_seconds=nan", "--checkpoint_seconds must be a finite number, got nan"),
        ("--checkpoint_seconds=1e309", "--checkpoint_seconds must be a finite number, got inf"),
        ("--num_train=1234567890123456789012345", "--num_train must be at most 2147483647"),
        ("--num_train=8/255", "--num_train must be a whole number, got '8/255'"),
        ("--label_noise=a: b", "--label_noise must be a number, got 'a'"),
        ("--traceback=x", "--traceback must be true or false, got 'x'"),
        ("--matmul_precision=lowest", "value should be one of <default|high|highest>"),
        ("--no_such_flag=1", "Unknown command line flag 'no_such_flag'"),
        ("positional", "no positional arguments are taken, got positional"),
    ],
)
def test_bad_flags_are_refused_in_one_sentence(flag, sentence, launch):
    done = launch("distill", flag, ok=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert sentence in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_output_is_an_error():
    with open("/dev/full", "w") as full:
        done = run_main("print('result')", stdout=full)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no space is left on the disk")


def test_closed_pipe_is_no_error_message():
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as pipe:
        done = run_main("print('result')", stdout=pipe)
    assert done.returncode == 2
    assert done.stderr == ""


def test_help_lists_flags_and_what_exists():
    done = subprocess.run(
        [sys.executable, "-m", "launch.evaluate", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for text in ("--budget_linf", "--workdir", *attacks.ATTACKS, "jpeg: quality=75", "jsma: theta=", "mnist_quick"):
        assert text in done.stdout, text


def test_catalogue_names_settings_with_their_defaults():
    catalogue = _help.catalogue()
    assert set(catalogue) == {"attack", "defense", "recipe"}
    for name in attacks.ATTACKS:
        assert f"\n  {name}: " in catalogue["attack"]
    assert "num_steps=100" in catalogue["attack"]


def test_errors_in_threads_and_logs_are_left_to_the_sentence():
    body = (
        "import logging, threading; from absl import logging as absl_logging; "
        "thread = threading.Thread(target=lambda: 1 / 0); thread.start(); thread.join(); "
        "logging.getLogger('asyncio').error('noise'); absl_logging.error('noise'); raise ValueError('the reason')"
    )
    assert run_main(body).stderr == "error: the reason\n"
    assert "ZeroDivisionError" in run_main(body, "--traceback").stderr
