"""The sweep of nine temperatures as whole commands, `launch.sweep` and the same in PyTorch."""

import dataclasses
import importlib
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from ddjax import data, models, runs

from .. import recipes
from . import measure, peers
from .measure import Context, Side

_TEMPERATURES = (1, 2, 5, 10, 20, 30, 40, 50, 100)
_PER_CLASS = 10


def torch_training() -> Any:
    """The module with the same work in PyTorch, which it imports."""
    return importlib.import_module(".torch_training", __package__)


def torch_device() -> str:
    """Where PyTorch computes: where we do."""
    return "cuda" if jax.default_backend() == "gpu" else "cpu"


def network_fields(network: str, num_classes: int) -> dict[str, Any]:
    """The fields of a network, for PyTorch."""
    module = models.build(network, num_classes)
    names = ("num_classes", "stages", "dense", "dropout", "center", "padding")
    return {name: getattr(module, name) for name in names}


def recipe_fields(recipe: recipes.Recipe) -> dict[str, Any]:
    """The fields of a recipe, for PyTorch."""
    return dataclasses.asdict(recipe)


def sweep(context: Context) -> None:
    """The sweep of nine temperatures on the embedded digits, whatever the recipe, as whole commands.

    Both sides are processes of their own, so importing, compiling and writing count. Ours is `launch.sweep` as it is:
    with checkpoints, results, tables, figures and page. The first run has an empty compilation cache and is
    told apart as the first call; later ones find what it compiled, as a second sweep of a user does. PyTorch gets the
    data as arrays and writes a few numbers; it runs in the memory format and with the number of threads in which its
    training steps are fastest here.
    """
    recipe = recipes.get("digits")
    epochs = 4 if context.quick else recipe.epochs
    sides: dict[str, Side | Callable[[], Side]] = {"ddjax": _our_sweep(context, epochs)}
    with tempfile.TemporaryDirectory() as folder:
        if context.peers.torch is not None:
            # Made ready now: trying formats and threads is no part of its first run.
            sides["torch"] = _torch_sweep(context, epochs, pathlib.Path(folder))
        where = {"work": "sweep", "network": recipe.network, "batch": recipe.batch_size}
        repetitions = 1 if context.quick else context.repetitions
        measure.compare(context.run, where, sides, unit="sweep", repetitions=repetitions)


def _run(module: str, *arguments: str, **environment: str) -> None:
    """Runs a module of the launchers, `".sweep"`, as a process; its memory is not measured.

    Raises:
      RuntimeError: with the last line it wrote, when it fails.
    """
    # The launchers are `launch` in a clone and `ddjax.launch` where they are installed.
    package = __name__.rpartition(".benchmarks.")[0]
    root = pathlib.Path(__file__).parents[len(package.split(".")) + 1]
    command = [sys.executable, "-m", package + module, *arguments]
    done = subprocess.run(command, cwd=root, env=os.environ | environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{package}{module} failed: {(done.stderr.strip() or 'without a word').splitlines()[-1]}")


def _our_sweep(context: Context, epochs: int) -> Side:
    cache = tempfile.TemporaryDirectory()

    def sweep() -> tuple[list[dict[str, Any]], Any]:
        with tempfile.TemporaryDirectory() as workdir:
            temperatures = ",".join(map(str, _TEMPERATURES))
            flags = [f"--epochs={epochs}", f"--temperatures={temperatures}", f"--seed={context.seed}"]
            if jax.default_backend() == "cpu":
                flags.append(f"--devices={jax.local_device_count()}")
            _run(".sweep", f"--workdir={workdir}", *flags, JAX_COMPILATION_CACHE_DIR=cache.name)
            # With the cache, which is to live as long as the side.
            return runs.read_results(workdir), cache

    def describe(found: tuple[list[dict[str, Any]], Any]) -> dict[str, Any]:
        records = found[0]
        value = lambda field, **where: next(
            (record[field] for record in records if where.items() <= record.items()), None
        )
        fields: dict[str, Any] = {"epochs": epochs, "peak_bytes": None}
        for name, network, temperature in (("none", "baseline", None), ("100", "student", 100.0)):
            of_network = {"network": network, "temperature": temperature}
            fields |= {
                f"accuracy_{name}": value("accuracy", measure="accuracy", **of_network),
                f"jsma_{name}": value("success", measure="jsma", space="probs", **of_network),
                f"jsma_tempered_{name}": value("success", measure="jsma", space="tempered", **of_network),
                f"fgsm_{name}": value("success", measure="fgsm", **of_network),
                f"log10_amplitude_{name}": value("log10_adversarial_gradient", measure="gradients", **of_network),
            }
        return fields

    return Side(sweep, 1, describe)


def _torch_sweep(context: Context, epochs: int, folder: pathlib.Path) -> Side:
    recipe = recipes.get("digits")
    train, test = data.load("digits", "train", seed=context.seed), data.load("digits", "test", seed=context.seed)
    arrays: dict[str, Any] = {"train_images": data.to_float(train.images), "train_labels": train.labels}
    arrays |= {"test_images": data.to_float(test.images), "test_labels": test.labels}
    np.savez(folder / "data.npz", **arrays)
    settings: dict[str, Any] = {
        "network": network_fields(recipe.network, train.num_classes),
        "recipe": recipe_fields(recipe) | {"epochs": epochs},
        "temperatures": _TEMPERATURES,
        "per_class": _PER_CLASS,
        "seed": context.seed,
        "device": torch_device(),
    }
    settings |= _fastest(settings, train.image_shape, context.peers.torch)
    (folder / "settings.json").write_text(json.dumps(settings))

    def sweep() -> dict[str, Any]:
        files = [str(folder / name) for name in ("data.npz", "settings.json", "results.json")]
        _run(".benchmarks.torch_training", *files)
        return json.loads((folder / "results.json").read_text())

    def describe(found: Mapping[str, Any]) -> dict[str, Any]:
        fields: dict[str, Any] = {"epochs": epochs, "peak_bytes": None, "threads": settings["threads"]}
        fields |= {"memory_format": settings["memory_format"], "parts": found["seconds"]}
        for name in ("none", "100"):
            row = found["results"][name]
            fields |= {f"{field}_{name}": row[field] for field in ("accuracy", "fgsm", "log10_amplitude")}
            fields |= {f"jsma_{name}": row["jsma_probs"], f"jsma_tempered_{name}": row["jsma_tempered"]}
        return fields

    return Side(sweep, 1, describe)


def _fastest(settings: Mapping[str, Any], image_shape: tuple[int, int, int], torch: Any) -> dict[str, Any]:
    """The number of threads and the memory format in which training steps take least time."""
    theirs, threads = torch_training(), torch.get_num_threads()
    seconds: dict[Any, float] = {}
    size, classes = settings["recipe"]["batch_size"], settings["network"]["num_classes"]
    height, width, channels = image_shape
    try:
        for count, formatted in 3 * list(itertools.product(sorted({1, threads}), theirs.FORMATS)):
            torch.set_num_threads(count)
            module = theirs.build(settings["network"], image_shape, settings["device"], formatted)
            optimizer = theirs.make_optimizer(module, settings["recipe"])
            images = torch.rand(size, channels, height, width, device=settings["device"])
            images = images.contiguous(memory_format=theirs.memory_format(formatted))
            targets = torch.full((size, classes), 1 / classes, device=settings["device"])
            for steps in (10, 40):
                started = time.perf_counter()
                for _ in range(steps):
                    theirs.train_step(module, optimizer, images, targets, 1.0)
                peers.synchronize()
            elapsed = time.perf_counter() - started
            seconds[count, formatted] = min(seconds.get((count, formatted), elapsed), elapsed)
    finally:
        torch.set_num_threads(threads)
    count, formatted = min(seconds, key=lambda key: seconds[key])
    return {"threads": count, "memory_format": formatted}
