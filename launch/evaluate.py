"""Attacks against defenses: `python -m launch.evaluate --checkpoint=DIR --defense=squeezing --attack=ddn`.

Attacks every network of `--checkpoint` behind every `--defense` with every `--attack`, twice. The unaware attacker
makes its images on the undefended network. The aware attacker knows the defense, and uses BPDA, an expectation over
`--samples` draws, or attacks network and detector together. If the network was trained at a temperature, the aware
attacker divides the logits by it.

What counts is what the defended network makes of the images: an example is broken when it is misclassified and, where
there is a detector, not detected; images that the defended network gets wrong as they are, or takes for adversarial,
are broken from the start. Attacks break an example only within `--budget_l2` or `--budget_linf`, which is the radius
of those that take one and are given none. The worst case of an example is over all attacks; for attackers who know the
defense, over the images of both kinds, since they can still attack as if it were not there. Detectors are calibrated on
`--num_calibration` training images and judged on test images.

`--masking` tests for signs of masked gradients, by `ddjax.masking` with the network's own gradients
and a substitute that is trained on its answers; each is a light, green, yellow or red.

`--quick` takes 8 draws. Writes `results.jsonl`, `matrix.csv` and `report.html`. A run that was stopped goes on when it
is started again.
"""

import dataclasses
import functools
from typing import Any

import numpy as np
from absl import flags

from ddjax import checks, data, defenses, evaluation, rounding, runs
from ddjax.evaluation import Attempts, ConfiguredAttack

from . import attacking, common, defending, exporting, loading, networks, rows, substitutes

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
_CALIBRATION = flags.DEFINE_integer("num_calibration", 1000, "Clean training inputs for a detector, at most.")
_EIGHT_BITS = flags.DEFINE_bool("eight_bits", False, "Rounds adversarial images to 8 bits before they are judged.")
_MASKING = flags.DEFINE_bool("masking", False, "Tests for signs of masked gradients.")
_QUICK = flags.DEFINE_bool("quick", False, "Takes 8 draws.")
_QUICK_SAMPLES = 8


def main() -> None:
    """Fills the matrix."""
    attacking.check_named(_CHECKPOINTS.value or networks.is_own(), _ATTACKS.value or _MASKING.value)
    common.check_different("checkpoint", "defense", "attack")
    if _SAMPLES.value < 1 or _CALIBRATION.value < 1:
        raise ValueError("--samples and --num_calibration must be at least 1")
    parsed = [evaluation.parse_attack(text) for text in _ATTACKS.value]
    # None is one's own.
    chosen = [*_CHECKPOINTS.value, *([None] if networks.is_own() else [])]
    first = networks.read_spec(chosen[0])
    dataset = networks.dataset_for(first)
    known = [defenses.parse(text, dataset) for text in _DEFENSES.value]
    given = {norm: flag.value for norm, flag in _BUDGETS.items() if flag.value is not None}
    for norm, budget in given.items():
        checks.check_number(f"--budget_{norm}", budget, above=0.0)
    load = functools.partial(loading.load_split, dataset, image_size=networks.size_for(first))
    num_examples = 100 if FLAGS.num_examples is None else FLAGS.num_examples
    test = load("test", num_examples, at_most=FLAGS.num_examples is None)
    if _EIGHT_BITS.value and len(test.image_shape) != 3:
        raise ValueError(f"--eight_bits is for images, not for inputs of the shape {test.image_shape}")
    budgets = evaluation.default_budgets(test.image_shape) | given
    # Attacks, defenses and networks may be added to a run.
    own = {"num_calibration": _CALIBRATION.value, "samples": _samples(), "eight_bits": _EIGHT_BITS.value}
    own |= {f"budget_{norm}": budget for norm, budget in budgets.items()} | substitutes.flags_of_run()
    own |= networks.flags_of_run()
    flags_of_run = attacking.flags_of_run("evaluate", first.recipe, dataset, num_examples, **own)
    workdir = common.workdir("evaluate", networks.run_name(first))
    runs.check_workdir(workdir, flags_of_run)
    calibrated = any(defense.is_detector or defense.declaration.prepare for defense in known)
    calibration = load("train", _CALIBRATION.value, at_most=True) if calibrated else data.rows_of(test, slice(0))
    exporting.check_shape(test.images.shape[1:])
    parsed = [_within(attack, budgets[attack.norm]).limited(**test.limits) for attack in parsed]
    loaded = [networks.load(directory, test) for directory in chosen]
    for attack in parsed:
        targeted = evaluation.resolve_targets("auto", attack.attack) != "none"
        evaluation.check_settings(attack, loaded[0].logits_fn, test.image_shape, targeted)
    known = [defending.prepared(defense, calibration.images) for defense in known]
    table = [
        _Row({"network": _name(network), "defense": defense.text}, network, defense, test, calibration)
        for network in loaded
        for defense in known
    ]
    run = runs.Run(workdir, flags_of_run, attacking.describe(test))
    run.save_arrays("images/clean", images=test.images, labels=test.labels)
    for row in table:
        row.fill(run, parsed, budgets)
        if _MASKING.value and row.find("masking") is None:
            row.look_for_masking(budgets["linf"])
    common.write_report(run)


def _within(attack: ConfiguredAttack, budget: float) -> ConfiguredAttack:
    """An attack of a fixed radius with the budget in the place of one that is not given: what is further counts not."""
    if attack.attack.kind != "budget" or "epsilon" in attack.numbers:
        return attack
    return attack.replace(numbers={**attack.numbers, "epsilon": budget})


def _samples() -> int:
    return _QUICK_SAMPLES if _QUICK.value else _SAMPLES.value


def _name(network: attacking.Network) -> str:
    return f"{_title(network)} {network.fingerprint[:6]}"


def _title(network: attacking.Network) -> str:
    role, temperature = network.spec.role, network.spec.temperature
    return role if temperature == 1 else f"{role} T={temperature:g}"


class _Row(rows.Row):
    """A network behind a defense, before all attacks."""

    def fill(self, run: runs.Run, parsed: list[ConfiguredAttack], budgets: dict[str, float]) -> None:
        """Measures what has not been measured."""
        self.run, name = run, self.where["network"]
        if run.find(measure="network", network=name) is None:
            spec = dataclasses.asdict(self.network.spec)
            spec |= {"network": name, "architecture": self.network.spec.network}
            run.append(measure="network", title=_title(self.network), **spec)
        if self.find("clean") is None:
            self._measure_clean_images()
        cells = [(attack, aware) for attack in parsed for aware in (False, True)]
        for attack, aware in cells:
            if self.find("evaluate", attack=attack.text, aware=aware) is None:
                self._measure(attack, aware, budgets[attack.norm])
        for knows in (False, True) if cells else ():
            found = [
                self.find("evaluate", attack=attack.text, aware=aware) for attack, aware in cells if aware <= knows
            ]
            files = [record["judged"] for record in found if record is not None]
            self.measure_worst(knows, [attack.text for attack in parsed], files)

    def look_for_masking(self, epsilon: float) -> None:
        """Measures the lights of the defended network; a detector beside it has no part in them."""
        spec = self.network.spec
        recipe = networks.recipe_for(spec, self.test.name)
        queries = substitutes.queries(self.test.name, recipe)
        name = common.file_name(*self.where.values())
        self.measure_masking(self.test, substitutes.train(self.run, name, recipe, self.deployed, queries), epsilon)

    def _file(self, *words: str) -> str:
        return f"images/{common.file_name(*self.where.values(), *words)}"

    def _measure_clean_images(self) -> None:
        record = self.judge.clean_fields()
        if self.detector is not None:
            file = self._file("clean")
            self.run.save_arrays(file, scores=np.asarray(self.judge.clean.scores))
            record |= {"threshold": self.detector.threshold, "scores": f"{file}.npz"}
            record["calibration_fingerprint"] = common.fingerprint(self.held_out.images, self.held_out.labels)
        self.append("clean", **record)

    def _attack(self, attack: ConfiguredAttack, aware: bool) -> tuple[str, Attempts, dict[str, Any]]:
        """The file of an attack's images, the attempts, and the arrays, made by it now or before."""
        seen, owner, text = self.network.logits_fn, "bare", attack.text
        if aware:
            told = {"temperature": self.network.spec.temperature, "detector": self.detector, "samples": _samples()}
            known, through = defending.aware(attack, self.defense, seen, **told)
            # Where there is nothing to know, it is the attack that does not.
            if known != attack or through is not seen:
                attack, seen, owner = known, through, self.defense.text
        name = f"images/{common.file_name(self.where['network'], owner, text)}"
        clean = common.classify(self.network.logits_fn, data.to_float(self.test.images))
        tried = attacking.attempts(evaluation.resolve_targets("auto", attack.attack), self.test, clean)
        # The same images of the bare network serve all its defenses.
        if self.run.find(measure="evaluate", file=f"{name}.npz") is not None:
            return name, tried, self.run.load_arrays(name)
        outcome = attacking.run_attack(attack, seen, tried, f"{self.where['network']}, {owner}: {text}")
        gradients, zeros = int(outcome.gradients.sum()), int(outcome.zero_gradients.sum())
        arrays = {"images": outcome.inputs, "rows": tried.rows, "gradients": gradients, "zero_gradients": zeros}
        self.run.save_arrays(name, **arrays)
        exporting.save(self.run, name.removeprefix("images/"), tried, outcome.inputs, outcome.success)
        return name, tried, arrays

    def _measure(self, attack: ConfiguredAttack, aware: bool, budget: float) -> None:
        name, tried, arrays = self._attack(attack, aware)
        images = np.asarray(arrays["images"])
        if _EIGHT_BITS.value:
            images = rounding.round_to_8_bits(images)
        verdict = self.judge.judge(tried, images, attack.norm, budget)
        record, file = verdict.fields, self._file(attack.text, "aware" if aware else "unaware")
        if arrays.get("gradients"):
            record["zero_gradient_share"] = int(arrays["zero_gradients"]) / int(arrays["gradients"])
        if verdict.broke.any():
            record["views"] = self._save_view(f"{file}_view", int(np.argmax(verdict.broke)), tried.rows, images)
        scores = {} if verdict.scores is None else {"scores": verdict.scores, "fooled": verdict.fooled}
        self.run.save_arrays(f"{file}_judged", broken=verdict.broken, **scores)
        files = {"file": f"{name}.npz", "judged": f"{file}_judged.npz"}
        self.append("evaluate", attack=attack.text, aware=aware, **record, **files)

    def _save_view(self, name: str, place: int, rows: np.ndarray, images: np.ndarray) -> str | None:
        """Keeps one image as the defended network sees it, for the report; None where it sees it as it is."""
        seen = defending.view(self.defense, images[place : place + 1])
        if seen is None:
            return None
        self.run.save_arrays(name, adversarial=images[place], defended=seen[0], row=rows[place])
        return f"{name}.npz"


if __name__ == "__main__":
    common.run(main)
