"""Obfuscated gradients: `python -m launch.obfuscated --quick`.

Puts defenses that rest on hidden gradients before three attackers. The first does not know
the defense and follows the gradient of the deployed classifier: zero through a rounding, that of one draw through
randomness. The second knows the defense, and attacks by BPDA, by an expectation over `--samples` draws and, with
momentum, over those of several steps; or attacks the parts of the defense, or the network alone. The third is a
label-only black-box attacker, who trains a substitute on the classifier's answers. All move each value by at most
`--epsilon`. Beside the accuracy that is left stand the published one, the norms of the gradients, and the lights of
`ddjax.masking`.

What is judged is the defended classifier, once, with other draws than the attackers saw; an image that it gets wrong
without an attack is lost for all of them. The aware attacker can do what the unaware one does: its column is the worst
case of both.

The networks are those of `python -m launch.train --recipe=NAME`, where each is looked for in `RUNS/train_NAME`.
`--quick` is made for two CPU cores: recipes whose names end in `_quick`, 50 images, 100 steps, 2 draws, ensembles of 10
crops, and pruning by independent draws. `--defense` chooses rows, by default all. A run that was stopped goes on when
it is started again.

Reference:
  Athalye, Carlini and Wagner, Obfuscated Gradients Give a False Sense of Security, 2018 (arXiv 1802.00420).
"""

import dataclasses
import functools
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from ddjax import attacks, checkpoints, checks, data, defenses, evaluation, metrics, runs
from ddjax.attacks import examples, problem
from ddjax.defenses import defense_gan, thermometer
from ddjax.evaluation import Attempts, ConfiguredAttack, Outcome

from . import attacking, common, defending, loading, recipes, rows, substitutes
from .recipes import generative as generative_recipes

FLAGS = flags.FLAGS
_RUNS = flags.DEFINE_string("runs", "runs", "The directory of the runs of launch.train.")
_DEFENSE = flags.DEFINE_multi_string("defense", [], "A row of the table; repeats. Default: all.")
_EPSILON = flags.DEFINE_float("epsilon", 0.031, "The radius in Linf.")
_NUM_CLEAN = flags.DEFINE_integer("num_clean", 1000, "Test images for the clean accuracy.", lower_bound=1)
_SAMPLES = flags.DEFINE_integer("samples", None, "Of an expectation; default: 30, or 2 if --quick.", lower_bound=1)
_NUM_STEPS = flags.DEFINE_integer("num_steps", None, "Of attacks; default: 150, or 100 if --quick.", lower_bound=2)
_HELD_OUT = flags.DEFINE_integer("num_held_out", 800, "Test images for the detector.", lower_bound=80)
_LIGHTS = flags.DEFINE_bool("lights", True, "Tests for masked gradients; --nolights leaves that for a later run.")
_QUICK = flags.DEFINE_bool("quick", False, "Small networks, 50 images, 100 steps, 2 draws.")
# The attack that the detector is fitted on, see `lid.FITTING_ATTACK`.
_FITTED_ON = ConfiguredAttack(
    "carlini_wagner_l2",
    attacks.ATTACKS["carlini_wagner_l2"],
    {"learning_rate": 0.01, "initial_const": 1.0},
    {"search_steps": 3, "num_steps": 100},
)
# The budget in L2 of the attack that the detector was made for, that of launch.evaluate for photographs.
_DETECTED_L2 = 0.5
# How the attack by the generator's images is called.
_ON_MANIFOLD = "reparameterization"
# With fewer images, of which only those count that are classified correctly, lights stay dark.
_LEAST_PROBED = 100


class Case(NamedTuple):
    """What is put before the attackers in a row of the table.

    Attributes:
      recipe: of the network.
      defense: in the words of `launch.evaluate`; `lid` for its detector.
      model: the recipe of the generative model that the defense takes; empty for none.
      alone: whether the substitute is trained as the network, which itself is undefended; or as the table's.
      norm: `"linf"` or `"l2"`.
      epsilon: the radius, in L2 the root of the mean square over the values of an image; 0 for the flag's.
      part: what the steps, the images for the clean accuracy and the queries are divided by where one look at an image
        takes long; above 1, lights stay dark, as they do in L2.
      samples: the draws of an expectation; 0 for the flag's.
    """

    recipe: str
    defense: str
    model: str = ""
    alone: bool = False
    norm: str = "linf"
    epsilon: float = 0.0
    part: int = 1
    samples: int = 0


# A mean square of 0.005 is what Athalye et al. allow against Defense-GAN.
_GAN_RADIUS = 0.005**0.5
CASES = {
    "none": Case("undefended", "none"),
    "thermometer": Case("thermometer", "thermometer"),
    "thermometer_adversarial": Case("thermometer_adversarial", "thermometer"),
    "lid": Case("undefended", "lid"),
    "bit_depth": Case("undefended", "truncate_bit_depth:bits=3"),
    "jpeg": Case("undefended", "jpeg"),
    "total_variation": Case("total_variation", "total_variation"),
    "quilting": Case("quilting", "quilting"),
    "crop_ensemble": Case("crops", "crop_ensemble"),
    "activation_pruning": Case("undefended", "activation_pruning"),
    "randomization": Case("undefended", "resize_and_pad"),
    "adversarial_training": Case("adversarial", "none"),
    # What generative models are trained on here is MNIST; Defense-GAN was published for it.
    "none_mnist": Case("papernot_mnist", "none", alone=True, epsilon=0.3),
    "none_mnist_l2": Case("papernot_mnist", "none", alone=True, norm="l2", epsilon=_GAN_RADIUS),
    # 16 / 255, the paper's for CIFAR-10.
    "pixel_defend": Case("undefended", "pixel_defend:epsilon=0.0627", "pixelcnn_cifar10", part=5),
    "defense_gan": Case("papernot_mnist", "defense_gan", "gan_mnist_full", True, "l2", _GAN_RADIUS),
}
# What `--quick` changes beside taking the recipe's quick form.
_QUICK_CHANGES: dict[str, dict[str, Any]] = {
    "crop_ensemble": {"defense": "crop_ensemble:num_crops=10"},
    "activation_pruning": {"defense": "activation_pruning:draws=bernoulli"},
    "pixel_defend": {"recipe": "papernot_mnist", "alone": True, "epsilon": 0.3}
    | {"defense": "pixel_defend:epsilon=0.25", "model": "pixelcnn_mnist"},
    # A look takes long, and momentum averages over the draws of several steps.
    "defense_gan": {"defense": "defense_gan:num_steps=100,restarts=2", "model": "gan_mnist", "samples": 1},
}


def main() -> None:
    """Fills the table."""
    chosen = _DEFENSE.value or list(CASES)
    for name in chosen:
        checks.check_choice("defense", name, CASES)
    common.check_different("defense")
    checks.check_number("--epsilon", _EPSILON.value, above=0.0, most=1.0)
    quick, num_examples = _QUICK.value, FLAGS.num_examples
    num_examples = num_examples if num_examples is not None else (50 if quick else 1000)
    samples = _SAMPLES.value or (2 if quick else 30)
    num_steps = _NUM_STEPS.value or (100 if quick else 150)
    recipe = recipes.get("undefended_quick" if quick else "undefended")
    # Rows may be added to a run.
    own = {"epsilon": _EPSILON.value, "num_clean": _NUM_CLEAN.value, "num_held_out": _HELD_OUT.value}
    own |= {"samples": samples, "num_steps": num_steps} | substitutes.flags_of_run()
    dataset = FLAGS.dataset or recipe.dataset
    flags_of_run = attacking.flags_of_run("obfuscated", recipe.name, dataset, num_examples, **own)
    workdir = pathlib.Path(FLAGS.workdir or f"runs/obfuscated{'_quick' if quick else ''}")
    runs.check_workdir(workdir, flags_of_run)
    if num_examples > _NUM_CLEAN.value:
        raise ValueError(f"--num_examples must be at most --num_clean={_NUM_CLEAN.value}, got {num_examples}")
    # Before anything is written, whether all are whole.
    table = [_Row(name, recipe, num_examples, num_steps, samples) for name in chosen]
    run = runs.Run(workdir, flags_of_run, attacking.describe(_load_test(dataset, recipe.image_size)))
    for row in table:
        row.fill(run)
    common.write_report(run)


@functools.cache
def _load_test(dataset: str, image_size: int | None) -> data.Dataset:
    return loading.load_split(dataset, "test", _NUM_CLEAN.value + _HELD_OUT.value, image_size)


def _checkpoint(recipe: str, role: str) -> pathlib.Path:
    """Where the network of a recipe is, or what to do where it is missing."""
    directory = pathlib.Path(_RUNS.value) / f"train_{recipe}"
    found = directory / "checkpoints" / f"seed{FLAGS.seed}_none" / role
    if not found.exists():
        raise ValueError(
            f"no network in {directory}; train it with: python -m launch.train --recipe={recipe} "
            f"--seed={FLAGS.seed} --workdir={directory}"
        )
    return found


def _load_defense(case: Case, spec: checkpoints.NetworkSpec) -> defenses.Defense:
    """The defense of a row with what it takes beside the network."""
    text = case.defense
    if case.model:
        role = generative_recipes.RECIPES[case.model].role
        text += f"{',' if ':' in text else ':'}model={_checkpoint(case.model, role)}"
    defense = defenses.parse(text, spec.dataset)
    if case.model or defense.declaration.prepare is None:
        return defending.prepared(defense, np.zeros((0, *spec.image_shape), np.uint8))
    # The patches that the network was trained with.
    train = loading.load_train(spec.dataset, recipes.get(spec.recipe), spec.num_train)
    return defending.prepared(defense, train.images)


class _Row(rows.Row):
    """One defense before all attackers."""

    def __init__(self, name: str, recipe: recipes.Recipe, num_examples: int, num_steps: int, samples: int) -> None:
        """Loads all that a row needs; `recipe` is of the table's undefended network, the numbers are the flags'."""
        self.name = name
        case = CASES[name]
        if _QUICK.value:
            case = case._replace(**_QUICK_CHANGES.get(name, {}))
            case = case._replace(recipe=f"{case.recipe.removeprefix('papernot_')}_quick")
        path = _checkpoint(case.recipe, "baseline")
        spec = checkpoints.read_spec(path)
        # A network that is itself without a defense says how it was trained.
        self._recipe = recipes.get(spec.recipe) if case.alone else recipe
        source = FLAGS.dataset or self._recipe.dataset
        test = _load_test(source, self._recipe.image_size)
        self.clean = data.first(test, max(_NUM_CLEAN.value // case.part, num_examples))
        network = attacking.load_network(path, self.clean)
        attacked, held_out = data.first(self.clean, num_examples), data.rows_of(test, slice(_NUM_CLEAN.value, None))
        super().__init__({"row": name}, network, _load_defense(case, spec), attacked, held_out)
        self._case = case
        self._probed = data.first(self.clean, min(len(self.clean), max(num_examples, _LEAST_PROBED)))
        queries = substitutes.queries(source, self._recipe)
        self._queries = data.rows_of(queries, slice(-(-len(queries) // case.part)))
        self._num_steps, epsilon = max(num_steps // case.part, 2), case.epsilon or _EPSILON.value
        # The root of a mean square is shorter than the norm.
        self._epsilon = float(epsilon * np.sqrt(np.prod(test.image_shape)) if case.norm == "l2" else epsilon)
        self._seen = defending.seen_through(self.defense, self.network.logits_fn, case.samples or samples)

    def fill(self, run: runs.Run) -> None:
        """Measures what has not been measured."""
        self.run = run
        self._begin()
        for aware in (False, True):
            for attack, seen in self._attacks(aware):
                if self.find("attack", aware=aware, attack=attack.text) is None:
                    self._measure(attack, seen, aware)
            records = [record for record in run.records if record["measure"] == "attack" and record["row"] == self.name]
            files = [record["file"] for record in records if record["aware"] <= aware]
            self.measure_worst(aware, len(files), files)
        if self.find("gradient") is None:
            self._measure_gradients()
        if self.find("transfer") is None:
            self._measure_transfer()
        # The lights are looked for in Linf.
        if _LIGHTS.value and self._case.part == 1 and self._case.norm == "linf" and self.find("masking") is None:
            # Six radii, so each attack is shorter than the table's.
            steps = {"num_steps": max(self._num_steps // 6 + 1, 2), "num_random": self._num_steps}
            self.measure_masking(self._probed, self._substitute, self._epsilon, **steps)

    def _begin(self) -> None:
        """Records the network and what it makes of clean images."""
        known = self.find("network")
        if known is not None and known["fingerprint"] != self.network.fingerprint:
            raise runs.RunError(f"{self.name}: it is another network than the one that {self.run.workdir} began with")
        if known is None:
            told = {"defense": self._case.defense, "fingerprint": self.network.fingerprint}
            told |= {"norm": self._case.norm, "epsilon": self._epsilon}
            self.append("network", **told, **dataclasses.asdict(self.network.spec))
            self.run.save_arrays(f"images/{self.name}_clean", images=self.test.images, labels=self.test.labels)
        if self.find("clean") is None:
            self.append("clean", **self.judge_of(self.clean).clean_fields())

    def _attacks(self, aware: bool) -> list[tuple[ConfiguredAttack, Any]]:
        """The attacks of an attacker, and the classifier that each sees."""
        if not aware and self.defense.is_detector:
            # The attack that the detector was made for: images that are as close as can be.
            return [(_FITTED_ON, self.naive)]
        numbers, steps = {"epsilon": self._epsilon}, {"num_steps": self._num_steps}
        pgd = lambda text, numbers, **words: ConfiguredAttack(
            f"pgd {text}", attacks.ATTACKS["pgd"], numbers, steps | {"norm": self._case.norm} | words
        )
        if not aware:
            return [(pgd("cross_entropy", numbers), self.naive)]
        # Momentum is an expectation over the draws of several steps, and costs nothing: two draws with it broke as many
        # images of the quick table as five without, or more.
        along = numbers | {"step_size": self._epsilon / 8, "momentum": 0.9}
        # Each loss finds images that the other misses.
        found = [(pgd("margin", along, loss="margin"), self._seen), (pgd("cross_entropy", along), self._seen)]
        name, settings, on_network = self.defense.declaration.name, dict(self.defense.settings), []
        if self.defense.declaration.kind in ("transform", "wrapper") and name != "thermometer":
            # The defense changes images little, or nothing on average: the network alone may be enough.
            on_network = [pgd("margin, network", along, loss="margin")]
        if name == "thermometer":
            like = ConfiguredAttack("", attacks.ATTACKS["fgsm"], numbers, steps | settings)
            on_network = [_like(like, "ls_pga", thermometer.ls_pga), _like(like, "dga", thermometer.dga)]
        if name == "defense_gan" and self.defense.given:
            # Through x = G(z), and from there back to the image. For each of five constants; the authors' code takes
            # 30,000 steps.
            words = {"latent": settings["latent"], "num_steps": 3 * self._num_steps}
            given = {"generator_fn": self.defense.given[0]}
            like = ConfiguredAttack("", attacks.ATTACKS["carlini_wagner_l2"], {}, words, given=given)
            on_network.append(_like(like, _ON_MANIFOLD, defense_gan.manifold_attack))
            like = like.replace(numbers=numbers)
            on_network.append(_like(like, f"{_ON_MANIFOLD}, carried over", defense_gan.carried_attack))
        return found + [(attack, self.network.logits_fn) for attack in on_network]

    def _measure(self, attack: ConfiguredAttack, seen: Any, aware: bool) -> None:
        text = attack.text
        tried = attacking.attempts("none", self.test)
        outcome = attacking.run_attack(attack, seen, tried, f"{self.name}: {text}")
        budget = _DETECTED_L2 if attack is _FITTED_ON else self._epsilon
        verdict = self.judge.judge(tried, outcome.inputs, attack.norm, budget)
        file = f"images/{self.name}_{text.replace(',', '').replace(' ', '_')}_{'aware' if aware else 'unaware'}"
        shown = defending.view(self.defense, outcome.inputs)
        views = {} if shown is None else {"defended": shown}
        self.run.save_arrays(file, images=outcome.inputs, broken=verdict.broken, lost=self.judge.lost, **views)
        if text == _ON_MANIFOLD and self.find("reparameterization") is None:
            self._tell_of_manifold(tried, outcome, attack.norm)
        costs = evaluation.costs(outcome)
        self.append("attack", aware=aware, attack=text, **verdict.fields, file=f"{file}.npz", **costs)

    def _measure_gradients(self) -> None:
        """The norms of the margin's gradients, as both attackers see them."""
        fields, images = {}, data.to_float(self.test.images)
        for name, seen in (("unaware", self.naive), ("aware", self._seen)):
            norms = common.evaluate(_gradient_norm, seen, images, self.test.labels)
            fields |= {f"norm_{name}": float(np.median(norms)), f"zero_{name}": float((norms == 0).mean())}
        self.append("gradient", **fields)

    def _tell_of_manifold(self, tried: Attempts, outcome: Outcome, norm: str) -> None:
        """Whether images of the generator that fool the network do so through the reconstruction, too."""
        anywhere = self.judge.judge(tried, outcome.inputs, norm, np.inf)
        success = outcome.success
        record = metrics.rate_fields("success", int(success.sum()), len(success))
        record |= metrics.rate_fields("kept", int((success & anywhere.broke).sum()), int(success.sum()))
        distance = evaluation.of_norm(outcome.distances, norm)
        within = int((success & evaluation.is_within(distance, self._epsilon)).sum())
        mean = float(outcome.distances.l2[success].mean()) if success.any() else None
        self.append("reparameterization", **record, mean_l2=mean, within=within)

    @functools.cached_property
    def _substitute(self) -> Any:
        return substitutes.train(self.run, self.name, self._recipe, self.deployed, self._queries)

    def _measure_transfer(self) -> None:
        attack, _ = self._attacks(aware=True)[0]
        tried = attacking.attempts("none", self.test)
        outcome = attacking.run_attack(attack, self._substitute, tried, f"{self.name}: substitute")
        verdict = self.judge.judge(tried, outcome.inputs, attack.norm, self._epsilon)
        images = data.to_float(self.clean.images)
        agrees = attacking.decide(self._substitute, images) == attacking.decide(self.deployed, images)
        record = {name: value for name, value in verdict.fields.items() if name.startswith("accuracy")}
        self.append("transfer", **record, **metrics.rate_fields("agreement", int(agrees.sum()), len(agrees)))


def _like(attack: ConfiguredAttack, name: str, function: Any) -> ConfiguredAttack:
    """An attack of the same settings and declaration by another function, under another name."""
    return attack.replace(text=name, attack=dataclasses.replace(attack.attack, name=name, function=function))


def _gradient_norm(logits_fn: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
    asked = problem.prepare("the gradient's norm", logits_fn, images, labels)
    return examples.norm(asked.examples.objective_and_gradient(asked.logits_fn, asked.clean)[2])


if __name__ == "__main__":
    common.run(main)
