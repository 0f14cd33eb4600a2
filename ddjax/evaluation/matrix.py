"""The matrix of attacks and defenses: one defended network before many attacks.

An example is broken when the defended network misclassifies it and, where there is a detector, the detector does not
flag it. An example that is broken without an attack counts as broken for every attack. An attack breaks an example
only within the budget of its norm, by a distance that is measured here. An attacker who knows the defense can also
attack as one who does not, so the worst case of the former includes the attacks of the latter.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, Key

from ddjax import metrics
from ddjax.evaluation.attempts import Attempts
from ddjax.evaluation.budgets import is_within, of_norm
from ddjax.evaluation.judging import judge
from ddjax.parallel import Evaluator


@runtime_checkable
class Detector(Protocol):
    """A fitted detector of adversarial inputs."""

    @property
    def threshold(self) -> Any:
        """The score above which an input is taken for adversarial."""

    def scores(self, inputs: Float[np.ndarray, "N ..."]) -> Float[np.ndarray, " N"]:
        """How adversarial each input looks; larger is more."""
        ...


class Look(NamedTuple):
    """A defended network's answers to N inputs.

    Attributes:
      decisions: the classes; -1 where there is no decision.
      flagged: which inputs the detector takes for adversarial; none without a detector.
      scores: of the detector, or None.
    """

    decisions: Int[np.ndarray, " N"]
    flagged: Bool[np.ndarray, " N"]
    scores: Float[np.ndarray, " N"] | None


class Verdict(NamedTuple):
    """What an attack did to a defended network.

    Attributes:
      broken: which test inputs are broken, the ones that are broken without an attack included, `[N]`.
      broke: which attempts broke their input within the budget, `[A]`.
      fooled: which attempts misclassify a correctly classified input within the budget, flagged or not, `[A]`.
      fields: of a record: accuracy with its interval, success, distances, and what the detector noticed.
      scores: of the detector for each attempt, or None.
    """

    broken: Bool[np.ndarray, " N"]
    broke: Bool[np.ndarray, " A"]
    fooled: Bool[np.ndarray, " A"]
    fields: dict[str, Any]
    scores: Float[np.ndarray, " A"] | None


@dataclasses.dataclass(frozen=True)
class MatrixRow:
    """One defended network, and the test inputs on which it is judged.

    Attributes:
      classifier: the defended network as it is deployed; a `Randomized` is judged by one fresh draw.
      inputs: the test inputs, floats.
      labels: their true classes.
      indices: their positions in their data set, from which keys are derived.
      key: of the judge's draws: another one than attacks have.
      evaluate: applies programs to many inputs.
      detector: beside the network; None for none.
    """

    classifier: Any
    inputs: Float[np.ndarray, "N ..."]
    labels: Int[np.ndarray, " N"]
    indices: Int[np.ndarray, " N"]
    key: Key[jax.Array, ""]
    evaluate: Evaluator
    detector: Detector | None = None

    def look(self, inputs: Float[np.ndarray, "A ..."], rows: Int[np.ndarray, " A"]) -> Look:
        """The defended network's answers to inputs made from the test inputs `rows`."""
        settings = {"key": self.key, "indices": self.indices[rows], "evaluate": self.evaluate}
        decisions = judge(self.classifier, inputs, self.labels[rows], **settings).predictions[0]
        if self.detector is None:
            return Look(decisions, np.zeros(len(rows), bool), None)
        scores = self.detector.scores(inputs)
        return Look(decisions, scores > np.float32(self.detector.threshold), scores)

    @functools.cached_property
    def clean(self) -> Look:
        """The answers to the test inputs as they are."""
        return self.look(self.inputs, np.arange(len(self.inputs)))

    @property
    def lost(self) -> Bool[np.ndarray, " N"]:
        """Which test inputs are broken without an attack."""
        return (self.clean.decisions != self.labels) | self.clean.flagged

    def clean_fields(self) -> dict[str, Any]:
        """The fields of a record: accuracy without an attack and, with a detector, its false positives."""
        fields = metrics.rate_fields("accuracy", *metrics.Rate.of(~self.lost))
        if self.detector is not None:
            fields |= metrics.rate_fields("false_positive", *metrics.Rate.of(self.clean.flagged))
        return fields

    def judge(self, attempts: Attempts, inputs: Float[np.ndarray, "A ..."], norm: str, budget: float) -> Verdict:
        """Judges the inputs that an attack returned, which may move an input by `budget` in its norm."""
        rows, lost = attempts.rows, self.lost
        measured = metrics.distances(jnp.asarray(attempts.inputs), jnp.asarray(inputs))
        look = self.look(inputs, rows)
        wrong = (look.decisions != self.labels[rows]) & is_within(of_norm(measured, norm), budget)
        broke, fooled = wrong & ~look.flagged, wrong & ~lost[rows]
        broken = lost.copy()
        broken[rows[broke]] = True
        fields: dict[str, Any] = {"norm": norm, "budget": float(budget)} | worst_case([broken])
        fields["success"] = metrics.success_rate(broken, ~lost).value
        for name in ("l2", "linf"):
            moved = np.asarray(getattr(measured, name))[broke]
            fields[f"mean_{name}"] = float(moved.mean()) if broke.any() else None
        if look.scores is not None and self.clean.scores is not None:
            fields |= metrics.rate_fields("detection", *metrics.Rate.of(look.flagged[fooled]))
            fields["auc"] = metrics.auc(self.clean.scores[~lost], look.scores[fooled])
        return Verdict(broken, broke, fooled, fields, look.scores)


def worst_case(broken: Sequence[Bool[np.ndarray, " N"]]) -> dict[str, Any]:
    """The fields of a record: the accuracy that is left where an example counts as broken by any of several attacks."""
    return metrics.rate_fields("accuracy", *metrics.Rate.of(~np.any(broken, axis=0)))
