"""What launchers that attack share: the networks they attack, and `ddjax.evaluation` by the flags."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

from ddjax import attacks, checkpoints, data, evaluation, metrics, runs
from ddjax.evaluation import Attempts, ConfiguredAttack, Outcome

from . import common

FLAGS = flags.FLAGS
# Keys of the draws that judge are others than those of the draws that attack.
JUDGING = 0x1D6E


def check_named(networks: Any, chosen: Any) -> None:
    """Refuses a command that names no network or no attack."""
    if not networks:
        raise ValueError("--checkpoint must name the directory of a network's checkpoints, or --model your own network")
    if not chosen:
        raise ValueError(f"--attack must name at least one attack; known: {', '.join(attacks.ATTACKS)}")


class Network(NamedTuple):
    """A trained network.

    Attributes:
      logits_fn: the network.
      spec: how it was trained.
      fingerprint: of its parameters.
    """

    logits_fn: Any
    spec: checkpoints.NetworkSpec
    fingerprint: str


def load_network(directory: Any, test: data.Dataset) -> Network:
    """A network from its checkpoints, refused where it does not take the images."""
    spec = checkpoints.read_spec(directory)
    data.check_fits(test, spec.image_shape, spec.num_classes, network=f"the network of {directory}")
    state, spec = checkpoints.load_network(directory)
    return Network(state.logits_fn, spec, common.fingerprint(*jax.tree.leaves(state.variables)))


def flags_of_run(launcher: str, recipe: str, dataset: str, num_examples: int, **own: Any) -> dict[str, Any]:
    """The flags that determine the numbers of a run that attacks trained networks, and this launcher's own."""
    shared = {name: FLAGS[name].value for name in ("seed", "batch_size", "matmul_precision")}
    named = {"launcher": launcher, "recipe": recipe, "dataset": dataset, "num_examples": num_examples}
    return named | own | shared


def describe(test: data.Dataset) -> dict[str, Any]:
    """What determines the numbers of such a run beyond its flags."""
    names = {"feature_names": test.feature_names} if test.feature_names else {}
    return names | {"class_names": test.class_names, "test_fingerprint": common.fingerprint(test.images, test.labels)}


def attempts(how: str, test: data.Dataset, logits: np.ndarray | None = None) -> Attempts:
    """The attempts on a test set by the flag's seed; see `evaluation.make_attempts`."""
    inputs = data.to_float(test.images)
    return evaluation.make_attempts(how, inputs, test.labels, logits=logits, indices=test.indices, seed=FLAGS.seed)


def decide(classifier: Any, inputs: np.ndarray) -> np.ndarray:
    """The class of each input, by one fresh draw where the classifier is random; -1 where there is no decision."""
    labels, key = np.zeros(len(inputs), np.int32), common.key(JUDGING)
    return evaluation.judge(classifier, inputs, labels, key=key, evaluate=common.evaluator()).predictions[0]


def run_attack(attack: ConfiguredAttack, logits_fn: Any, tried: Attempts, description: str, **settings: Any) -> Outcome:
    """`evaluation.run_attack` with the flags' seed, batch size and progress."""
    settings |= {"key": jax.random.key(FLAGS.seed), "evaluate": common.evaluator(), "description": description}
    return evaluation.run_attack(attack, logits_fn, tried, **settings)


def case_fields(
    outcome: Outcome, tried: Attempts, norms: Mapping[str, str], known: Iterable[str] = ("best", "average", "worst")
) -> dict[str, Any]:
    """The best, average and worst case over the targets of each image, as flat fields of a record.

    Args:
      outcome: of the attack.
      tried: the attempts.
      norms: from each norm to the name of its distance in the record.
      known: the cases that there are; the fields of the others are None.
    """
    fields: dict[str, Any] = {}
    for norm, distance in norms.items():
        for name, case in metrics.cases(getattr(outcome.distances, norm), outcome.success, tried.rows).items():
            values = (case.rate.successes, case.rate.n, case.rate.value, case.distance)
            for field, value in zip(("successes", "n", "success", distance), values, strict=True):
                fields[f"{name}_{field}"] = value if name in known else None
    return fields


def save_outcome(run: runs.Run, name: str, tried: Attempts, outcome: Outcome) -> str:
    """Keeps the adversarial inputs, and what they were for, as `images/NAME.npz` of the run; returns that path."""
    targets = {} if tried.targets is None else {"targets": tried.targets}
    run.save_arrays(
        f"images/{name}",
        images=outcome.inputs,
        success=outcome.success,
        labels=tried.labels,
        rows=tried.rows,
        predictions=outcome.predictions,
        **targets,
    )
    return f"images/{name}.npz"


def save_clean(run: runs.Run, test: data.Dataset, logits: np.ndarray) -> None:
    """Keeps the test images as `images/clean.npz`."""
    predictions = logits.argmax(1).astype(np.int32)
    run.save_arrays("images/clean", images=test.images, labels=test.labels, predictions=predictions)
