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

from ddjax import attacks, checkpoints, checks, data, defenses, evaluation, metrics, runs, training
from ddjax.attacks import examples, problem
from ddjax.defenses import defense_gan, thermometer
from ddjax.evaluation import Attempts, ConfiguredAttack, MatrixRow, Outcome

from . import attacking, common, defending, loading, masks, recipes, substitutes
from .recipes import generative as generative_recipes

FLAGS = flags.FLAGS
_RUNS = flags.DEFINE_string("runs", "runs", "The directory of the runs of launch.train.")
_DEFENSE = flags.DEFINE_multi_string("defense", [], "A row of the table; repeats. Default: all.")
_EPSILON = flags.DEFINE_float("epsilon", 0.031, "The radius in Linf.")
_NUM_CLEAN = flags.DEFINE_integer("num_clean", 1000, "Test images for the clean accuracy.", lower_bound=1)
_SAMPLES = flags.DEFINE_integer(
    "samples", None, "Draws of an expectation; default: 30, or 2 if --quick.", lower_bound=1
)
_NUM_STEPS = flags.DEFINE_integer(
    "num_steps", None, "Steps of the attacks; default: 150, or 100 if --quick.", lower_bound=2
)
_HELD_OUT = flags.DEFINE_integer("num_held_out", 800, "Test images for the detector.", lower_bound=80)
_LIGHTS = flags.DEFINE_bool(
    "lights", True, "Tests for signs of masked gradients; --nolights leaves them for a later run."
)
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


class Row(NamedTuple):
    """A row of the table.

    Attributes:
      recipe: of the network.
      defense: in the words of `launch.evaluate`; `lid` for its detector.
      model: the recipe of the generative model that the defense takes; empty for none.
      undefended: the recipe of the network without a defense, for the substitute; empty for the table's.
      norm: `"linf"` or `"l2"`.
      epsilon: the radius, in L2 the root of the mean square over the values of an image; 0 for the flag's.
      part: what the steps, the images for the clean accuracy and the queries are divided by where one look at an image
        takes long; above 1, lights stay dark, as they do in L2.
      samples: the draws of an expectation; 0 for the flag's.
    """

    recipe: str
    defense: str
    model: str = ""
    undefended: str = ""
    norm: str = "linf"
    epsilon: float = 0.0
    part: int = 1
    samples: int = 0


_MNIST = {"recipe": "mnist_quick", "undefended": "mnist_quick", "epsilon": 0.3}
# A mean square of 0.005 is what Athalye et al. allow against Defense-GAN.
_GAN_RADIUS = 0.005**0.5
# Each row, and what `--quick` changes of it beside taking the recipe's quick form.
_ALL: dict[str, tuple[Row, dict[str, Any]]] = {
    "none": (Row("undefended", "none"), {}),
    "thermometer": (Row("thermometer", "thermometer"), {}),
    "thermometer_adversarial": (Row("thermometer_adversarial", "thermometer"), {}),
    "lid": (Row("undefended", "lid"), {}),
    "bit_depth": (Row("undefended", "truncate_bit_depth:bits=3"), {}),
    "jpeg": (Row("undefended", "jpeg"), {}),
    "total_variation": (Row("total_variation", "total_variation"), {}),
    "quilting": (Row("quilting", "quilting"), {}),
    "crop_ensemble": (Row("crops", "crop_ensemble"), {"defense": "crop_ensemble:num_crops=10"}),
    "activation_pruning": (
        Row("undefended", "activation_pruning"),
        {"defense": "activation_pruning:draws=bernoulli"},
    ),
    "randomization": (Row("undefended", "resize_and_pad"), {}),
    "adversarial_training": (Row("adversarial", "none"), {}),
    # What generative models are trained on here is MNIST; Defense-GAN was published for it.
    "none_mnist": (Row("papernot_mnist", "none", undefended="papernot_mnist", epsilon=0.3), _MNIST),
    "none_mnist_l2": (
        Row("papernot_mnist", "none", undefended="papernot_mnist", norm="l2", epsilon=_GAN_RADIUS),
        _MNIST | {"epsilon": _GAN_RADIUS},
    ),
    "pixel_defend": (
        # 16 / 255, the paper's for CIFAR-10.
        Row("undefended", "pixel_defend:epsilon=0.0627", "pixelcnn_cifar10", part=5),
        _MNIST | {"defense": "pixel_defend:epsilon=0.25", "model": "pixelcnn_mnist"},
    ),
    "defense_gan": (
        Row("papernot_mnist", "defense_gan", "gan_mnist_full", "papernot_mnist", "l2", _GAN_RADIUS),
        # A look takes long, and momentum averages over the draws of several steps.
        _MNIST
        | {"defense": "defense_gan:num_steps=100,restarts=2", "model": "gan_mnist"}
        | {"epsilon": _GAN_RADIUS, "samples": 1},
    ),
}
ROWS = tuple(_ALL)


def _row(name: str) -> Row:
    """A row as this run has it."""
    row, changes = _ALL[name]
    return row._replace(**{"recipe": f"{row.recipe}_quick"} | changes) if _QUICK.value else row


class _Settings(NamedTuple):
    """What the rows of a data set share.

    Attributes:
      epsilon: the radius.
      norm: of the radius.
      samples: the draws of an expectation.
      num_steps: of the attacks.
      clean: test images for the clean accuracy; the first of them are attacked.
      attacked: test images that are attacked.
      probed: test images for the lights.
      held_out: test images for the detector.
      queries: training images that the substitute asks about.
      recipe: of the substitute.
    """

    epsilon: float
    norm: str
    samples: int
    num_steps: int
    clean: data.Dataset
    attacked: data.Dataset
    probed: data.Dataset
    held_out: data.Dataset
    queries: data.Dataset
    recipe: recipes.Recipe


def main() -> None:
    """Fills the table."""
    chosen = _DEFENSE.value or list(ROWS)
    for name in chosen:
        checks.check_choice("defense", name, ROWS)
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"--defense must be different ones, got {', '.join(chosen)}")
    checks.check_number("--epsilon", _EPSILON.value, above=0.0, most=1.0)
    quick = _QUICK.value
    samples = _SAMPLES.value or (2 if quick else 30)
    num_steps = _NUM_STEPS.value or (100 if quick else 150)
    num_examples = FLAGS.num_examples if FLAGS.num_examples is not None else (50 if quick else 1000)
    ending = "_quick" if quick else ""
    rows = {name: _row(name) for name in chosen}
    paths = {name: _checkpoint(row.recipe, "baseline") for name, row in rows.items()}
    specs = {name: checkpoints.read_spec(path) for name, path in paths.items()}
    recipe = recipes.get(f"undefended{ending}")
    dataset = FLAGS.dataset or recipe.dataset
    workdir = pathlib.Path(FLAGS.workdir or f"runs/obfuscated{ending}")
    # Rows may be added to a run.
    flags_of_run = {
        "launcher": "obfuscated",
        "recipe": recipe.name,
        "dataset": dataset,
        "epsilon": _EPSILON.value,
        "num_examples": num_examples,
        "num_clean": _NUM_CLEAN.value,
        "samples": samples,
        "num_steps": num_steps,
        "num_held_out": _HELD_OUT.value,
        "seed": FLAGS.seed,
        "batch_size": FLAGS.batch_size,
        "matmul_precision": FLAGS.matmul_precision,
    } | substitutes.flags_of_run()
    runs.check_workdir(workdir, flags_of_run)
    if num_examples > _NUM_CLEAN.value:
        raise ValueError(f"--num_examples must be at most --num_clean={_NUM_CLEAN.value}, got {num_examples}")

    @functools.cache
    def load(dataset: str, image_size: int | None) -> data.Dataset:
        return loading.load_split(dataset, "test", _NUM_CLEAN.value + _HELD_OUT.value, image_size)

    def settings_of(name: str, row: Row) -> _Settings:
        # A network that is itself without a defense says how it was trained.
        own = specs[name].recipe if row.undefended == row.recipe else row.undefended
        undefended = recipes.get(own or recipe.name)
        source = FLAGS.dataset or undefended.dataset
        test, part = load(source, undefended.image_size), row.part
        clean = data.first(test, max(_NUM_CLEAN.value // part, num_examples))
        epsilon = row.epsilon or _EPSILON.value
        queries = substitutes.queries(source, undefended)
        return _Settings(
            # The root of a mean square is shorter than the norm.
            epsilon=epsilon * np.sqrt(np.prod(test.image_shape)) if row.norm == "l2" else epsilon,
            norm=row.norm,
            samples=row.samples or samples,
            num_steps=max(num_steps // part, 2),
            clean=clean,
            attacked=data.first(clean, num_examples),
            probed=data.first(clean, min(len(clean), max(num_examples, _LEAST_PROBED))),
            held_out=data.rows_of(test, slice(_NUM_CLEAN.value, None)),
            queries=data.rows_of(queries, slice(-(-len(queries) // part))),
            recipe=undefended,
        )

    settings = {name: settings_of(name, row) for name, row in rows.items()}
    for name, spec in specs.items():
        data.check_fits(
            settings[name].clean,
            spec.image_shape,
            spec.num_classes,
            network=f"the network of {paths[name]}",
        )
    # Before anything is written, whether all are whole.
    loaded = {name: checkpoints.load_network(path) for name, path in paths.items()}
    prepared = {name: _defense(row, specs[name]) for name, row in rows.items()}
    test = load(dataset, recipe.image_size)
    resolved = {
        "class_names": test.class_names,
        "test_fingerprint": common.fingerprint(test.images, test.labels),
    }
    run = runs.Run(workdir, flags_of_run, resolved)
    for name, row in rows.items():
        _Row(run, name, row, prepared[name], *loaded[name], settings[name]).fill()
    common.write_report(run)


def _defense(row: Row, spec: checkpoints.NetworkSpec) -> defenses.Defense:
    """The defense of a row with what it takes beside the network."""
    text = row.defense
    if row.model:
        role = generative_recipes.RECIPES[row.model].role
        text += f"{',' if ':' in text else ':'}model={_checkpoint(row.model, role)}"
    defense = defenses.parse(text, spec.dataset)
    if row.model or defense.declaration.prepare is None:
        return defending.prepared(defense, np.zeros((0, *spec.image_shape), np.uint8))
    # The patches that the network was trained with.
    train = loading.load_train(spec.dataset, recipes.get(spec.recipe), spec.num_train)
    return defending.prepared(defense, train.images)


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


class _Cell(NamedTuple):
    """An attack on a row.

    Attributes:
      attack: with its settings.
      seen: the classifier that it sees.
      norm: of its budget.
      budget: how far it may move an image.
    """

    attack: ConfiguredAttack
    seen: Any
    norm: str
    budget: float


class _Row:
    """One defense before all attackers."""

    def __init__(
        self,
        run: runs.Run,
        name: str,
        row: Row,
        defense: defenses.Defense,
        state: training.TrainState,
        spec: checkpoints.NetworkSpec,
        settings: _Settings,
    ) -> None:
        self._run, self._name, self._row, self._defense, self._settings = run, name, row, defense, settings
        fingerprint = common.fingerprint(*jax.tree.leaves(state.variables))
        known = run.find(measure="network", row=name)
        if known is not None and known["fingerprint"] != fingerprint:
            raise runs.RunError(f"{name}: this is another network than the one that {run.workdir} was begun with")
        self._network = state.logits_fn
        self._deployed = defending.deployed(self._defense, self._network)
        self._naive = defending.naive(self._defense, self._network)
        self._seen = defending.seen_through(self._defense, self._network, settings.samples)
        if known is None:
            described = dataclasses.asdict(spec)
            radius = {"norm": settings.norm, "epsilon": float(settings.epsilon)}
            run.append(measure="network", row=name, defense=row.defense, fingerprint=fingerprint, **radius, **described)
            attacked = settings.attacked
            run.save_arrays(f"images/{name}_clean", images=attacked.images, labels=attacked.labels)

    def fill(self) -> None:
        """Measures what has not been measured."""
        for knows in (False, True):
            for text, cell in self._cells(knows).items():
                if self._find("attack", aware=knows, attack=text) is None:
                    self._measure(text, cell, knows)
            self._worst(knows)
        if self._find("gradient") is None:
            self._look_at_gradients()
        # The lights are looked for in Linf.
        lit = _LIGHTS.value and self._row.part == 1 and self._row.norm == "linf"
        wanted = ("transfer", "masking") if lit else ("transfer",)
        missing = [measure for measure in wanted if self._find(measure) is None]
        if missing:
            substitute = self._train_substitute()
            if "transfer" in missing:
                self._transfer(substitute)
            if "masking" in missing:
                masks.measure(
                    self._run,
                    {"row": self._name},
                    self._naive,
                    defending.deployed(self._defense, self._network, masks.DRAWS),
                    self._settings.probed,
                    substitute=substitute,
                    epsilon=self._settings.epsilon,
                    # Six radii, so each attack is shorter than the table's.
                    num_steps=max(self._settings.num_steps // 6 + 1, 2),
                    num_random=self._settings.num_steps,
                )

    def _find(self, measure: str, **fields: Any) -> dict[str, Any] | None:
        return self._run.find(measure=measure, row=self._name, **fields)

    def _append(self, measure: str, **fields: Any) -> None:
        self._run.append(measure=measure, row=self._name, **fields)

    @functools.cached_property
    def _detector(self) -> evaluation.Detector | None:
        held_out = self._settings.held_out
        return defending.detector(self._defense, self._network, data.to_float(held_out.images), held_out.labels)

    def _matrix_row(self, images: data.Dataset) -> MatrixRow:
        return MatrixRow(
            self._deployed,
            data.to_float(images.images),
            images.labels,
            images.indices,
            key=jax.random.fold_in(jax.random.key(FLAGS.seed), attacking.JUDGING),
            evaluate=common.evaluator(),
            detector=self._detector,
        )

    @functools.cached_property
    def _judge(self) -> MatrixRow:
        if self._find("clean") is None:
            self._append("clean", **self._matrix_row(self._settings.clean).clean_fields())
        return self._matrix_row(self._settings.attacked)

    def _cells(self, knows: bool) -> dict[str, _Cell]:
        """The attacks of an attacker, by their names in the results."""
        settings, network = self._settings, self._network
        numbers = {"epsilon": float(settings.epsilon)}
        words = {"num_steps": settings.num_steps, "norm": settings.norm}
        cell = functools.partial(_Cell, norm=settings.norm, budget=float(settings.epsilon))
        pgd = functools.partial(ConfiguredAttack, "pgd", attacks.ATTACKS["pgd"])
        if not knows and self._defense.is_detector:
            # The attack that the detector was made for: images that are as close as can be.
            return {"carlini_wagner_l2": _Cell(_FITTED_ON, self._naive, "l2", _DETECTED_L2)}
        if not knows:
            return {"pgd cross_entropy": cell(pgd(numbers, words), self._naive)}
        # Momentum is an expectation over the draws of several steps, and costs nothing: two draws with it broke as many
        # images of the quick table as five without, or more.
        along = numbers | {"step_size": float(settings.epsilon) / 8, "momentum": 0.9}
        by_margin = pgd(along, words | {"loss": "margin"})
        # Each loss finds images that the other misses.
        found = {"pgd margin": cell(by_margin, self._seen), "pgd cross_entropy": cell(pgd(along, words), self._seen)}
        declaration = self._defense.declaration
        if declaration.kind in ("transform", "wrapper") and declaration.name != "thermometer":
            # The defense changes images little, or nothing on average: the network alone may be enough.
            found["pgd margin, network"] = cell(by_margin, network)
        if declaration.name == "thermometer":
            steps = {"num_steps": settings.num_steps} | dict(self._defense.settings)
            for name, function in (("ls_pga", thermometer.ls_pga), ("dga", thermometer.dga)):
                of_codes = dataclasses.replace(attacks.ATTACKS["fgsm"], name=name, function=function)
                found[name] = cell(ConfiguredAttack(name, of_codes, numbers, steps), network)
        if declaration.name == "defense_gan" and self._defense.given:
            # Through x = G(z), and from there back to the image. For each of five constants; the authors' code takes
            # 30,000 steps.
            steps = {"latent": dict(self._defense.settings)["latent"], "num_steps": 3 * settings.num_steps}
            for name, function, real in (
                (_ON_MANIFOLD, defense_gan.manifold_attack, {}),
                (f"{_ON_MANIFOLD}, carried over", defense_gan.carried_attack, numbers),
            ):
                of_codes = dataclasses.replace(attacks.ATTACKS["carlini_wagner_l2"], name=name, function=function)
                given = {"generator_fn": self._defense.given[0]}
                found[name] = cell(ConfiguredAttack(name, of_codes, real, steps, given=given), network)
        return found

    def _measure(self, text: str, cell: _Cell, knows: bool) -> None:
        attacked, judge = self._settings.attacked, self._judge
        tried = attacking.attempts("none", attacked)
        outcome = attacking.run_attack(cell.attack, cell.seen, tried, f"{self._name}: {text}")
        verdict = judge.judge(tried, outcome.inputs, cell.norm, cell.budget)
        file = f"images/{self._name}_{text.replace(',', '').replace(' ', '_')}_{'aware' if knows else 'unaware'}"
        shown = defending.view(self._defense, outcome.inputs)
        views = {} if shown is None else {"defended": shown}
        self._run.save_arrays(file, images=outcome.inputs, broken=verdict.broken, lost=judge.lost, **views)
        if text == _ON_MANIFOLD:
            self._tell_of_manifold(tried, outcome, cell)
        costs = evaluation.costs(outcome)
        self._append("attack", aware=knows, attack=text, **verdict.fields, file=f"{file}.npz", **costs)

    def _worst(self, knows: bool) -> None:
        """The worst case over an attacker's attacks; one who knows the defense also has those of one who does not."""
        records = [r for r in self._run.records if r["measure"] == "attack" and r["row"] == self._name]
        files = [r["file"].removesuffix(".npz") for r in records if r["aware"] <= knows]
        if self._find("worst", aware=knows, attacks=len(files)) is None:
            broken = [self._run.load_arrays(file)["broken"] for file in files]
            self._append("worst", aware=knows, attacks=len(files), **evaluation.worst_case(broken))

    def _look_at_gradients(self) -> None:
        """The norms of the margin's gradients, as both attackers see them."""
        attacked = self._settings.attacked
        fields = {}
        for name, seen in (("unaware", self._naive), ("aware", self._seen)):
            norms = common.evaluate(_gradient_norm, seen, data.to_float(attacked.images), attacked.labels)
            fields |= {f"norm_{name}": float(np.median(norms)), f"zero_{name}": float((norms == 0).mean())}
        self._append("gradient", **fields)

    def _tell_of_manifold(self, tried: Attempts, outcome: Outcome, cell: _Cell) -> None:
        """Whether images of the generator that fool the network do so through the reconstruction, too."""
        anywhere = self._judge.judge(tried, outcome.inputs, cell.norm, np.inf)
        success = outcome.success
        record = metrics.rate_fields("success", int(success.sum()), len(success))
        record |= metrics.rate_fields("kept", int((success & anywhere.broke).sum()), int(success.sum()))
        distance = evaluation.of_norm(outcome.distances, cell.norm)
        within = int((success & evaluation.is_within(distance, cell.budget)).sum())
        mean = float(outcome.distances.l2[success].mean()) if success.any() else None
        if self._find("reparameterization") is None:
            self._append("reparameterization", **record, mean_l2=mean, within=within)

    def _train_substitute(self) -> Any:
        recipe, queries = self._settings.recipe, self._settings.queries
        return substitutes.train(self._run, self._name, recipe, self._deployed, queries)

    def _transfer(self, substitute: Any) -> None:
        cell, tried = self._cells(True)["pgd margin"], attacking.attempts("none", self._settings.attacked)
        outcome = attacking.run_attack(cell.attack, substitute, tried, f"{self._name}: substitute")
        verdict = self._judge.judge(tried, outcome.inputs, cell.norm, cell.budget)
        images = data.to_float(self._settings.clean.images)
        agrees = attacking.decide(substitute, images) == attacking.decide(self._deployed, images)
        record = {name: value for name, value in verdict.fields.items() if name.startswith("accuracy")}
        self._append("transfer", **record, **metrics.rate_fields("agreement", int(agrees.sum()), len(agrees)))


def _gradient_norm(logits_fn: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
    asked = problem.prepare("the gradient's norm", logits_fn, images, labels)
    return examples.norm(asked.examples.objective_and_gradient(asked.logits_fn, asked.clean)[2])


if __name__ == "__main__":
    common.run(main)
