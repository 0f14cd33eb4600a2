"""Carlini and Wagner's comparison of attacks: `python -m launch.carlini --recipe=mnist_quick`.

Trains a network, and a teacher and its student at `--temperature`, and attacks the undistilled and the distilled one
with C&W L0, L2 and Linf, JSMA on probabilities (F) and on logits (Z), DeepFool, and FGSM and iterative FGSM at the
smallest radius at which they succeed. All but DeepFool, which has no targets, aim at all classes but the true one. The
table has the best, the average and the worst case over targets, beside the published one where there is one.

The first `--num_examples` test images are attacked, 20 by default, the misclassified included, as the paper's code
does. `--quick` takes fewer and larger steps, `--num_steps` sets their number. A run that was stopped goes on when it
is started again.
"""

import dataclasses
import functools
from typing import Any

import numpy as np
from absl import flags

from ddjax import attacks, classifier, data, evaluation, metrics, runs
from ddjax.evaluation import ConfiguredAttack

from . import attacking, common, loading
from .trainer import trainer_of

FLAGS = flags.FLAGS
_TEMPERATURE = flags.DEFINE_float("temperature", 100.0, "The temperature of the distilled network.")
_QUICK = flags.DEFINE_bool("quick", False, "Takes fewer and larger steps.")
_NUM_STEPS = flags.DEFINE_integer(
    "num_steps", None, "Steps for each constant; default: 1000 in L2, else 500, or 300 if --quick.", lower_bound=1
)


def _smallest(attack: Any, **settings: Any) -> Any:
    """An attack at the smallest epsilon; settings that an attack has by the same name go to it."""

    def search(logits_fn: Any, inputs: Any, labels: Any, *, key: Any = None, targets: Any = None) -> Any:
        return attacks.smallest_epsilon(attack, logits_fn, inputs, labels, key=key, targets=targets, **settings)

    search.settings = settings | getattr(attack, "keywords", {})  # pyright: ignore[reportFunctionMemberAccess]
    return search


# Made once, so that both networks share the compiled programs.
_FGSM = _smallest(attacks.fgsm, grid=100, bisections=6)
_BIM = _smallest(functools.partial(attacks.bim, num_steps=100), grid=20, bisections=6)
_BIM_QUICK = _smallest(functools.partial(attacks.bim, num_steps=30), grid=20, bisections=6)


def _attacks(quick: bool, num_steps: int | None) -> dict[str, tuple[ConfiguredAttack, str]]:
    """The rows of the table: the attack, and the norm it is measured in."""

    def make(name: str, function: Any, numbers: dict[str, float], **words: Any) -> ConfiguredAttack:
        known = attacks.ATTACKS[name.removesuffix("_z").removesuffix("_f")]
        return ConfiguredAttack(name, dataclasses.replace(known, function=function), numbers, words)

    # Steps larger than the authors' 0.01 and 0.005 reach the same distances sooner. Beyond the largest constant of L0
    # the L2 term no longer counts; only the last, unsolvable problem of each image gets there.
    l2 = {"learning_rate": 0.1 if quick else 0.05, "initial_const": 0.1}
    l0 = {"learning_rate": 0.1, "largest_const": 1e3}
    linf = {"learning_rate": 0.02, "decrease_factor": 0.95}
    searches, steps, fewer_steps = (5, 300, 300) if quick else (9, 1000, 500)
    steps, fewer_steps = num_steps or steps, num_steps or fewer_steps
    return {
        "carlini_wagner_l0": (
            make("carlini_wagner_l0", attacks.carlini_wagner_l0, l0, num_steps=fewer_steps),
            "l0_pixels",
        ),
        "jsma_z": (make("jsma_z", attacks.jsma, {"gamma": 1.0}, score_space="logits"), "l0_pixels"),
        "jsma_f": (make("jsma_f", attacks.jsma, {"gamma": 1.0}, score_space="probs"), "l0_pixels"),
        "carlini_wagner_l2": (
            make("carlini_wagner_l2", attacks.carlini_wagner_l2, l2, search_steps=searches, num_steps=steps),
            "l2",
        ),
        "deepfool": (make("deepfool", attacks.deepfool, {}), "l2"),
        "carlini_wagner_linf": (
            make("carlini_wagner_linf", attacks.carlini_wagner_linf, linf, num_steps=fewer_steps),
            "linf",
        ),
        "fgsm": (make("fgsm", _FGSM, {}), "linf"),
        "bim": (make("bim", _BIM_QUICK if quick else _BIM, {}), "linf"),
    }


def main() -> None:
    """Trains and compares."""
    classifier.check_temperature(_TEMPERATURE.value)
    num_examples = 20 if FLAGS.num_examples is None else FLAGS.num_examples
    recipe = common.recipe_from_flags()
    flags_of_run = {"launcher": "carlini", "temperature": _TEMPERATURE.value, "quick": _QUICK.value}
    flags_of_run |= common.flags_of_training("batch_size") | {"num_examples": num_examples}
    if _NUM_STEPS.value is not None:
        flags_of_run["num_steps"] = _NUM_STEPS.value
    workdir = common.workdir("carlini")
    runs.check_workdir(workdir, flags_of_run)
    train, test = loading.load_data(recipe)
    loading.check_network(recipe, train)
    attacked = data.first(test, num_examples)
    chosen = _attacks(_QUICK.value, _NUM_STEPS.value)
    settings = {
        name: dict(attack.numbers) | dict(attack.words) | getattr(attack.attack.function, "settings", {})
        for name, (attack, _) in chosen.items()
    }
    run = runs.Run(workdir, flags_of_run, loading.describe(recipe, train, test) | {"attacks": settings})
    trainer = trainer_of(run, recipe, train)
    baseline = trainer.plain(FLAGS.seed)
    teacher, student = trainer.distilled(FLAGS.seed, _TEMPERATURE.value)
    images = data.to_float(test.images)
    networks = {"baseline": (baseline, None), "teacher": (teacher, _TEMPERATURE.value)}
    networks |= {"student": (student, _TEMPERATURE.value)}
    for name, (state, temperature) in networks.items():
        where = {"network": name, "temperature": temperature, "seed": FLAGS.seed}
        common.record_accuracy(run, where, state, images, test.labels)
    del networks["teacher"]
    for name, (attack, norm) in chosen.items():
        for network, (state, temperature) in networks.items():
            where = {"network": network, "temperature": temperature, "attack": name}
            if run.find(measure="carlini", **where) is None:
                _measure(run, where, attack, norm, state.logits_fn, attacked)
    _save_clean(run, attacked, baseline.logits_fn)
    common.write_report(run)


def _save_clean(run: runs.Run, attacked: data.Dataset, logits_fn: Any) -> None:
    attacking.save_clean(run, attacked, common.classify(logits_fn, data.to_float(attacked.images)))


def _measure(
    run: runs.Run, where: dict[str, Any], attack: ConfiguredAttack, norm: str, logits_fn: Any, attacked: data.Dataset
) -> None:
    clean = common.classify(logits_fn, data.to_float(attacked.images))
    targeted = attack.attack.targets != "no"
    tried = attacking.attempts("all" if targeted else "none", attacked, clean)
    outcome = attacking.run_attack(attack, logits_fn, tried, f"{where['network']} {attack.text}")
    attacking.save_outcome(run, f"{where['network']}_{attack.text}", tried, outcome)
    of_cases = metrics.cases(getattr(outcome.distances, norm), outcome.success, tried.rows)
    fields: dict[str, Any] = {}
    for name, case in of_cases.items():
        # Without targets an image's only attempt is its best case.
        known = case if targeted or name == "best" else None
        fields |= {
            f"{name}_successes": known and known.rate.successes,
            f"{name}_n": known and known.rate.n,
            f"{name}_success": known and known.rate.value,
            f"{name}_distance": known and known.distance,
        }
    run.append(
        measure="carlini",
        **where,
        norm=norm,
        targeted=targeted,
        images=len(attacked),
        n=len(tried.rows),
        **fields,
        misclassified=int((~metrics.correct(clean, attacked.labels)).sum()),
        success_8_bits=float(np.mean(outcome.success_8_bits)),
        **evaluation.costs(outcome),
    )


if __name__ == "__main__":
    common.run(main)
