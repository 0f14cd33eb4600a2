"""Attacks a trained network: `python -m launch.attack --checkpoint=DIR --attack=jsma --attack=fgsm:epsilon=0.3`.

An attack is its name, alone or with settings as `name:key=value,key=value`. Each writes one line to `results.jsonl` and
its images to `images/`. `--num_examples` correctly and wrongly classified test images are attacked, 100 by default,
spread evenly over the classes; the misclassified leave the count of successes.

`--targets` says which classes are aimed at: `auto` leaves an attack untargeted where it can be and else aims at all
other classes; `all`; `random`, one other class for each image; `next`, the class after the label; `least_likely`, the
one with the smallest logit.
"""

import dataclasses
import functools
import inspect
import math
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from ddjax import attacks, data, metrics, parallel, report, runs, training
from launch import common

FLAGS = flags.FLAGS
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "The directory of one network's checkpoints.")
_ATTACKS = flags.DEFINE_multi_string("attack", [], "An attack, name or name:key=value,...; repeats.")
_TARGETS = flags.DEFINE_enum(
    "targets", "auto", ["auto", "all", "random", "next", "least_likely"], "The classes aimed at."
)
_NEEDS_TARGETS = ("jsma",)
# Settled by the launcher, not by --attack.
_RESERVED = ("targets", "bounds")


def main() -> None:
    """Runs the attacks."""
    if _CHECKPOINT.value is None:
        raise ValueError("--checkpoint must name the directory of a network's checkpoints")
    if not _ATTACKS.value:
        raise ValueError(f"--attack must name at least one attack; known: {', '.join(attacks.ATTACKS)}")
    parsed = {text: parse_attack(text) for text in _ATTACKS.value}
    num_examples = 100 if FLAGS.num_examples is None else FLAGS.num_examples
    spec = runs.read_spec(_CHECKPOINT.value)
    dataset = FLAGS.dataset or spec.dataset
    workdir = pathlib.Path(FLAGS.workdir or f"runs/attack_{spec.recipe}")
    flags_of_run = {
        "checkpoint": str(pathlib.Path(_CHECKPOINT.value).resolve()),
        "recipe": spec.recipe,
        "dataset": dataset,
        "num_examples": num_examples,
        "targets": _TARGETS.value,
        "seed": FLAGS.seed,
        "batch_size": FLAGS.batch_size,
        "matmul_precision": FLAGS.matmul_precision,
    }
    runs.check_workdir(workdir, flags_of_run)
    test = data.load(dataset, "test", data_dir=FLAGS.data_dir, num_examples=num_examples, seed=FLAGS.seed)
    if test.image_shape != spec.image_shape or test.num_classes != spec.num_classes:
        raise ValueError(
            f"the network takes images of shape {spec.image_shape} in {spec.num_classes} classes; "
            f"{test.name} has {test.image_shape} in {test.num_classes}"
        )
    state, spec = runs.load_network(_CHECKPOINT.value)
    logits_fn = training.logits_fn(state)
    for attack, settings in parsed.values():
        _check_settings(attack, settings, logits_fn, spec.image_shape)
    resolved = dataclasses.asdict(spec) | {
        "class_names": test.class_names,
        "parameters_fingerprint": common.fingerprint(*jax.tree.leaves(state.params)),
        "test_fingerprint": common.fingerprint(test.images, test.labels),
    }
    run = runs.Run(workdir, flags_of_run, resolved)
    clean = common.classify(logits_fn, data.to_float(test.images))
    for text, (attack, settings) in parsed.items():
        if run.find(measure="attack", attack=text) is None:
            _measure(run, text, attack, settings, logits_fn, test, clean)
    for record in runs.read_results(run.workdir):
        print(
            f"{record['attack']}: success {record['success']:.4f} [{record['success_low']:.4f}, "
            f"{record['success_high']:.4f}] of {record['n']}, "
            f"after 8-bit rounding {record['success_8_bits']:.4f}"
        )
    print(f"report: {report.write(run.workdir)}")


def parse_attack(text: str) -> tuple[Callable[..., attacks.AttackResult], dict[str, Any]]:
    """Reads `name` or `name:key=value,key=value`.

    Raises:
      ValueError: for an unknown name or key, or a setting without a value; the message lists the known ones.
    """
    name, _, rest = text.partition(":")
    if name not in attacks.ATTACKS:
        raise ValueError(f"unknown attack {name!r}; known: {', '.join(attacks.ATTACKS)}")
    attack = attacks.ATTACKS[name]
    known = [
        parameter.name
        for parameter in inspect.signature(attack).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY and parameter.name not in _RESERVED
    ]
    settings = {}
    for part in rest.split(",") if rest else []:
        key, equals, value = part.partition("=")
        if key not in known:
            raise ValueError(f"attack {name} has no setting {key!r}; known: {', '.join(known)}")
        if not equals or not value:
            raise ValueError(f"--attack={text}: {key!r} needs a value, as in {key}=VALUE")
        default = inspect.signature(attack).parameters[key].default
        settings[key] = _read_number(text, key, value) if isinstance(default, int | float) else value
    return attack, settings


def _read_number(text: str, key: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        raise ValueError(f"--attack={text}: {key} must be a number, got {value!r}") from None
    if not math.isfinite(number):
        raise ValueError(f"--attack={text}: {key} must be finite, got {value}")
    return number


def choose_targets(how: str, logits: np.ndarray, labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Chooses targets, never the label.

    Args:
      how: `"all"`, `"random"`, `"next"` or `"least_likely"`.
      logits: of the clean images, `[N, K]`.
      labels: `[N]`.
      seed: for `"random"`.

    Returns:
      For each attempt the row of its image, and its target.
    """
    count, classes = logits.shape
    if how == "all":
        rows, targets = np.repeat(np.arange(count), classes), np.tile(np.arange(classes), count)
        other = targets != labels[rows]
        return rows[other], targets[other].astype(np.int32)
    if how == "random":
        targets = (labels + np.random.default_rng(seed).integers(1, classes, count)) % classes
    elif how == "next":
        targets = (labels + 1) % classes
    else:
        targets = np.where(np.arange(classes) == labels[:, None], np.inf, logits).argmin(1)
    return np.arange(count), targets.astype(np.int32)


def _check_settings(
    attack: Callable[..., attacks.AttackResult],
    settings: dict[str, Any],
    logits_fn: Any,
    image_shape: tuple[int, int, int],
) -> None:
    """Lets the attack refuse its settings: traced without running, while the settings' values are still known."""
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    label = jax.ShapeDtypeStruct((1,), jnp.int32)
    jax.eval_shape(lambda f, x, y, t: attack(f, x, y, targets=t, **settings), logits_fn, image, label, label)


def _measure(
    run: runs.Run,
    text: str,
    attack: Callable[..., attacks.AttackResult],
    settings: dict[str, Any],
    logits_fn: Any,
    test: data.Dataset,
    clean: np.ndarray,
) -> None:
    name = text.partition(":")[0]
    untargeted = _TARGETS.value == "auto" and name not in _NEEDS_TARGETS
    if untargeted:
        rows, targets = np.arange(len(test)), None
    else:
        rows, targets = choose_targets(
            "all" if _TARGETS.value == "auto" else _TARGETS.value, clean, test.labels, FLAGS.seed
        )
    images, labels = data.to_float(test.images)[rows], test.labels[rows]
    # Numbers are arguments of the compiled program, words are part of it.
    numbers = {key: jnp.float32(value) for key, value in settings.items() if isinstance(value, int | float)}
    words = {key: value for key, value in settings.items() if key not in numbers}
    compiled = jax.jit(functools.partial(attack, **words))
    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(FLAGS.seed)))(test.indices[rows])
    with common.progress(len(rows), text, "attempt") as bar:
        call = lambda images, labels, data, *targets: compiled(
            logits_fn,
            images,
            labels,
            jax.random.wrap_key_data(data),
            targets=targets[0] if targets else None,
            **numbers,
        )
        key_data = np.asarray(jax.random.key_data(keys))
        arrays = (images, labels, key_data, *(() if targets is None else (targets,)))
        result = parallel.map_batches(call, *arrays, batch_size=FLAGS.batch_size, progress=bar.update)
    correct = metrics.correct(clean, test.labels)[rows]
    # What the attack says of itself is not taken for it.
    decisions = common.classify(logits_fn, result.images).argmax(1)
    success = decisions != labels if targets is None else decisions == targets
    rate = metrics.success_rate(success, correct)
    low, high = metrics.wilson_interval(rate.successes, rate.n)
    rounded = common.classify(logits_fn, np.asarray(metrics.round_to_8_bits(jnp.asarray(result.images)))).argmax(1)
    rounded_success = rounded != labels if targets is None else rounded == targets
    counted = success & correct
    measured = metrics.distances(jnp.asarray(images), jnp.asarray(result.images))
    summary = {}
    for norm, values in measured._asdict().items():
        of_successes = np.asarray(values)[counted]
        for statistic, function in (("mean", np.mean), ("median", np.median), ("worst", np.max)):
            summary[f"{norm}_{statistic}"] = float(function(of_successes)) if len(of_successes) else None
    number = len(runs.read_results(run.workdir))
    run.save_arrays(f"images/{number}_{name}", images=result.images, success=success, labels=labels, rows=rows)
    run.append(
        measure="attack",
        attack=text,
        targets="none" if untargeted else _TARGETS.value,
        n=rate.n,
        successes=rate.successes,
        success=rate.value,
        success_low=low,
        success_high=high,
        misclassified=int((~correct).sum()),
        successes_8_bits=metrics.success_rate(rounded_success, correct).successes,
        success_8_bits=metrics.success_rate(rounded_success, correct).value,
        **summary,
        mean_steps=float(result.steps.mean()),
    )


if __name__ == "__main__":
    common.run(main)
