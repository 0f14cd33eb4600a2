"""How a launcher starts: the flags that all launchers have, jax, and errors that a person can read."""

import gc
import logging as python_logging
import math
import os
import pathlib
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Sequence

import jax
from absl import app, flags, logging

from ddjax import data, parallel

from . import _errors, _help

FLAGS = flags.FLAGS
_LARGEST = 2**31 - 1

flags.DEFINE_string("recipe", "digits", "The settings, by name; --help lists them.")
flags.DEFINE_string(
    "dataset", None, "Replaces the recipe's data set: an embedded one, one of TFDS, folder:PATH, npz:PATH."
)
flags.DEFINE_string("data_dir", None, "Where tensorflow-datasets has its sets; default: TFDS_DATA_DIR, then its own.")
flags.DEFINE_integer(
    "image_size", None, "Replaces the recipe's height and width of images of several sizes.", lower_bound=1
)
flags.DEFINE_list("class_names", None, "Names of a folder's classes, as DIRECTORY=NAME,...; Animals-10's are known.")
flags.DEFINE_enum("unreadable", "refuse", data.UNREADABLE, "What to do with images of a folder that are damaged.")
flags.DEFINE_string("cache_dir", None, "Where a folder's decoded images are kept; default: ddjax in the user's cache.")
flags.DEFINE_string("workdir", None, "Where the run is written; default: runs/LAUNCHER_RECIPE.")
flags.DEFINE_integer("seed", 0, "Makes all randomness: subsets, parameters, order of examples, attacks.", 0, _LARGEST)
flags.DEFINE_integer("num_examples", None, "How many test images are attacked; each launcher says what is the default.")
flags.DEFINE_integer("num_train", None, "Replaces the recipe's number of training images.")
flags.DEFINE_integer("num_test", None, "Replaces the recipe's number of test images.")
flags.DEFINE_integer("epochs", None, "Replaces the recipe's number of epochs.")
flags.DEFINE_integer("batch_size", 512, "The largest batch of evaluation and attacks, not of training.", lower_bound=1)
flags.DEFINE_enum("matmul_precision", "highest", ["default", "high", "highest"], "Of float32 products on accelerators.")
flags.DEFINE_float("checkpoint_seconds", 30.0, "The least time between two checkpoints of one training.")
flags.DEFINE_integer("devices", None, "Takes so many CPU devices; default: accelerators, or one CPU.", lower_bound=1)
flags.DEFINE_bool("distributed", False, "Joins other processes; finds them under Slurm, Open MPI, GKE, Cloud TPU.")
flags.DEFINE_string("coordinator", None, "With --distributed, where nothing finds it: HOST:PORT of process 0.")
flags.DEFINE_integer("num_processes", None, "With --coordinator: how many processes there are.", lower_bound=1)
flags.DEFINE_integer("process_id", None, "With --coordinator: which of them this is, from 0.", lower_bound=0)
flags.DEFINE_enum("stacking", "auto", parallel.STACKINGS, "How a device trains its share of a sweep's networks.")
flags.DEFINE_bool("traceback", False, "Shows where in the code an error was raised.")

_HELP = ("--help", "-help", "-h", "--helpshort", "-helpshort")


def run(main: Callable[[], None]) -> None:
    """Parses the flags, sets jax up and runs a launcher.

    Every error ends in one line on stderr and an exit status: 2 for one that a user can mend, 1 for any other, 130
    after Ctrl-C. `--traceback` shows where it was raised.
    """
    app.run(lambda argv: _guarded(lambda: _start(main, argv)), flags_parser=_parse)


def _start(main: Callable[[], None], argv: Sequence[str]) -> None:
    if len(argv) > 1:
        raise ValueError(f"no positional arguments are taken, got {' '.join(argv[1:])}")
    _check_flags()
    _be_quiet(FLAGS.traceback)
    set_up_jax()
    # What is imported stays; nothing of it need be looked at again.
    gc.freeze()
    if not parallel.is_primary():
        # What all would say alike is said once; errors are not.
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    main()
    # A full disk or a closed pipe is met here, not when the interpreter ends.
    sys.stdout.flush()


def _be_quiet(errors: bool) -> None:
    """Silences what libraries log, unless `errors` are wanted: orbax logs each one in every thread and at exit."""
    if not FLAGS["verbosity"].present:
        # orbax also tells of every step of every checkpoint.
        logging.set_verbosity(logging.ERROR if errors else logging.FATAL)
    if errors:
        return
    python_logging.getLogger("asyncio").setLevel(python_logging.CRITICAL + 1)
    threading.excepthook = sys.unraisablehook = lambda _: None
    # A compilation cache that cannot be used costs time only; jax warns for each program.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache")


def _parse(argv: Sequence[str]) -> list[str]:
    """Reads the flags, or prints the help."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A name that the terminal cannot show is no error.
            stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    if any(argument in _HELP for argument in argv[1:]):
        _guarded(lambda: print(_help.text(FLAGS, __name__), flush=True))
        sys.exit(0)
    try:
        return FLAGS(argv)
    except Exception as error:
        message, _ = _errors.explain(error)
        print(f"error: {message.removesuffix('.')} (--help lists the flags)", file=sys.stderr)
        sys.exit(_errors.USER)


def _guarded(function: Callable[[], None]) -> None:
    """Calls a function and ends the process after an error, with a sentence."""
    try:
        function()
    except BrokenPipeError:
        # Nobody reads; the interpreter must not try to write what is left.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(_errors.USER)
    except (Exception, KeyboardInterrupt) as error:
        # From here on, Ctrl-C ends at once.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        if FLAGS.is_parsed() and FLAGS.traceback:
            traceback.print_exc()
        message, status = _errors.explain(error)
        message = _help.as_called(message)
        print(f"error: {message}" if status != _errors.INTERRUPTED else message, file=sys.stderr)
        sys.exit(status)
    finally:
        # The interpreter looks for garbage once more when it ends, among all that was traced and compiled.
        gc.freeze()


def _check_flags() -> None:
    """Expands `~` in paths, and refuses numbers that are not finite or too large for what counts.

    Raises:
      ValueError: with the flag.
    """
    for name in FLAGS:
        value = FLAGS[name].value
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"--{name} must be a finite number, got {value}")
        if isinstance(value, int) and abs(value) > _LARGEST:
            raise ValueError(f"--{name} must be at most {_LARGEST}, got {value}")
        if isinstance(value, str):
            FLAGS[name].value = _expand(name, value)
        if isinstance(value, list):
            FLAGS[name].value = [_expand(name, each) if isinstance(each, str) else each for each in value]
    if FLAGS.workdir is not None and "://" in FLAGS.workdir:
        raise ValueError(f"--workdir must be a local directory, got {FLAGS.workdir}; copy a run after it has ended")
    if FLAGS.workdir == "":
        raise ValueError("--workdir must name a directory, got an empty name")


def _expand(name: str, value: str) -> str:
    """The value of a flag with the user's home in the place of `~`, with which only paths begin."""
    expanded = os.path.expanduser(value)
    if expanded.startswith("~"):
        raise ValueError(f"--{name}={value}: there is no home directory for {value.partition('/')[0]}")
    return expanded


def set_up_jax() -> None:
    """Sets devices and processes, the precision of matrix products and the persistent compilation cache."""
    if FLAGS.devices is not None:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", FLAGS.devices)
    # Else a CPU is one device, although a sweep takes a tenth to a quarter less time on one for each of two cores: if
    # two share a batch, XLA may compute a convolution wrongly; see tests/wrong_on_two_devices.py.
    _join_processes()
    jax.config.update("jax_default_matmul_precision", FLAGS.matmul_precision)
    if jax.config.values["jax_compilation_cache_dir"] is None:
        jax.config.update("jax_compilation_cache_dir", compilation_cache())
    # Beside a few large programs a launcher has a hundred small ones, which take a second or more to compile again.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def compilation_cache() -> str | None:
    """The directory in the user's cache; None for a user without a home, whose programs are compiled every time."""
    try:
        caches = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    except RuntimeError:
        return None
    return str(caches / "ddjax" / "xla")


def _join_processes() -> None:
    """Makes this process one of several, where the flags say so."""
    named = coordinator, count, index = FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id
    if not FLAGS.distributed:
        if any(value is not None for value in named):
            raise ValueError("--coordinator, --num_processes and --process_id need --distributed")
        return
    if named != (None, None, None):
        if None in named:
            raise ValueError("--coordinator, --num_processes and --process_id go together")
        if index >= count:
            raise ValueError(f"--process_id must be from 0 to {count - 1}, got {index}")
    try:
        jax.distributed.initialize(coordinator, count, index)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            "--distributed found no other processes: start it under Slurm or Open MPI, or name --coordinator, "
            f"--num_processes and --process_id ({error})"
        ) from error
