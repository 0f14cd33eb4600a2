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

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from ddjax import attacks, classifier, data, jacobian, metrics, runs, training

from . import common, loading, recipes, shards
from .trainer import trainer_of

FLAGS = flags.FLAGS
_TEMPERATURES = flags.DEFINE_list("temperatures", "1,2,5,10,20,30,40,50,100", "The temperatures to distill at.")
_SEEDS = flags.DEFINE_list("seeds", None, "The seeds to train with; default: the one of --seed.")
_SHARD = flags.DEFINE_string("shard", None, "Which piece of the sweep this is, i/n with i from 0 to n - 1.")
_IMAGES_PER_CLASS = 10


def _jsma(shared: Any, images: jax.Array, labels: jax.Array, targets: jax.Array) -> attacks.AttackResult:
    """One program for both score spaces: the tempered one at temperature 1 is that of the probabilities."""
    logits_fn, gamma, temperature = shared
    return attacks.jsma(
        logits_fn, images, labels, targets=targets, gamma=gamma, score_space="tempered", temperature=temperature
    )


def _fgsm(shared: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
    logits_fn, epsilon = shared
    return attacks.fgsm(logits_fn, images, labels, epsilon=epsilon).inputs


def main() -> None:
    """Runs the sweep."""
    temperatures = _numbers("temperatures", _TEMPERATURES.value, float)
    for temperature in temperatures:
        classifier.check_temperature(temperature)
    if len({common.tag(temperature) for temperature in temperatures}) < len(temperatures):
        raise ValueError(f"--temperatures must differ in their first six digits, got {_TEMPERATURES.value}")
    seeds = _numbers("seeds", _SEEDS.value, int) if _SEEDS.value else [FLAGS.seed]
    recipe = common.recipe_from_flags()
    shard = shards.parse(_SHARD.value) if _SHARD.value else None
    workdir = common.workdir("sweep") / (shard.directory if shard else "")
    flags_of_run = common.flags_of_training("num_examples", "batch_size")
    flags_of_run |= {"temperatures": temperatures, "seeds": seeds}
    rows = [(seed, temperature) for seed in seeds for temperature in (None, *temperatures)]
    if shard is not None:
        rows = shard.take(rows)
        if not rows:
            raise ValueError(f"--shard={_SHARD.value}: there are only {len(seeds) * (1 + len(temperatures))} networks")
        flags_of_run |= {"shard": _SHARD.value}
    runs.check_workdir(workdir, flags_of_run)
    train, test = loading.load_data(recipe)
    loading.check_network(recipe, train)
    per_class = _images_per_class(test.num_classes)
    features = int(np.prod(train.image_shape))
    if not 2 <= recipe.jsma_features <= features:
        raise ValueError(
            f"recipe {recipe.name} lets JSMA change {recipe.jsma_features} features; images have {features}"
        )
    run = runs.Run(workdir, flags_of_run, loading.describe(recipe, train, test))
    sweep = _Sweep(run, recipe, train, test, per_class)
    sweep.train(rows)
    with common.progress(len(rows), "attacks", "network") as bar:
        for seed, temperature in rows:
            sweep.row(seed, temperature)
            bar.update()
    if shard is None:
        common.write_report(run)
    else:
        print(f"{run.workdir}: done; python -m launch.report --workdir={common.workdir('sweep')} merges the pieces")


def _numbers(name: str, texts: list[str], kind: type) -> list[Any]:
    try:
        numbers = [kind(text) for text in texts]
    except ValueError:
        raise ValueError(f"--{name} must be numbers separated by commas, got {','.join(texts)}") from None
    if kind is int and not all(0 <= number < 2**31 for number in numbers):
        raise ValueError(f"--{name} must be from 0 to 2^31 - 1, got {','.join(texts)}")
    if not numbers or len(set(numbers)) != len(numbers):
        raise ValueError(f"--{name} must be one or more different numbers, got {','.join(texts)}")
    return sorted(numbers)


def _images_per_class(num_classes: int) -> int:
    if FLAGS.num_examples is None:
        return _IMAGES_PER_CLASS
    if FLAGS.num_examples < num_classes:
        raise ValueError(
            f"--num_examples={FLAGS.num_examples} is less than one image for each of {num_classes} classes"
        )
    return FLAGS.num_examples // num_classes


def _where(seed: int, temperature: float | None) -> dict[str, Any]:
    """The fields that name a row's network in the results."""
    return {"seed": seed, "temperature": temperature, "network": "baseline" if temperature is None else "student"}


class _Sweep:
    """The measurements of one run; each is skipped when it is on disk."""

    def __init__(
        self, run: runs.Run, recipe: recipes.Recipe, train: data.Dataset, test: data.Dataset, per_class: int
    ) -> None:
        self._run, self._recipe, self._per_class = run, recipe, per_class
        self._trainer = trainer_of(run, recipe, train)
        self._images, self._labels = data.to_float(test.images), test.labels
        self._num_classes = test.num_classes
        self._baselines: dict[int, training.TrainState] = {}
        self._distilled: dict[tuple[int, float], tuple[training.TrainState, training.TrainState]] = {}

    def train(self, rows: Sequence[tuple[int, float | None]]) -> None:
        """Trains or restores what the rows that are not finished need: their own networks and the undistilled ones."""
        left = [row for row in rows if self._run.find(measure="finished", **_where(*row)) is None]
        seeds = sorted({seed for seed, _ in left})
        pairs = [(seed, temperature) for seed, temperature in left if temperature is not None]
        baselines, distilled = self._trainer.sweep(seeds, pairs)
        self._baselines = dict(zip(seeds, baselines, strict=True))
        self._distilled = dict(zip(pairs, distilled, strict=True))

    def row(self, seed: int, temperature: float | None) -> None:
        """Measures the networks of one temperature."""
        where = _where(seed, temperature)
        if self._run.find(measure="finished", **where) is not None:
            return
        if temperature is None:
            state = self._baselines[seed]
        else:
            teacher, state = self._distilled[seed, temperature]
            common.record_accuracy(self._run, where | {"network": "teacher"}, teacher, self._images, self._labels)
        common.record_accuracy(self._run, where, state, self._images, self._labels)
        logits_fn = state.logits_fn
        correct = self._gradients(where, logits_fn)
        fgsm_images = self._fgsm(where, "fgsm", logits_fn, logits_fn, correct)
        baseline_fn = self._baselines[seed].logits_fn
        baseline_images = fgsm_images
        if temperature is not None:
            baseline_images = self._fgsm(where, "fgsm_transfer", baseline_fn, logits_fn, correct)
        self._jsma(where, logits_fn, baseline_fn, baseline_images, correct)
        self._run.append(**where, measure="finished")

    def _gradients(self, where: dict[str, Any], logits_fn: Any) -> np.ndarray:
        """Measures logits and adversarial gradients on the test set; tells which images are classified correctly."""
        batch_size = min(FLAGS.batch_size, 128 * common.mesh("data").size)
        amplitude = common.evaluate(jacobian.amplitude, logits_fn, self._images, batch_size=batch_size)
        count = len(amplitude.logits)
        if self._run.find(measure="logits", **where) is None:
            mean, deviation = metrics.mean_absolute_logit(amplitude.logits)
            self._run.append(**where, measure="logits", n=count, mean_abs_logit=mean, std_abs_logit=deviation)
        if self._run.find(measure="gradients", **where) is None:
            # Minus infinity: the logits do not depend on the image at all, as where every ReLU is dead.
            log10 = amplitude.log10[np.isfinite(amplitude.log10)]
            decades, counts = np.unique(np.floor(log10).astype(int), return_counts=True)
            zero = int(amplitude.is_zero.sum())
            self._run.append(
                **where,
                measure="gradients",
                n=count,
                zero=zero,
                zero_gradient_share=zero / count,
                log10_adversarial_gradient=float(log10.mean()) if len(log10) else None,
                constant=count - len(log10),
                decades=decades.tolist(),
                decade_counts=counts.tolist(),
            )
        return metrics.correct(amplitude.logits, self._labels)

    def _fgsm(
        self, where: dict[str, Any], measure: str, source_fn: Any, logits_fn: Any, correct: np.ndarray
    ) -> np.ndarray:
        """Attacks the test set on one network and measures the success on another, perhaps the same."""
        epsilon = self._recipe.fgsm_epsilon
        images = common.evaluate(_fgsm, (source_fn, np.float32(epsilon)), self._images, self._labels)
        if self._run.find(measure=measure, **where) is None:
            fooled = common.classify(logits_fn, images).argmax(1) != self._labels
            rate = metrics.success_rate(fooled, correct)
            self._run.append(
                **where, measure=measure, epsilon=epsilon, n=rate.n, successes=rate.successes, success=rate.value
            )
        return images

    def _jsma(
        self, where: dict[str, Any], logits_fn: Any, baseline_fn: Any, baseline_images: np.ndarray, correct: np.ndarray
    ) -> None:
        """Attacks correctly classified images towards all other classes, in both score spaces."""
        sources, targets = self._pairs(correct)
        images, labels = self._images[sources], self._labels[sources]
        if len(sources) == 0:
            # A network that gets nothing right leaves nothing to attack; the report shows the gap.
            return
        num_features = images[0].size
        gamma = self._recipe.jsma_features / num_features
        # At temperature 1 the two attacks are one.
        result = None
        for space, temperature in (("probs", 1.0), ("tempered", where["temperature"] or 1.0)):
            if self._run.find(measure="jsma", space=space, **where) is not None:
                continue
            if result is None or temperature != 1.0:
                shared = (logits_fn, np.float32(gamma), np.float32(temperature))
                result = common.evaluate(_jsma, shared, images, labels, targets, in_parts=False)
            # What the attack says of itself is not taken for it.
            success = common.classify(logits_fn, result.inputs).argmax(1) == targets
            changed = np.asarray(metrics.distances(jnp.asarray(images), jnp.asarray(result.inputs)).l0_values)
            cap = self._recipe.jsma_features // 2 * 2
            robust = metrics.robustness(changed, success, sources, num_features=num_features, cap=cap)
            if space == "probs":
                self._save_examples(
                    where, logits_fn, baseline_fn, baseline_images, sources, targets, result.inputs, success
                )
            successes = int(success.sum())
            self._run.append(
                **where,
                measure="jsma",
                space=space,
                attack_temperature=temperature,
                theta=1.0,
                gamma=gamma,
                max_features=cap,
                num_features=num_features,
                n=len(sources),
                successes=successes,
                success=successes / len(sources),
                images=robust.images,
                robustness=robust.mean,
                capped_images=robust.capped,
                capped_share=robust.capped / robust.images,
                mean_features=float(changed[success].mean()) if successes else None,
            )

    def _pairs(self, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The first correct images of each class, each with every other class as target."""
        sources = np.concatenate(
            [np.flatnonzero(correct & (self._labels == label))[: self._per_class] for label in range(self._num_classes)]
        )
        sources, targets = np.repeat(sources, self._num_classes), np.tile(np.arange(self._num_classes), len(sources))
        other = targets != self._labels[sources]
        return sources[other], targets[other].astype(np.int32)

    def _save_examples(
        self,
        where: dict[str, Any],
        logits_fn: Any,
        baseline_fn: Any,
        baseline_images: np.ndarray,
        sources: np.ndarray,
        targets: np.ndarray,
        images: np.ndarray,
        reached: np.ndarray,
    ) -> None:
        """Keeps what the report shows: a grid of JSMA images, and one FGSM image made on the undistilled network."""
        classes = self._num_classes
        grid = np.zeros((classes, classes, *self._images.shape[1:]), np.float32)
        success, present = np.zeros((classes, classes), bool), np.zeros(classes, bool)
        for label in range(classes):
            of_class = sources[self._labels[sources] == label]
            if len(of_class) == 0:
                continue
            present[label] = True
            grid[label, label] = self._images[of_class[0]]
            for row in np.flatnonzero(sources == of_class[0]):
                grid[label, targets[row]] = images[row]
                success[label, targets[row]] = reached[row]
        # For every network the same image: the first that the undistilled one gets right and FGSM makes it get wrong,
        # and where there is none simply the first.
        right = common.classify(baseline_fn, self._images).argmax(1) == self._labels
        fooled_baseline = common.classify(baseline_fn, baseline_images).argmax(1)
        shown = int(np.argmax(right & (fooled_baseline != self._labels)))
        pair = np.stack([self._images[shown], baseline_images[shown]])
        clean_prediction, prediction = common.classify(logits_fn, pair).argmax(1)
        self._run.save_arrays(
            f"examples/seed{where['seed']}_{common.tag(where['temperature'])}",
            jsma_images=grid,
            jsma_success=success,
            jsma_present=present,
            fgsm_label=np.int32(self._labels[shown]),
            fgsm_clean=pair[0],
            fgsm_clean_prediction=np.int32(clean_prediction),
            fgsm_adversarial=pair[1],
            fgsm_baseline_prediction=np.int32(fooled_baseline[shown]),
            fgsm_prediction=np.int32(prediction),
        )


if __name__ == "__main__":
    common.run(main)
