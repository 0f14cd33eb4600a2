"""Runs launchers in forks of one process that has already imported what they import, which saves seconds each.

Reads orders from stdin, one JSON object a line, and answers each with a line: the process that was started, or the exit
status of one that has ended.

  {"start": NAME of the launcher, "arguments": its own, "stdout": and "stderr": files that take these, "config": of jax,
   "cwd": where it starts, "timeout": seconds after which it is killed, null for the usual ones}
  {"wait": the process}
  {"poll": the process} answers null while it runs

jax has made no device when the fork happens, and so has no thread either; what it reads from the environment is the
environment of this process.
"""

import gc
import json
import os
import runpy
import signal
import sys
import warnings

import jax
import matplotlib.figure  # noqa: F401
import sklearn.datasets  # noqa: F401

import ddjax  # noqa: F401
import launch.attacking
import launch.loading  # noqa: F401

# Seconds after which a launcher is killed.
TIMEOUT = 300


def become(order: dict) -> None:
    """Turns this process into the launcher, as `python -m launch.NAME` would."""
    signal.alarm(order["timeout"] or TIMEOUT)
    os.chdir(order["cwd"])
    # As `python -m` has it.
    sys.path.insert(0, order["cwd"])
    for descriptor, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, order["stdout"], os.O_WRONLY | os.O_APPEND),
        (2, order["stderr"], os.O_WRONLY | os.O_APPEND),
    ):
        os.dup2(os.open(path, flags), descriptor)
    for name, value in order["config"].items():
        jax.config.update(name, value)
    name = f"launch.{order['start']}"
    sys.argv = [name, *order["arguments"]]
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def main() -> None:
    # Else each launcher, when it ends, goes through all that was imported here, which takes most of a second.
    gc.freeze()
    for line in sys.stdin:
        order = json.loads(line)
        if "start" in order:
            with warnings.catch_warnings():
                # jax and Python warn of threads; the only ones are NumPy's, which allow it.
                warnings.simplefilter("ignore")
                answer = os.fork()
            if answer == 0:
                become(order)
                return
        elif "wait" in order:
            answer = os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1])
        else:
            ended, status = os.waitpid(order["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if ended else None
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
