"""Measures speed beside other libraries: `python -m launch.benchmark --recipe=mnist_quick`.

Trains a network, or takes `--checkpoint`, converts it to PyTorch, and lets each work be done by ddjax and by what users
would otherwise use: PyTorch itself, foolbox, torchattacks, adversarial-library and the Adversarial Robustness Toolbox.
All sides have the same weights, images, settings and cores, and take turns in one process; the first call, which may
compile, is measured apart. Success and mean distance stand beside every time: a star marks a lower success rate or a
larger distance. A library that is not installed, or that fails, is named. The libraries are installed by

    pip install -e '.[peers]'
    pip install --no-deps foolbox==3.3.4 torchattacks==3.5.1 adv-lib==0.2.8 adversarial-robustness-toolbox==1.20.1

`--work` chooses what is measured (repeats; default: all), `--batches` the numbers of examples at once; `largest` is the
largest power of two that fits, for the attacks that are used so. `--cores=N` limits the process to N cores.
`--density=DIR` and `--generator=DIR` are the models for `--work=purify` and `--work=reconstruct`; without them the
models are untrained, which takes the same time. `--quick` measures less of everything and ends within minutes. A run
that was stopped continues when it is started again; a run with other `--work` or `--batches` adds to it. On a machine
with other users, only the ratios are meaningful.
"""

import functools
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.experimental.compilation_cache import compilation_cache

from ddjax import checkpoints, data, evaluation, layers, parallel, training

from . import common, loading, recipes
from .benchmarks import attacks, generative, growth, imported, measure, peers
from .benchmarks import training as training_works

FLAGS = flags.FLAGS
_WORK = {**training_works.WORK, **attacks.WORK, **growth.WORK, **generative.WORK, **imported.WORK}
# Left out by --quick: they take longest.
_SLOW = ("carlini_wagner_linf",)
_WORKS = flags.DEFINE_multi_enum("work", [], list(_WORK), "What to measure; default: everything.")
_BATCHES = flags.DEFINE_list("batches", ["1", "128"], "Examples at once; a number each, or `largest`.")
_LARGEST = flags.DEFINE_integer("largest_batch", 4096, "The upper limit of `largest`.", lower_bound=1)
_REPETITIONS = flags.DEFINE_integer("repetitions", 5, "Measurements of each side.", lower_bound=1)
_CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "A network's checkpoints, of the recipe; default: one is trained."
)
_MODELS = {
    role: flags.DEFINE_string(role, None, f"A {role}'s checkpoints, for --work={work}; default: one before training.")
    for role, work in (("density", "purify"), ("generator", "reconstruct"))
}
_CORES = flags.DEFINE_integer("cores", None, "The number of processor cores to use; default: all.", lower_bound=1)
_QUICK = flags.DEFINE_bool("quick", False, "Batches of 1 and 16, three turns, fewer steps.")
# The share of the free memory that the largest batch may take.
_SHARE = 0.8


def main() -> None:
    """Measures."""
    # PyTorch needs memory on the same device.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    _pin(_CORES.value)
    batches, asks_largest = _batches()
    repetitions = 3 if _QUICK.value and not FLAGS["repetitions"].present else _REPETITIONS.value
    paths = {"checkpoint": _CHECKPOINT.value} | {role: flag.value for role, flag in _MODELS.items()}
    given = {name: str(pathlib.Path(path).resolve()) for name, path in paths.items() if path is not None}
    flags_of_run = {"launcher": "benchmark", "quick": _QUICK.value, "repetitions": repetitions}
    flags_of_run |= common.flags_of_training() | {"largest_batch": _LARGEST.value, "checkpoint": None} | given
    begun = loading.begin(common.workdir("benchmark"), flags_of_run)
    recipe, train, test = begun.recipe, begun.train, begun.test
    if max(batches, default=0) > len(test):
        raise ValueError(f"--batches={','.join(_BATCHES.value)} has more than the {len(test)} test images there are")
    state = None if _CHECKPOINT.value is None else _load(_CHECKPOINT.value, recipe, test)
    models = {role: generative.load(given[role], role, test.image_shape) for role in _MODELS if role in given}
    run = begun.open(cores=parallel.cores())
    if state is None:
        state = loading.trainer_of(run, recipe, train).plain(FLAGS.seed)
    # Compiling is part of what is measured: nothing of it may be kept from an earlier run.
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    there = peers.load(parallel.cores())
    there.announce(run)
    measure.machine_rate(run, there.torch)
    images, labels, targets = _examples(state.logits_fn, test)
    if max(batches, default=0) > len(images):
        raise ValueError(f"--batches: the network classifies only {len(images)} test images correctly")
    context = measure.Context(
        run=run, recipe=recipe, state=state, train=train, test=test, images=images, labels=labels, targets=targets,
        batches=batches, largest=_largest_batch(state.logits_fn, images) if asks_largest else None,
        repetitions=repetitions, quick=_QUICK.value, seed=FLAGS.seed, peers=there, models=models,
    )  # fmt: skip
    for name in _WORKS.value or [name for name in _WORK if not (_QUICK.value and name in _SLOW)]:
        _WORK[name](context)
    common.write_report(run)


def _pin(cores: int | None) -> None:
    """Holds all threads there are, and will be, to the first cores of those the process may use."""
    if cores is None:
        return
    if not hasattr(os, "sched_setaffinity"):
        raise ValueError("--cores needs a system that can pin processes, such as Linux")
    allowed = sorted(os.sched_getaffinity(0))
    if cores > len(allowed):
        raise ValueError(f"--cores={cores}: this process may use {len(allowed)}")
    for thread in pathlib.Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(thread.name), allowed[:cores])


def _batches() -> tuple[list[int], bool]:
    """The numbers of examples at once, and whether the largest that fits is asked for, too.

    Raises:
      ValueError: for anything else.
    """
    texts = ["1", "16"] if _QUICK.value and not FLAGS["batches"].present else _BATCHES.value
    for text in texts:
        if text != "largest" and not (text.isdecimal() and int(text) >= 1):
            raise ValueError(f"--batches must be whole numbers from 1, or the word largest, got {text!r}")
    return [int(text) for text in dict.fromkeys(texts) if text != "largest"], "largest" in texts


def _load(checkpoint: str, recipe: recipes.Recipe, test: data.Dataset) -> training.TrainState:
    spec = checkpoints.read_spec(checkpoint)
    if (spec.network, spec.image_shape, spec.num_classes) != (recipe.network, test.image_shape, test.num_classes):
        raise ValueError(
            f"{checkpoint} holds a {spec.network} for {spec.dataset}, and --recipe={recipe.name} asks for a "
            f"{recipe.network} for {recipe.dataset}"
        )
    return checkpoints.load_network(checkpoint)[0]


def _examples(logits_fn: Any, test: data.Dataset) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The images, labels and targets of a `Context`."""
    rows = np.flatnonzero(evaluation.judge(logits_fn, test.images, test.labels).predictions[0] == test.labels)
    labels = test.labels[rows].astype(np.int32)
    targets = (labels + 1 + np.arange(len(rows)) % (test.num_classes - 1)) % test.num_classes
    return data.to_float(test.images[rows]), labels, targets.astype(np.int32)


def _largest_batch(logits_fn: Any, images: np.ndarray) -> int:
    """The largest power of two whose input gradient takes no more than a share of the free memory."""
    free, gradient = measure.free_bytes(), layers.jit(functools.partial(attacks.input_gradients, 1))
    batch = 2 ** int(np.log2(min(len(images), _LARGEST.value)))
    while batch > 1:
        shape = jax.ShapeDtypeStruct((batch, *images.shape[1:]), jnp.float32)
        labels = jax.ShapeDtypeStruct((batch,), jnp.int32)
        needed = measure.bytes_of(gradient.lower(logits_fn, shape, labels).compile())
        if needed is None or free is None or needed <= _SHARE * free:
            break
        batch //= 2
    print(f"largest batch: {batch}", flush=True)
    return batch


if __name__ == "__main__":
    common.run(main)
