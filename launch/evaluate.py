"""Attacks against defenses: `python -m launch.evaluate --checkpoint=DIR --defense=squeezing --attack=ddn`.

Attacks every network of `--checkpoint` behind every `--defense` with every `--attack`, twice. The unaware attacker
makes its images on the undefended network. The aware attacker knows the defense, and uses BPDA, an expectation over
`--samples` draws, or attacks network and detector together. If the network was trained at a temperature, the aware
attacker divides the logits by it.

What counts is what the defended network makes of the images: an example is broken when it is misclassified and, where
there is a detector, not detected; images that the defended network gets wrong as they are, or takes for adversarial,
are broken from the start. Attacks that look for the least distance break an example only within `--budget_l2` or
`--budget_linf`. The worst case of an example is over all attacks; for attackers who know the defense, over the images
of both kinds, since they can still attack as if it were not there. Detectors are calibrated on `--num_calibration`
training images and judged on test images.

`--masking` tests for signs of masked gradients, by `ddjax.masking` with the network's own gradients
and a substitute that is trained on its answers; each is a light, green, yellow or red.

`--quick` takes 8 draws. Writes `results.jsonl`, `matrix.csv` and `report.html`. A run that was stopped goes on when it
is started again.
"""

import dataclasses
import functools
import pathlib
import re
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from ddjax import attacks, checkpoints, checks, data, defenses, evaluation, rounding, runs
from ddjax.evaluation import Attempts, ConfiguredAttack, MatrixRow

from . import attacking, common, defending, loading, masks, recipes, substitutes

FLAGS = flags.FLAGS
_CHECKPOINTS = flags.DEFINE_multi_string("checkpoint", [], "The directory of one network's checkpoints; repeats.")
_DEFENSES = flags.DEFINE_multi_string("defense", ["none"], "A defense, name or name:key=value,...; repeats.")
_ATTACKS = flags.DEFINE_multi_string("attack", [], "An attack, name or name:key=value,...; repeats.")
_BUDGETS = {
    norm: flags.DEFINE_float(f"budget_{norm}", None, f"{meaning}; default: {default}.")
    for norm, meaning, default in (
        ("linf", "The budget in Linf", "0.3 for gray images, 8/255 for photographs"),
        ("l2", "The budget in L2", "2 for gray images, 0.5 for photographs"),
        ("l1", "The budget in L1", "10 for gray images, 2000/255 for photographs"),
        ("l0", "The budget in changed values", "a seventh of the values of an image"),
    )
}
_SAMPLES = flags.DEFINE_integer("samples", 30, "The draws of an expectation.")
_CALIBRATION = flags.DEFINE_integer("num_calibration", 1000, "Clean training images for a detector's threshold.")
_EIGHT_BITS = flags.DEFINE_bool("eight_bits", False, "Rounds adversarial images to 8 bits before they are judged.")
_MASKING = flags.DEFINE_bool("masking", False, "Tests for signs of masked gradients.")
_QUICK = flags.DEFINE_bool("quick", False, "Takes 8 draws.")
_QUICK_SAMPLES = 8


class _Network(NamedTuple):
    """A network under attack.

    Attributes:
      name: in the results.
      logits_fn: the classifier.
      temperature: of its training.
      logits: of the clean test images.
    """

    name: str
    logits_fn: Any
    temperature: float
    logits: np.ndarray


def main() -> None:
    """Fills the matrix."""
    if not _CHECKPOINTS.value:
        raise ValueError("--checkpoint must name the directory of a network's checkpoints")
    if not _ATTACKS.value and not _MASKING.value:
        raise ValueError(f"--attack must name at least one attack; known: {', '.join(attacks.ATTACKS)}")
    for name, values in (
        ("checkpoint", _CHECKPOINTS.value),
        ("defense", _DEFENSES.value),
        ("attack", _ATTACKS.value),
    ):
        if len(set(values)) < len(values):
            raise ValueError(f"--{name} must be different ones, got {', '.join(values)}")
    if _SAMPLES.value < 1 or _CALIBRATION.value < 1:
        raise ValueError("--samples and --num_calibration must be at least 1")
    parsed = {text: evaluation.parse_attack(text) for text in _ATTACKS.value}
    specs = [checkpoints.read_spec(directory) for directory in _CHECKPOINTS.value]
    first = specs[0]
    dataset = FLAGS.dataset or first.dataset
    known = {text: defenses.parse(text, dataset) for text in _DEFENSES.value}
    given = {norm: flag.value for norm, flag in _BUDGETS.items() if flag.value is not None}
    budgets = evaluation.default_budgets(first.image_shape) | given
    for norm, budget in budgets.items():
        checks.check_number(f"--budget_{norm}", budget, above=0.0)
    samples = _QUICK_SAMPLES if _QUICK.value else _SAMPLES.value
    num_examples = 100 if FLAGS.num_examples is None else FLAGS.num_examples
    workdir = pathlib.Path(FLAGS.workdir or f"runs/evaluate_{first.recipe}")
    # Attacks, defenses and networks may be added to a run.
    flags_of_run = {
        "launcher": "evaluate",
        "recipe": first.recipe,
        "dataset": dataset,
        "num_examples": num_examples,
        "num_calibration": _CALIBRATION.value,
        "samples": samples,
        "eight_bits": _EIGHT_BITS.value,
        "seed": FLAGS.seed,
        "batch_size": FLAGS.batch_size,
        "matmul_precision": FLAGS.matmul_precision,
    } | {f"budget_{norm}": budget for norm, budget in budgets.items()}
    flags_of_run |= substitutes.flags_of_run()
    runs.check_workdir(workdir, flags_of_run)
    load = lambda split, count: loading.load_split(dataset, split, count, first.image_shape[0])
    test = load("test", num_examples)
    calibrated = any(defense.is_detector or defense.declaration.prepare for defense in known.values())
    calibration = load("train", _CALIBRATION.value) if calibrated else data.rows_of(test, slice(0))
    for directory, spec in zip(_CHECKPOINTS.value, specs, strict=True):
        data.check_fits(test, spec.image_shape, spec.num_classes, network=f"the network of {directory}")
    loaded = [checkpoints.load_network(directory)[0] for directory in _CHECKPOINTS.value]
    for attack in parsed.values():
        how = evaluation.resolve_targets("auto", attack.attack)
        evaluation.check_settings(attack, loaded[0].logits_fn, first.image_shape, how != "none")
    known = {text: defending.prepared(defense, calibration.images) for text, defense in known.items()}
    for state, spec in zip(loaded, specs, strict=True):
        for defense in known.values():
            defense.check_fits(state.logits_fn, spec.image_shape)
    resolved = {
        "class_names": test.class_names,
        "test_fingerprint": common.fingerprint(test.images, test.labels),
    }
    run = runs.Run(workdir, flags_of_run, resolved)
    run.save_arrays("images/clean", images=test.images, labels=test.labels)
    for spec, state in zip(specs, loaded, strict=True):
        logits_fn = state.logits_fn
        name = spec.role if spec.temperature == 1 else f"{spec.role} T={spec.temperature:g}"
        fingerprint = common.fingerprint(*jax.tree.leaves(state.variables))
        network = _Network(
            f"{name} {fingerprint[:6]}",
            logits_fn,
            spec.temperature,
            common.classify(logits_fn, data.to_float(test.images)),
        )
        if run.find(measure="network", network=network.name) is None:
            settings = dataclasses.asdict(spec) | {"network": network.name, "architecture": spec.network}
            run.append(measure="network", title=name, **settings)
        for defense in known.values():
            row = _Row(run, network, defense, test, calibration, budgets, samples)
            row.fill(parsed)
            if _MASKING.value:
                row.look_for_masking(dataclasses.replace(recipes.get(spec.recipe), image_size=spec.image_shape[0]))
    common.write_report(run)


class _Row:
    """A network behind a defense, before all attacks."""

    def __init__(
        self,
        run: runs.Run,
        network: _Network,
        defense: defenses.Defense,
        test: data.Dataset,
        calibration: data.Dataset,
        budgets: dict[str, float],
        samples: int,
    ) -> None:
        self._run, self._network, self._defense, self._test = run, network, defense, test
        self._budgets, self._samples = budgets, samples
        self._calibration = calibration
        self._where = {"network": network.name, "defense": defense.text}

    @functools.cached_property
    def _judge(self) -> MatrixRow:
        calibration = self._calibration
        detector = defending.detector(
            self._defense, self._network.logits_fn, data.to_float(calibration.images), calibration.labels
        )
        return MatrixRow(
            defending.deployed(self._defense, self._network.logits_fn),
            data.to_float(self._test.images),
            self._test.labels,
            self._test.indices,
            key=jax.random.fold_in(jax.random.key(FLAGS.seed), attacking.JUDGING),
            evaluate=common.evaluator(),
            detector=detector,
        )

    def fill(self, parsed: dict[str, ConfiguredAttack]) -> None:
        """Measures what has not been measured."""
        cells = [(text, knows) for text in parsed for knows in (False, True)]
        if self._run.find(measure="clean", **self._where) is None:
            self._look_at_clean_images()
        for text, knows in cells:
            if self._find(text, knows) is None:
                self._measure(text, parsed[text], knows)
        for knows in (False, True) if cells else ():
            # Who knows the defense can still attack as if it were not there.
            self._worst([self._find(*cell) for cell in cells if cell[1] <= knows], knows)

    def look_for_masking(self, recipe: recipes.Recipe) -> None:
        """Measures the lights of the defended network; a detector beside it has no part in them."""
        if self._run.find(measure="masking", **self._where) is not None:
            return
        name = _file_name(*self._where.values())
        queries = substitutes.queries(self._test.name, recipe)
        masks.measure(
            self._run,
            self._where,
            defending.naive(self._defense, self._network.logits_fn),
            defending.deployed(self._defense, self._network.logits_fn, masks.DRAWS),
            self._test,
            substitute=substitutes.train(self._run, name, recipe, self._judge.classifier, queries),
            epsilon=self._budgets["linf"],
        )

    def _find(self, text: str, knows: bool) -> dict[str, Any] | None:
        return self._run.find(measure="evaluate", attack=text, aware=knows, **self._where)

    def _look_at_clean_images(self) -> None:
        record = self._where | self._judge.clean_fields()
        detector = self._judge.detector
        if detector is not None:
            file = self._file("clean")
            self._run.save_arrays(file, scores=np.asarray(self._judge.clean.scores))
            fingerprint = common.fingerprint(self._calibration.images, self._calibration.labels)
            record |= {"threshold": detector.threshold, "scores": f"{file}.npz", "calibration_fingerprint": fingerprint}
        self._run.append(measure="clean", **record)

    def _file(self, *words: str) -> str:
        return _image_file(*self._where.values(), *words)

    def _attack(self, text: str, attack: ConfiguredAttack, knows: bool) -> tuple[str, Attempts, dict[str, Any]]:
        """The file of an attack's images, the attempts, and the arrays, made by it now or before."""
        owner, seen = "bare", self._network.logits_fn
        if knows:
            detector = self._judge.detector
            known, seen = defending.aware(
                attack,
                self._defense,
                self._network.logits_fn,
                temperature=self._network.temperature,
                detector=detector,
                samples=self._samples,
            )
            # Where there is nothing to know, it is the attack that does not.
            if known != attack or seen is not self._network.logits_fn:
                attack, owner = known, self._defense.text
        name = _image_file(self._network.name, owner, text)
        how = evaluation.resolve_targets("auto", attack.attack)
        tried = attacking.attempts(how, self._test, self._network.logits)
        # The same images of the bare network serve all its defenses.
        if any(r["measure"] == "evaluate" and r["file"] == f"{name}.npz" for r in self._run.records):
            return name, tried, self._run.load_arrays(name)
        outcome = attacking.run_attack(attack, seen, tried, f"{self._network.name}, {owner}: {text}")
        gradients, zeros = int(outcome.gradients.sum()), int(outcome.zero_gradients.sum())
        arrays = {"images": outcome.inputs, "rows": tried.rows, "gradients": gradients, "zero_gradients": zeros}
        self._run.save_arrays(name, **arrays)
        return name, tried, arrays

    def _measure(self, text: str, attack: ConfiguredAttack, knows: bool) -> None:
        name, tried, arrays = self._attack(text, attack, knows)
        images = np.asarray(arrays["images"])
        if _EIGHT_BITS.value:
            images = rounding.round_to_8_bits(images)
        verdict = self._judge.judge(tried, images, attack.norm, self._budgets[attack.norm])
        record = self._where | {"attack": text, "aware": knows} | verdict.fields
        if arrays.get("gradients"):
            record["zero_gradient_share"] = int(arrays["zero_gradients"]) / int(arrays["gradients"])
        file = self._file(text, "aware" if knows else "unaware")
        if verdict.broke.any():
            record["views"] = self._save_view(f"{file}_view", int(np.argmax(verdict.broke)), tried.rows, images)
        extra = {} if verdict.scores is None else {"scores": verdict.scores, "fooled": verdict.fooled}
        self._run.save_arrays(f"{file}_judged", broken=verdict.broken, **extra)
        self._run.append(measure="evaluate", **record, file=f"{name}.npz", judged=f"{file}_judged.npz")

    def _save_view(self, name: str, place: int, rows: np.ndarray, images: np.ndarray) -> str | None:
        """Keeps one image as the defended network sees it, for the report; None where it sees it as it is."""
        seen = defending.view(self._defense, images[place : place + 1])
        if seen is None:
            return None
        self._run.save_arrays(name, adversarial=images[place], defended=seen[0], row=rows[place])
        return f"{name}.npz"

    def _worst(self, found: list[dict[str, Any] | None], knows: bool) -> None:
        """The worst case of each example over all attacks of this command."""
        records = [record for record in found if record is not None]
        broken = [self._run.load_arrays(record["judged"].removesuffix(".npz"))["broken"] for record in records]
        over = list(dict.fromkeys(record["attack"] for record in records))
        record = self._where | {"aware": knows, "attacks": over} | evaluation.worst_case(broken)
        if self._run.find(measure="worst", **record) is None:
            self._run.append(measure="worst", **record)


def _image_file(*words: str) -> str:
    """Where arrays of this name are in a run."""
    return f"images/{_file_name(*words)}"


def _file_name(*words: str) -> str:
    """Words without what a file name cannot hold."""
    return re.sub(r"[^A-Za-z0-9_.=+-]+", "_", "_".join(words))


if __name__ == "__main__":
    common.run(main)
