"""The sweep of nine temperatures as whole commands, `launch.sweep` and the same in PyTorch."""

import dataclasses
import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
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
# Of the network that is not distilled and of the last student, by the ends of the names of fields: where they stand in
# the results of `launch.sweep`.
_NETWORKS = {
    "none": {"network": "baseline", "temperature": None},
    "100": {"network": "student", "temperature": 100.0},
}
# What is told of them: our field, and the measure in which it stands.
_FOUND = {
    "accuracy": ("accuracy", {"measure": "accuracy"}),
    "jsma": ("success", {"measure": "jsma", "space": "probs"}),
    "jsma_tempered": ("success", {"measure": "jsma", "space": "tempered"}),
    "fgsm": ("success", {"measure": "fgsm"}),
    "log10_amplitude": ("log10_adversarial_gradient", {"measure": "gradients"}),
}


def sweep(context: Context) -> None:
    """The sweep of nine temperatures on the embedded digits, whatever the recipe, as whole commands.

    Both sides are processes of their own, so importing, compiling and writing count. Ours is `launch.sweep` as it is:
    with checkpoints, results, tables, figures and page. The first run has an empty compilation cache and is
    told apart as the first call; later ones find what it compiled, as a second sweep of a user does. PyTorch gets the
    data as arrays and writes a few numbers; it runs in the memory format and with the number of threads in which its
    training steps are fastest here.
    """
    recipe = recipes.get("digits")
    if context.quick:
        recipe = dataclasses.replace(recipe, epochs=4)
    with tempfile.TemporaryDirectory() as cache, tempfile.TemporaryDirectory() as folder:
        sides = {"ddjax": _our_sweep(context, recipe.epochs, cache)}
        if context.peers.torch is not None:
            # Made ready now: trying formats and threads is no part of its first run.
            sides["torch"] = _torch_sweep(context, recipe, pathlib.Path(folder))
        turns = 1 if context.quick else None
        where = {"network": recipe.network, "batch": recipe.batch_size}
        measure.compare(context, "sweep", sides, unit="sweep", most_turns=turns, **where)


def _run(module: str, *arguments: Any, **environment: str) -> None:
    """Runs a module of the launchers, `".sweep"`, as a process; its memory is not measured.

    Raises:
      RuntimeError: with the last line it wrote, when it fails.
    """
    # The launchers are `launch` in a clone and `ddjax.launch` where they are installed.
    package = __name__.rpartition(".benchmarks.")[0]
    root = pathlib.Path(__file__).parents[len(package.split(".")) + 1]
    command = [sys.executable, "-m", package + module, *map(str, arguments)]
    done = subprocess.run(command, cwd=root, env=os.environ | environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{package}{module} failed: {(done.stderr.strip() or 'without a word').splitlines()[-1]}")


def _our_sweep(context: Context, epochs: int, cache: str) -> Side:
    temperatures = ",".join(map(str, _TEMPERATURES))
    flags = [f"--epochs={epochs}", f"--temperatures={temperatures}", f"--seed={context.seed}"]
    if jax.default_backend() == "cpu":
        flags.append(f"--devices={jax.local_device_count()}")

    def sweep() -> list[dict[str, Any]]:
        with tempfile.TemporaryDirectory() as workdir:
            _run(".sweep", f"--workdir={workdir}", *flags, JAX_COMPILATION_CACHE_DIR=cache)
            return runs.read_results(workdir)

    def describe(records: list[dict[str, Any]]) -> dict[str, Any]:
        fields: dict[str, Any] = {"epochs": epochs, "peak_bytes": None}
        for (end, network), (name, (field, where)) in itertools.product(_NETWORKS.items(), _FOUND.items()):
            of_network = [record for record in records if (where | network).items() <= record.items()]
            fields[f"{name}_{end}"] = of_network[0][field] if of_network else None
        return fields

    return Side(sweep, 1, describe)


def _torch_sweep(context: Context, recipe: recipes.Recipe, folder: pathlib.Path) -> Side:
    train, test = data.load("digits", "train", seed=context.seed), data.load("digits", "test", seed=context.seed)
    arrays: dict[str, Any] = {"train_images": data.to_float(train.images), "train_labels": train.labels}
    arrays |= {"test_images": data.to_float(test.images), "test_labels": test.labels}
    np.savez(folder / "data.npz", **arrays)
    settings: dict[str, Any] = {
        "network": peers.network_fields(models.build(recipe.network, train.num_classes)),
        "recipe": dataclasses.asdict(recipe),
        "temperatures": _TEMPERATURES,
        "per_class": _PER_CLASS,
        "seed": context.seed,
        "device": peers.device(),
    }
    settings |= _fastest(recipe, train, context.peers.torch)
    (folder / "settings.json").write_text(json.dumps(settings))

    def sweep() -> dict[str, Any]:
        _run(".benchmarks.torch_training", *(folder / name for name in ("data.npz", "settings.json", "results.json")))
        return json.loads((folder / "results.json").read_text())

    def describe(found: Mapping[str, Any]) -> dict[str, Any]:
        fields = {"epochs": recipe.epochs, "peak_bytes": None, "parts": found["seconds"]}
        fields |= {name: settings[name] for name in ("threads", "memory_format")}
        return fields | {f"{name}_{end}": found["results"][end][name] for end in _NETWORKS for name in _FOUND}

    return Side(sweep, 1, describe)


def _fastest(recipe: recipes.Recipe, train: data.Dataset, torch: Any) -> dict[str, Any]:
    """The number of threads and the memory format in which training steps take least time."""
    theirs, threads = peers.torch_training(), torch.get_num_threads()

    def trainer(count: int, formatted: str) -> Callable[[], None]:
        arguments = peers.training_arguments(recipe, train, recipe.batch_size, formatted)

        def steps() -> None:
            torch.set_num_threads(count)
            for _ in range(50):
                theirs.train_step(*arguments, temperature=1.0)

        return steps

    try:
        ways = [(count, formatted) for count in sorted({1, threads}) for formatted in theirs.FORMATS]
        count, formatted = peers.quickest({way: trainer(*way) for way in ways})
    finally:
        torch.set_num_threads(threads)
    return {"threads": count, "memory_format": formatted}
