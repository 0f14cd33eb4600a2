"""The main job: distill at every temperature, attack, report. `python -m launch.sweep`.

Trains the undistilled network and, at each temperature, a teacher and its student; measures accuracy, logits and
adversarial gradients; attacks each network with FGSM and with JSMA, the latter on the probabilities at temperature 1
and on those at the training temperature; writes `table.csv`, `figures/` and `report.html` beside `results.jsonl`. A
sweep that was stopped continues when it is started again with the same flags.

All networks are trained first, as one program: the undistilled ones and the teachers, then the students.
`--shard=i/n` trains and measures every n-th of them alone, for job arrays; `launch.report` with the same `--workdir`
puts the pieces together.

`--num_examples` is the number of test images that JSMA attacks, spread evenly over the classes; by default ten a class.
"""

import functools
from typing import Any

import jax
import numpy as np
from absl import flags

from ddjax import attacks, classifier, data, jacobian, metrics, runs, training
from ddjax.evaluation import Attempts, ConfiguredAttack, Outcome

from . import attacking, common, loading, shards

FLAGS = flags.FLAGS
_TEMPERATURES = flags.DEFINE_list("temperatures", "1,2,5,10,20,30,40,50,100", "The temperatures to distill at.")
_SEEDS = flags.DEFINE_list("seeds", None, "The seeds to train with; default: the one of --seed.")
_SHARD = flags.DEFINE_string("shard", None, "Which piece of the sweep this is, i/n with i from 0 to n - 1.")
_IMAGES_PER_CLASS = 10


def main() -> None:
    """Runs the sweep."""
    temperatures = common.numbers("temperatures")
    for temperature in temperatures:
        classifier.check_temperature(temperature)
    if len({training.tag(temperature) for temperature in temperatures}) < len(temperatures):
        raise ValueError(f"--temperatures must differ in their first six digits, got {_TEMPERATURES.value}")
    seeds = common.numbers("seeds", int, most=2**31 - 1) if _SEEDS.value else [FLAGS.seed]
    shard = shards.parse(_SHARD.value) if _SHARD.value else None
    flags_of_run = common.flags_of_training("num_examples", "batch_size")
    flags_of_run |= {"temperatures": temperatures, "seeds": seeds}
    rows = [(seed, temperature) for seed in seeds for temperature in (None, *temperatures)]
    if shard is not None:
        rows = shard.take(rows)
        if not rows:
            raise ValueError(f"--shard={_SHARD.value}: there are only {len(seeds) * (1 + len(temperatures))} networks")
        flags_of_run |= {"shard": _SHARD.value}
    begun = loading.begin(common.workdir("sweep") / (shard.directory if shard else ""), flags_of_run)
    _check_jsma(begun)
    run = begun.open()
    _measure(run, begun, rows)
    if shard is None:
        common.write_report(run)
    else:
        print(f"{run.workdir}: done; python -m launch.report --workdir={common.workdir('sweep')} merges the pieces")


def _check_jsma(begun: loading.Beginning) -> None:
    classes, features = begun.test.num_classes, int(np.prod(begun.test.image_shape))
    if FLAGS.num_examples is not None and FLAGS.num_examples < classes:
        raise ValueError(f"--num_examples={FLAGS.num_examples} is less than one image for each of {classes} classes")
    recipe = begun.recipe
    if not 2 <= recipe.jsma_features <= features:
        raise ValueError(
            f"recipe {recipe.name} lets JSMA change {recipe.jsma_features} features; the inputs have {features}"
        )


def _where(seed: int, temperature: float | None) -> dict[str, Any]:
    """The fields that name a row's network in the results."""
    return {"seed": seed, "temperature": temperature, "network": "baseline" if temperature is None else "student"}


def _measure(run: runs.Run, begun: loading.Beginning, rows: list[tuple[int, float | None]]) -> None:
    """Trains or restores what the rows that are not finished need, also the undistilled networks; measures them."""
    left = [row for row in rows if run.find(measure="finished", **_where(*row)) is None]
    seeds = sorted({seed for seed, _ in left})
    pairs = [(seed, temperature) for seed, temperature in left if temperature is not None]
    baselines, distilled = loading.trainer_of(run, begun.recipe, begun.train).sweep(seeds, pairs)
    undistilled = {
        seed: _Network(run, begun, _where(seed, None), state) for seed, state in zip(seeds, baselines, strict=True)
    }
    distilled = dict(zip(pairs, distilled, strict=True))
    with common.progress(len(left), "attacks", "network") as bar:
        for seed, temperature in left:
            network = undistilled[seed]
            if temperature is not None:
                teacher, student = distilled[seed, temperature]
                network = _Network(run, begun, _where(seed, temperature), student, network)
                common.record_accuracy(run, network.where | {"network": "teacher"}, teacher.logits_fn, begun.test)
            network.measure()
            bar.update()


class _Network:
    """One network of the sweep under attack; each measurement is skipped when it is on disk."""

    def __init__(
        self,
        run: runs.Run,
        begun: loading.Beginning,
        where: dict[str, Any],
        state: training.TrainState,
        undistilled: "_Network | None" = None,
    ) -> None:
        """Takes a network, the fields that name it in the results, and the undistilled one of its seed."""
        self._run, self._recipe, self._test, self.where, self._state = run, begun.recipe, begun.test, where, state
        self._undistilled = undistilled or self

    def measure(self) -> None:
        """Makes all measurements."""
        common.record_accuracy(self._run, self.where, self._state.logits_fn, self._test)
        self._measure_gradients()
        self._measure_fgsm("fgsm", self.fgsm.predictions)
        if self._undistilled is not self:
            self._measure_fgsm("fgsm_transfer", self._predictions_on_undistilled)
        self._measure_jsma()
        self._append("finished")

    def _append(self, measure: str, **fields: Any) -> None:
        """Adds a measurement, unless it is on disk."""
        if self._run.find(**self.where, measure=measure) is None:
            self._run.append(**self.where, measure=measure, **fields)

    @functools.cached_property
    def _logits(self) -> np.ndarray:
        return common.classify(self._state.logits_fn, self._test.images)

    @functools.cached_property
    def correct(self) -> np.ndarray:
        """Which test images are classified correctly."""
        return metrics.correct(self._logits, self._test.labels)

    @functools.cached_property
    def fgsm(self) -> Outcome:
        """FGSM on the test set."""
        attack = ConfiguredAttack("fgsm", attacks.ATTACKS["fgsm"], {"epsilon": self._recipe.fgsm_epsilon})
        attack = attack.limited(**self._test.limits)
        return attacking.run_attack(attack, self._state.logits_fn, attacking.attempts("none", self._test), "fgsm")

    @functools.cached_property
    def _predictions_on_undistilled(self) -> np.ndarray:
        """The classes of what FGSM makes on the undistilled network."""
        return common.classify(self._state.logits_fn, self._undistilled.fgsm.inputs).argmax(1)

    def _measure_gradients(self) -> None:
        images, batch_size = data.to_float(self._test.images), min(FLAGS.batch_size, 128 * jax.device_count())
        _, is_zero, log10, logits = common.evaluate(
            jacobian.amplitude, self._state.logits_fn, images, batch_size=batch_size
        )
        mean, deviation = metrics.mean_absolute_logit(logits)
        self._append("logits", n=len(logits), mean_abs_logit=mean, std_abs_logit=deviation)
        # Minus infinity: the logits do not depend on the image at all, as where every ReLU is dead.
        finite = log10[np.isfinite(log10)]
        decades, counts = np.unique(np.floor(finite).astype(int), return_counts=True)
        fields = {"n": len(logits), "zero": int(is_zero.sum()), "zero_gradient_share": int(is_zero.sum()) / len(logits)}
        fields |= {"log10_adversarial_gradient": float(finite.mean()) if len(finite) else None}
        fields |= {"constant": len(log10) - len(finite), "decades": decades.tolist(), "decade_counts": counts.tolist()}
        self._append("gradients", **fields)

    def _measure_fgsm(self, measure: str, predictions: np.ndarray) -> None:
        rate = metrics.success_rate(predictions != self._test.labels, self.correct)
        fields = {"n": rate.n, "successes": rate.successes, "success": rate.value}
        self._append(measure, epsilon=self._recipe.fgsm_epsilon, **fields)

    def _measure_jsma(self) -> None:
        """Attacks the first correct images of each class towards all other classes, in both score spaces."""
        classes = self._test.num_classes
        per_class = _IMAGES_PER_CLASS if FLAGS.num_examples is None else FLAGS.num_examples // classes
        of_class = [np.flatnonzero(self.correct & (self._test.labels == label))[:per_class] for label in range(classes)]
        sources = np.concatenate(of_class)
        if len(sources) == 0:
            # A network that gets nothing right leaves nothing to attack; the report shows the gap.
            return
        tried = attacking.attempts("all", data.rows_of(self._test, sources), self._logits[sources])
        num_features, cap = tried.inputs[0].size, self._recipe.jsma_features // 2 * 2
        gamma = self._recipe.jsma_features / num_features
        # At temperature 1 the two attacks are one.
        outcome = None
        for space, temperature in (("probs", 1.0), ("tempered", self.where["temperature"] or 1.0)):
            if self._run.find(measure="jsma", space=space, **self.where) is not None:
                continue
            if outcome is None or temperature != 1.0:
                # One program for both score spaces: the tempered one at temperature 1 is that of the probabilities.
                numbers, words = {"gamma": gamma, "temperature": temperature}, {"score_space": "tempered"}
                attack = ConfiguredAttack("jsma", attacks.ATTACKS["jsma"], numbers, words).limited(**self._test.limits)
                outcome = attacking.run_attack(attack, self._state.logits_fn, tried, f"jsma, {space}")
            if space == "probs":
                self._save_examples(tried, outcome)
            success, changed = outcome.success, np.asarray(outcome.distances.l0_values)
            robust = metrics.robustness(changed, success, tried.rows, num_features=num_features, cap=cap)
            fields = {"space": space, "attack_temperature": temperature, "theta": 1.0, "gamma": gamma}
            fields |= {"max_features": cap, "num_features": num_features}
            fields |= {"n": len(success), "successes": int(success.sum()), "success": float(success.mean())}
            fields |= {"images": robust.images, "robustness": robust.mean}
            fields |= {"capped_images": robust.capped, "capped_share": robust.capped / robust.images}
            fields |= {"mean_features": float(changed[success].mean()) if success.any() else None}
            self._run.append(**self.where, measure="jsma", **fields)

    def _save_examples(self, tried: Attempts, outcome: Outcome) -> None:
        """Keeps what the report shows: a grid of JSMA images, source by target class."""
        classes = self._test.num_classes
        grid = np.zeros((classes, classes, *self._test.image_shape), np.float32)
        success, present = np.zeros(grid.shape[:2], bool), np.zeros(len(grid), bool)
        # The attempts on the first image of each class.
        labels, first = np.unique(tried.labels, return_index=True)
        shown = np.isin(tried.rows, tried.rows[first])
        cells = tried.labels[shown], np.asarray(tried.targets)[shown]
        grid[labels, labels], present[labels] = tried.inputs[first], True
        grid[cells], success[cells] = outcome.inputs[shown], outcome.success[shown]
        self._run.save_arrays(
            f"examples/seed{self.where['seed']}_{training.tag(self.where['temperature'])}",
            jsma_images=grid,
            jsma_success=success,
            jsma_present=present,
            jsma_changed=metrics.share_changed(tried.inputs[outcome.success], outcome.inputs[outcome.success]),
        )


if __name__ == "__main__":
    common.run(main)
