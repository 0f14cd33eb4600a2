"""Measures the transfer of confident adversarial examples: `python -m launch.transfer --recipe=mnist_quick`.

Trains a source network on the first half of the training set and, on the second half, a plain network and one distilled
at `--temperature`. Images made on the source by C&W L2 with each confidence of `--kappas` are then shown to the other
two: the share that fools them, for untargeted attacks and for attacks at a random target. For each of the two, only
images count that it and the source classify correctly without an attack, and on which the attack on the source
succeeded.

The first `--num_examples` test images are attacked, 100 by default. A run that was stopped goes on when it is started
again.

Reference:
  Carlini and Wagner, Towards Evaluating the Robustness of Neural Networks, 2017 (arXiv 1608.04644), section VIII-D.
"""

from typing import Any

import jax
import numpy as np
from absl import flags

from ddjax import attacks, checks, classifier, data, evaluation, metrics, runs
from ddjax.evaluation import ConfiguredAttack

from . import attacking, common, exporting, loading, networks

FLAGS = flags.FLAGS
_TEMPERATURE = flags.DEFINE_float("temperature", 100.0, "The temperature of the distilled network.")
_KAPPAS = flags.DEFINE_list("kappas", "0,5,10,15,20,25,30,35,40", "The confidences of the attack, kappa in the paper.")
_SEARCH_STEPS = flags.DEFINE_integer("search_steps", 4, "Constants tried by the attack.", lower_bound=1)
_NUM_STEPS = flags.DEFINE_integer("num_steps", 200, "Steps of the attack for each constant.", lower_bound=1)
_LEARNING_RATE = flags.DEFINE_float("learning_rate", 0.1, "The learning rate of the attack.")
_INITIAL_CONST = flags.DEFINE_float("initial_const", 1.0, "The first constant of the attack.")


def main() -> None:
    """Trains and transfers."""
    classifier.check_temperature(_TEMPERATURE.value)
    kappas = common.numbers("kappas")
    attack = ConfiguredAttack(
        "carlini_wagner_l2",
        attacks.ATTACKS["carlini_wagner_l2"],
        {"learning_rate": _LEARNING_RATE.value, "initial_const": _INITIAL_CONST.value},
        {"search_steps": _SEARCH_STEPS.value, "num_steps": _NUM_STEPS.value},
    )
    for name, value in attack.numbers.items():
        checks.check_number(f"--{name}", value, above=0.0)
    flags_of_run = {"launcher": "transfer", "temperature": _TEMPERATURE.value, "kappas": kappas}
    flags_of_run |= common.flags_of_training("batch_size") | dict(attack.numbers) | dict(attack.words)
    flags_of_run |= networks.flags_of_run()
    flags_of_run["num_examples"] = 100 if FLAGS.num_examples is None else FLAGS.num_examples
    begun = loading.begin(common.workdir("transfer"), flags_of_run)
    # The default asks for no more than there are.
    count = min(100, len(begun.test)) if FLAGS.num_examples is None else FLAGS.num_examples
    attacked, half = data.first(begun.test, count), len(begun.train) // 2
    exporting.check_shape(attacked.images.shape[1:])
    if not half:
        raise ValueError(f"{begun.train.name} has no two halves to train on: it has {len(begun.train)} images")
    attack = attack.limited(**attacked.limits)
    own = networks.load(None, begun.test) if networks.is_own() else None
    run = begun.open(num_train=half, **networks.fingerprint_of(own))
    halves = [data.rows_of(begun.train, slice(start, start + half)) for start in (0, half)]
    source = loading.trainer_of(run, begun.recipe, halves[0]).plain(FLAGS.seed, role="source")
    trained: dict[str, tuple[Any, float | None]] = {"source": (source.logits_fn, None)}
    if own is not None:
        trained[networks.OWN] = (own.logits_fn, None)
        shown = {networks.OWN: own.logits_fn}
    else:
        trainer = loading.trainer_of(run, begun.recipe, halves[1])
        plain = trainer.plain(FLAGS.seed, role="plain")
        teacher, student = (state.logits_fn for state in trainer.distilled(FLAGS.seed, _TEMPERATURE.value))
        trained |= {"plain": (plain.logits_fn, None)}
        trained |= {"teacher": (teacher, _TEMPERATURE.value), "student": (student, _TEMPERATURE.value)}
        shown = {"plain": plain.logits_fn, "distilled": student}
    common.record_accuracies(run, trained, begun.test)
    for targeted in (False, True):
        _measure(run, attack, kappas, targeted, source.logits_fn, shown, attacked)
    common.write_report(run)


def _measure(
    run: runs.Run,
    attack: ConfiguredAttack,
    kappas: list[float],
    targeted: bool,
    source: Any,
    shown: dict[str, Any],
    attacked: data.Dataset,
) -> None:
    """Makes the examples of all confidences as one batch, on the source, and shows them to the other networks."""
    if all(run.find(measure="transfer", targeted=targeted, target=name, kappa=kappas[-1]) for name in shown):
        return
    clean = common.classify(source, data.to_float(attacked.images))
    once = attacking.attempts("random" if targeted else "none", attacked, clean)
    count, description = len(once.rows), "targeted" if targeted else "untargeted"
    tried = jax.tree.map(lambda values: np.concatenate([values] * len(kappas)), once)
    confidence = np.repeat(np.asarray(kappas, np.float32), count)
    outcome = attacking.run_attack(attack, source, tried, description, per_example={"confidence": confidence})
    attacking.save_outcome(run, f"source_{description}", tried, outcome)
    exporting.save(run, f"source_{description}", tried, outcome.inputs, outcome.success)
    correct = metrics.correct(clean, attacked.labels)
    for name, logits_fn in shown.items():
        also_correct = correct & metrics.correct(common.classify(logits_fn, tried.inputs[:count]), attacked.labels)
        evaluate = common.evaluator()
        fooled = evaluation.judge(logits_fn, outcome.inputs, tried.labels, tried.targets, evaluate=evaluate).success[0]
        for number, kappa in enumerate(kappas):
            where = {"measure": "transfer", "target": name, "kappa": kappa, "targeted": targeted}
            if run.find(**where) is not None:
                continue
            rows = slice(number * count, (number + 1) * count)
            counted = outcome.success[rows] & also_correct
            rate = metrics.success_rate(fooled[rows], counted)
            low, high = metrics.wilson_interval(*rate)
            distances = outcome.distances.l2[rows][counted]
            fields = {"temperature": _TEMPERATURE.value if name == "distilled" else None, "sources": int(correct.sum())}
            fields |= {"source_successes": int((outcome.success[rows] & correct).sum())}
            fields |= {"n": rate.n, "transferred": rate.successes, "rate": rate.value, "low": low, "high": high}
            run.append(**where, **fields, mean_l2=float(distances.mean()) if len(distances) else None)


if __name__ == "__main__":
    common.run(main)
