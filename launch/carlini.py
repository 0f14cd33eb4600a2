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

from . import attacking, common, exporting, loading, networks

FLAGS = flags.FLAGS
_TEMPERATURE = flags.DEFINE_float("temperature", 100.0, "The temperature of the distilled network.")
_QUICK = flags.DEFINE_bool("quick", False, "Takes fewer and larger steps.")
_NUM_STEPS = flags.DEFINE_integer(
    "num_steps", None, "Steps for each constant; default: 1000 in L2, else 500, or 300 if --quick.", lower_bound=1
)


# Made once, so that both networks share the compiled programs.
_FGSM = functools.partial(attacks.smallest_epsilon, attacks.fgsm)
_BIM = functools.partial(attacks.smallest_epsilon, functools.partial(attacks.bim, num_steps=100))
_BIM_QUICK = functools.partial(attacks.smallest_epsilon, functools.partial(attacks.bim, num_steps=30))


def _attacks(quick: bool, num_steps: int | None) -> list[ConfiguredAttack]:
    """The rows of the table."""

    def make(name: str, function: Any, numbers: dict[str, float], **words: Any) -> ConfiguredAttack:
        known = attacks.ATTACKS[name.removesuffix("_z").removesuffix("_f")]
        return ConfiguredAttack(name, dataclasses.replace(known, function=function), numbers, words)

    # Steps larger than the authors' 0.01 and 0.005 reach the same distances sooner. Beyond the largest constant of L0
    # the L2 term no longer counts; only the last, unsolvable problem of each image gets there.
    l0 = {"learning_rate": 0.1, "largest_const": 1e3}
    l2 = {"learning_rate": 0.1 if quick else 0.05, "initial_const": 0.1}
    linf = {"learning_rate": 0.02, "decrease_factor": 0.95}
    searches, steps, fewer_steps = (5, 300, 300) if quick else (9, 1000, 500)
    steps, fewer_steps = num_steps or steps, num_steps or fewer_steps
    return [
        make("carlini_wagner_l0", attacks.carlini_wagner_l0, l0, num_steps=fewer_steps),
        make("jsma_z", attacks.jsma, {"gamma": 1.0}, score_space="logits"),
        make("jsma_f", attacks.jsma, {"gamma": 1.0}, score_space="probs"),
        make("carlini_wagner_l2", attacks.carlini_wagner_l2, l2, search_steps=searches, num_steps=steps),
        make("deepfool", attacks.deepfool, {}),
        make("carlini_wagner_linf", attacks.carlini_wagner_linf, linf, num_steps=fewer_steps),
        make("fgsm", _FGSM, {}, grid=100, bisections=6),
        make("bim", _BIM_QUICK if quick else _BIM, {}, grid=20, bisections=6),
    ]


def _settings(attack: ConfiguredAttack) -> dict[str, Any]:
    """The settings of a row, those included that the function has from the start."""
    function, found = attack.attack.function, dict(attack.numbers) | dict(attack.words)
    return found | (getattr(function.args[0], "keywords", {}) if isinstance(function, functools.partial) else {})


def main() -> None:
    """Trains and compares."""
    classifier.check_temperature(_TEMPERATURE.value)
    flags_of_run = {"launcher": "carlini", "temperature": _TEMPERATURE.value, "quick": _QUICK.value}
    flags_of_run |= common.flags_of_training("batch_size")
    flags_of_run |= networks.flags_of_run()
    flags_of_run["num_examples"] = 20 if FLAGS.num_examples is None else FLAGS.num_examples
    if _NUM_STEPS.value is not None:
        flags_of_run["num_steps"] = _NUM_STEPS.value
    begun = loading.begin(common.workdir("carlini"), flags_of_run)
    attacked = data.first(begun.test, flags_of_run["num_examples"])
    exporting.check_shape(attacked.images.shape[1:])
    chosen = [attack.limited(**attacked.limits) for attack in _attacks(_QUICK.value, _NUM_STEPS.value)]
    own = networks.load(None, begun.test) if networks.is_own() else None
    run = begun.open(attacks={attack.text: _settings(attack) for attack in chosen}, **networks.fingerprint_of(own))
    if own is not None:
        compared: dict[str, tuple[Any, float | None]] = {networks.OWN: (own.logits_fn, None)}
    else:
        trainer = loading.trainer_of(run, begun.recipe, begun.train)
        baseline = trainer.plain(FLAGS.seed)
        teacher, student = (state.logits_fn for state in trainer.distilled(FLAGS.seed, _TEMPERATURE.value))
        compared = {"baseline": (baseline.logits_fn, None), "teacher": (teacher, _TEMPERATURE.value)}
        compared |= {"student": (student, _TEMPERATURE.value)}
    common.record_accuracies(run, compared, begun.test)
    for attack in chosen:
        for network in [name for name in compared if name != "teacher"]:
            logits_fn, temperature = compared[network]
            where = {"network": network, "temperature": temperature, "attack": attack.text}
            if run.find(measure="carlini", **where) is None:
                _measure(run, where, attack, logits_fn, attacked)
    attacking.save_clean(run, attacked, common.classify(next(iter(compared.values()))[0], attacked.images))
    common.write_report(run)


def _measure(
    run: runs.Run, where: dict[str, Any], attack: ConfiguredAttack, logits_fn: Any, attacked: data.Dataset
) -> None:
    clean = common.classify(logits_fn, attacked.images)
    targeted = attack.attack.targets != "no"
    norm = common.counted(attacked) if attack.norm == "l0" else attack.norm
    tried = attacking.attempts("all" if targeted else "none", attacked, clean)
    outcome = attacking.run_attack(attack, logits_fn, tried, f"{where['network']} {attack.text}")
    name = f"{where['network']}_{attack.text}"
    attacking.save_outcome(run, name, tried, outcome)
    exporting.save(run, name, tried, outcome.inputs, outcome.success)
    # Without targets an image's only attempt is its best case.
    known = ("best", "average", "worst") if targeted else ("best",)
    fields = {"norm": norm, "targeted": targeted, "images": len(attacked), "n": len(tried.rows)}
    fields |= attacking.case_fields(outcome, tried, {norm: "distance"}, known) | evaluation.costs(outcome)
    fields |= {"misclassified": int((~metrics.correct(clean, attacked.labels)).sum())}
    if outcome.success_8_bits is not None:
        fields["success_8_bits"] = float(np.mean(outcome.success_8_bits))
    run.append(measure="carlini", **where, **fields)


if __name__ == "__main__":
    common.run(main)
