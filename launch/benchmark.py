"""Measures speed: `python -m launch.benchmark`. All timing of the project lives here.

`--work` chooses what (repeats; default all):

* `layers`: a training step inside a scan and an input gradient inside a loop, each lowering of `ddjax.layers`;
* `train_step`: a training step inside a scan, against the same step of the same network in PyTorch, in both memory
  formats, where it is installed (`pip install -e '.[peers]'`);
* `jsma`: an iteration of JSMA in each score space, against two input-gradient evaluations of the same batch.

The sides of a comparison take turns in one process. A line gives the median time of each side, and the median and
range of the ratios turn by turn; only ratios mean anything on a shared machine. Compilation is not counted.
"""

import os
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax import lax

from ddjax import attacks, losses, models, recipes, runs, training
from ddjax.classifier import bind
from launch import common

FLAGS = flags.FLAGS
_REPETITIONS = flags.DEFINE_integer("repetitions", 9, "Turns of each side.", lower_bound=1)
_NETWORK = flags.DEFINE_enum("network", "papernot_mnist", models.NETWORKS, "The network.")
_TRAIN_BATCH = flags.DEFINE_integer("train_batch", 128, "Examples of a training step.", lower_bound=1)
# Steps inside one timed call, so that what surrounds the loop does not count.
_STEPS = 5
_SHAPES = {"papernot_cifar10": (32, 32, 3), "digits": (8, 8, 1)}


def main() -> None:
    """Runs the chosen work."""
    flags_of_run = {
        name: FLAGS[name].value for name in ("work", "network", "train_batch", "batch_size", "repetitions", "seed")
    }
    run = runs.Run(FLAGS.workdir or "runs/benchmark", flags_of_run, {"cores": len(os.sched_getaffinity(0))})
    for name in FLAGS.work or _WORK:
        _WORK[name](run)


def _compare(run: runs.Run, name: str, unit: str, sides: dict[str, Callable[[], Any]], base: str) -> None:
    """Lets the sides take turns and records each one's times and its ratios to the base."""
    for side in sides.values():
        side()
    times = {side: [] for side in sides}
    for _ in range(_REPETITIONS.value):
        for side, function in sides.items():
            start = time.perf_counter()
            function()
            times[side].append(time.perf_counter() - start)
    for side, seconds in times.items():
        ratios = np.array(seconds) / np.array(times[base])
        record = {
            "measure": "benchmark",
            "work": name,
            "side": side,
            "unit": unit,
            "base": base,
            "median_ms": 1e3 * float(np.median(seconds)),
            "ratio": float(np.median(ratios)),
            "ratio_low": float(ratios.min()),
            "ratio_high": float(ratios.max()),
        }
        run.append(**record)
        print(
            f"{name}: {side}: {record['median_ms']:.1f} ms per {unit}, {record['ratio']:.2f} times {base}"
            f" [{record['ratio_low']:.2f}, {record['ratio_high']:.2f}]",
            flush=True,
        )


def _call(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    """The call, waiting for its result."""
    return lambda: jax.block_until_ready(function(*arguments))


def _example(batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Images like digits on a flat background, where pooling has ties; and labels."""
    rng = np.random.default_rng(FLAGS.seed)
    shape = _SHAPES.get(_NETWORK.value, (28, 28, 1))
    images = rng.random((batch, *shape), np.float32)
    return np.where(images < 0.7, 0, images).astype(np.float32), rng.integers(0, 10, batch).astype(np.int32)


def _train_side(lowering: str) -> Callable[[], Any]:
    """Steps of SGD with momentum in a scan; without dropout, which PyTorch would draw differently."""
    images, labels = _example(_TRAIN_BATCH.value)
    module = models.build(_NETWORK.value, 10, lowering=lowering)
    module = module.clone(dropout=tuple(0.0 for _ in module.dropout))
    optimizer = recipes.make_optimizer(recipes.get("papernot_mnist"), 1)
    state = training.create_state(module, optimizer, images.shape[1:], jax.random.key(0))
    batch = (jnp.asarray(images), jax.nn.one_hot(labels, 10))

    def steps(state: training.TrainState, temperature: jax.Array) -> training.TrainState:
        one = lambda state, _: (training.train_step(state, batch, temperature)[0], None)
        return lax.scan(one, state, length=_STEPS)[0]

    return _call(common.jit(steps), state, jnp.float32(1))


def _gradient_side(logits_fn: Any, images: np.ndarray, labels: np.ndarray) -> Callable[[], Any]:
    """Input gradients in a loop, each at a point that depends on the last."""

    @jax.jit
    def steps(logits_fn: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        gradient = jax.grad(lambda x: losses.cross_entropy(logits_fn(x), labels).sum())
        return lax.fori_loop(0, _STEPS, lambda _, x: x + 1e-3 * gradient(x), images)

    return _call(steps, logits_fn, jnp.asarray(images), jnp.asarray(labels))


def _network(lowering: str, images: np.ndarray) -> Any:
    module = models.build(_NETWORK.value, 10, lowering=lowering)
    return bind(module, module.init(jax.random.key(0), jnp.asarray(images[:1])))


def _layers(run: runs.Run) -> None:
    unit = f"{_STEPS} steps of {_TRAIN_BATCH.value}"
    sides = {lowering: _train_side(lowering) for lowering in ("canonical", "plain")}
    _compare(run, "training in a scan", unit, sides, "canonical")
    images, labels = _example(_TRAIN_BATCH.value)
    sides = {name: _gradient_side(_network(name, images), images, labels) for name in ("canonical", "plain")}
    _compare(run, "input gradient in a loop", unit, sides, "canonical")


def _train_step(run: runs.Run) -> None:
    sides = {"ddjax": _train_side("auto")}
    try:
        sides |= _torch_sides()
    except ImportError as error:
        print(f"train_step: no PyTorch to compare with: {error}; pip install -e '.[peers]'")
        return
    _compare(run, "training step", f"{_STEPS} steps of {_TRAIN_BATCH.value}", sides, "pytorch")


def _torch_sides() -> dict[str, Callable[[], Any]]:
    """The same network and step in PyTorch, plain and with channels last."""
    import torch  # pyright: ignore[reportMissingImports]
    from torch import nn  # pyright: ignore[reportMissingImports]

    images, labels = _example(_TRAIN_BATCH.value)
    network = models.build(_NETWORK.value, 10)

    def side(memory_format: torch.memory_format) -> Callable[[], Any]:
        parts: list[nn.Module] = []
        channels, size = images.shape[3], images.shape[1]
        for widths in network.stages:
            for width in widths:
                parts += [nn.Conv2d(channels, width, 3, padding=0 if network.padding == "VALID" else 1), nn.ReLU()]
                channels, size = width, size - (2 if network.padding == "VALID" else 0)
            parts, size = [*parts, nn.MaxPool2d(2)], size // 2
        parts, features = [*parts, nn.Flatten()], channels * size * size
        for width in network.dense:
            parts, features = [*parts, nn.Linear(features, width), nn.ReLU()], width
        model = nn.Sequential(*parts, nn.Linear(features, 10))
        model.to(memory_format=memory_format)  # pyright: ignore[reportCallIssue]
        inputs = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(memory_format=memory_format)
        targets = torch.from_numpy(labels.astype(np.int64))
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.5)

        def steps() -> None:
            for _ in range(_STEPS):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(inputs - 0.5), targets).backward()
                optimizer.step()

        return steps

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    return {"pytorch": side(torch.contiguous_format), "pytorch, channels last": side(torch.channels_last)}


def _jsma(run: runs.Run) -> None:
    images, labels = _example(FLAGS.batch_size)
    network = _network("auto", images)
    # The target is out of reach, so that every example spends the whole budget.
    bias = 50.0 * jax.nn.one_hot(jnp.array([0]), 10)
    targets = jnp.zeros(len(images), jnp.int32)
    gradient = _gradient_side(network, images, labels)
    sides = {"two input gradients": lambda: (gradient(), gradient())}
    gamma = 2 * (_STEPS - 1) / images[0].size
    for space in ("probs", "logits"):

        @jax.jit
        def steps(network: Any, images: jax.Array, space: str = space) -> attacks.AttackResult:
            hopeless = lambda x: network(x) - bias
            return attacks.jsma(hopeless, images, targets + 1, targets=targets, gamma=gamma, score_space=space)

        spent = float(steps(network, images).steps.mean()) / (_STEPS - 1)
        if spent < 0.99:
            raise RuntimeError(f"only {spent:.2f} of the iterations were needed: the comparison would flatter JSMA")
        sides[f"jsma, {space}"] = _call(steps, network, jnp.asarray(images))
    _compare(run, "jsma", f"{_STEPS} iterations of {FLAGS.batch_size}", sides, "two input gradients")


_WORK = {"layers": _layers, "train_step": _train_step, "jsma": _jsma}
flags.DEFINE_multi_enum("work", [], list(_WORK), "What to measure; default: everything.")

if __name__ == "__main__":
    common.run(main)
