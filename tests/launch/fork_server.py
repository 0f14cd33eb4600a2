"""Runs launchers in forks of one process that has already imported what they import, which saves two seconds each.

Reads orders from stdin, one JSON object a line: `name` of the launcher, its `arguments`, and the files that take its
`stdout` and `stderr`. Answers each with the exit status on a line. jax has made no device when the fork happens, and so
has no thread either; what it reads from the environment is the environment of this process.
"""

import gc
import json
import os
import runpy
import signal
import sys
import warnings

import matplotlib.figure  # noqa: F401
import sklearn.datasets  # noqa: F401

import ddjax  # noqa: F401
import launch.attacking
import launch.trainer  # noqa: F401

# Seconds after which a launcher is killed.
TIMEOUT = 300


def become(order: dict) -> None:
    """Turns this process into the launcher, as `python -m launch.NAME` would."""
    signal.alarm(TIMEOUT)
    for descriptor, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, order["stdout"], os.O_WRONLY),
        (2, order["stderr"], os.O_WRONLY),
    ):
        os.dup2(os.open(path, flags), descriptor)
    name = f"launch.{order['name']}"
    sys.argv = [name, *order["arguments"]]
    runpy.run_module(name, run_name="__main__", alter_sys=True)


def main() -> None:
    # Else each launcher, when it ends, goes through all that was imported here, which takes most of a second.
    gc.freeze()
    for line in sys.stdin:
        with warnings.catch_warnings():
            # jax and Python warn of threads; the only ones are NumPy's, which allow it.
            warnings.simplefilter("ignore")
            child = os.fork()
        if child == 0:
            become(json.loads(line))
            return
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
