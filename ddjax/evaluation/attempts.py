"""What is attacked: inputs, each once for each of its targets."""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int, Key

from ddjax.attacks import Attack
from ddjax.checks import check_choice

# How targets are chosen; `auto` depends on the attack.
TARGETS = ("auto", "all", "random", "next", "least_likely")


class Attempts(NamedTuple):
    """Inputs that an attack is tried on, each once for each of its targets; all with the attempts as first axis.

    Attributes:
      rows: which of the test inputs.
      inputs: floats.
      labels: the true classes.
      targets: the classes to reach, or None.
      indices: positions of the test inputs in their data set, from which keys are derived.
    """

    rows: Int[np.ndarray, " N"]
    inputs: Float[np.ndarray, "N ..."]
    labels: Int[np.ndarray, " N"]
    targets: Int[np.ndarray, " N"] | None
    indices: Int[np.ndarray, " N"]


def resolve_targets(how: str, attack: Attack) -> str:
    """How an attack's targets are chosen, by a word of `TARGETS`; `"none"` for untargeted.

    `"auto"` leaves an attack untargeted where it can be, and else aims at all other classes.

    Raises:
      ValueError: for an unknown word, or targets that an attack cannot take.
    """
    check_choice("choice of targets", how, TARGETS)
    if how == "auto":
        return "all" if attack.targets == "required" else "none"
    if attack.targets == "no":
        raise ValueError(f"{attack.name} has no targeted form: --targets={how} does not go with it")
    return how


def make_attempts(
    how: str,
    inputs: Float[np.ndarray, "N ..."],
    labels: Int[np.ndarray, " N"],
    *,
    logits: Float[np.ndarray, "N K"] | None = None,
    indices: Int[np.ndarray, " N"] | None = None,
    seed: int = 0,
) -> Attempts:
    """The attempts on a test set.

    Args:
      how: `"none"` for untargeted, or `"all"`, `"random"`, `"next"` or `"least_likely"`; no target is the label.
      inputs: the test inputs, floats.
      labels: their true classes.
      logits: of the clean inputs; needed for targets alone.
      indices: their positions in their data set. Default: 0 to N - 1.
      seed: for random targets.

    Raises:
      ValueError: for targets without logits.
    """
    indices = np.arange(len(inputs)) if indices is None else indices
    if how == "none":
        rows, targets = np.arange(len(inputs)), None
    elif logits is None:
        raise ValueError(f"targets by {how!r} need the logits of the clean inputs")
    else:
        rows, targets = _choose(how, logits, labels, seed)
    return Attempts(rows, inputs[rows], labels[rows].astype(np.int32), targets, indices[rows])


def _choose(how: str, logits: np.ndarray, labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """For each attempt the row of its input, and its target."""
    count, classes = logits.shape
    if how == "all":
        rows, targets = np.divmod(np.arange(count * classes), classes)
        other = targets != labels[rows]
        return rows[other], targets[other].astype(np.int32)
    if how == "random":
        targets = (labels + np.random.default_rng(seed).integers(1, classes, count)) % classes
    elif how == "next":
        targets = (labels + 1) % classes
    else:
        targets = np.where(np.arange(classes) == labels[:, None], np.inf, logits).argmin(1)
    return np.arange(count), targets.astype(np.int32)


def key_data(key: Key[jax.Array, ""], indices: Int[np.ndarray, " N"]) -> np.ndarray:
    """A key for each example, by its position in its data set, as the integers that keys are."""
    keys = jax.vmap(lambda index: jax.random.fold_in(key, index))(indices)
    return np.asarray(jax.random.key_data(keys))
