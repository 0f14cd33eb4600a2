"""The one call for most users: attacks, the judge, rates with intervals, warnings and a curve."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from ddjax import metrics
from ddjax.attacks.problem import Bounds
from ddjax.binding import LOGARITHM, check_classifier, takes_logarithm
from ddjax.checks import check_choice, check_number
from ddjax.classifier import Randomized, expectation
from ddjax.evaluation.attempts import make_attempts
from ddjax.evaluation.budgets import is_within, of_norm
from ddjax.evaluation.judging import judge
from ddjax.evaluation.running import ConfiguredAttack, Outcome, check_settings, parse_attack, run_attack
from ddjax.parallel import Evaluator

# The attacks of each norm, unless others are named. Two losses, because each finds what the other misses.
ATTACKS_OF_NORM = {
    "linf": ("pgd:loss=margin", "pgd:loss=cross_entropy"),
    "l2": ("pgd:norm=l2,loss=margin", "pgd:norm=l2,loss=cross_entropy", "ddn"),
    "l1": ("pgd:norm=l1,loss=margin", "pgd:norm=l1,loss=cross_entropy"),
    "l0": ("carlini_wagner_l0",),
}
# A larger share of exactly zero gradients is warned of.
ZERO_SHARE = 0.01
# Radii of the curve, as multiples of the budget.
_RADII = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)


@dataclasses.dataclass(frozen=True)
class AttackRow:
    """What one attack did within the budget.

    Attributes:
      attack: its text.
      broken: how many of the correctly classified inputs it broke within the budget.
      outside: how many successes lay outside the budget, and do not count.
      median_distance: of the counted successes, in the norm; None without one.
      zero_gradient_share: the share of its gradients that were exactly zero; None for an attack that takes none.
      seconds: for one input.
    """

    attack: str
    broken: metrics.Rate
    outside: int
    median_distance: float | None
    zero_gradient_share: float | None
    seconds: float

    def __str__(self) -> str:
        """The row of a table, without the attack's text."""
        zero = "" if self.zero_gradient_share is None else f", zero gradients {self.zero_gradient_share:.1%}"
        median = "" if self.median_distance is None else f", median distance {self.median_distance:.4g}"
        return f"breaks {_with_interval(self.broken)} of {self.broken.n}{median}{zero}"


@dataclasses.dataclass(frozen=True)
class Report:
    """What survived.

    Attributes:
      norm: of the budget.
      epsilon: the budget, in the units of the inputs.
      clean: how many of the inputs are classified correctly.
      robust: how many are classified correctly and broken by no attack within the budget.
      rows: one for each attack.
      broken: whether each input is misclassified, or broken within the budget by any attack, `[N]`.
      distances: to the nearest success of any attack in the norm, `[N]`; 0 for a misclassified input, infinity where
        none was found.
      curve: radii from 0 to twice the budget, and the share of the inputs for which no attack has found a success
        within each, `[2, P]`. The first attack with a radius runs with each of these; others count by their distances.
      warnings: sentences on what makes these numbers doubtful; empty for none.
    """

    norm: str
    epsilon: float
    clean: metrics.Rate
    robust: metrics.Rate
    rows: tuple[AttackRow, ...]
    broken: Bool[np.ndarray, " N"]
    distances: Float[np.ndarray, " N"]
    curve: Float[np.ndarray, "2 P"]
    warnings: tuple[str, ...]

    @property
    def robust_interval(self) -> tuple[float, float]:
        """The 95 percent Wilson interval of `robust`."""
        return self.robust.interval

    def __str__(self) -> str:
        """The report as a table for a terminal."""
        width = max(len(row.attack) for row in self.rows)
        return "\n".join(
            [
                f"{self.norm} within {self.epsilon:.4g}, {self.clean.n} inputs, 95 percent intervals",
                f"clean accuracy   {_with_interval(self.clean)}",
                f"robust accuracy  {_with_interval(self.robust)}",
                *(f"{row.attack:<{width}}  {row}" for row in self.rows),
                *(f"warning: {warning}" for warning in self.warnings),
            ]
        )


def _with_interval(rate: metrics.Rate) -> str:
    return "{:.4f} [{:.4f}, {:.4f}]".format(rate.value, *rate.interval)


def evaluate(
    classifier: Any,
    inputs: Float[Array, "N ..."] | Float[np.ndarray, "N ..."],
    labels: Int[Array, " N"] | Int[np.ndarray, " N"],
    *,
    norm: str,
    epsilon: float,
    key: Key[Array, ""],
    attacks: Sequence[str | ConfiguredAttack] | None = None,
    num_samples: int = 30,
    num_draws: int = 1,
    bounds: Bounds | None = None,
    mask: Bool[Array, "..."] | Bool[np.ndarray, "..."] | None = None,
    evaluator: Evaluator | None = None,
) -> Report:
    """Attacks a classifier within a budget, and reports what survived.

    Every result is judged again outside of the attack, and held against the budget by a distance that is measured here.
    A random classifier is attacked through an expectation over `num_samples` draws, and judged with fresh ones.

    Args:
      classifier: from inputs `[B, ...]` to logits `[B, K]`, or a `Randomized`.
      inputs: of any shape, within the bounds.
      labels: the true classes.
      norm: of the budget, `"linf"`, `"l2"`, `"l1"` or `"l0"` (changed values).
      epsilon: the budget, above 0, in the units of the inputs.
      key: of all randomness.
      attacks: their texts, `name:key=value,...`, or configured attacks. Attacks with a radius get `epsilon` unless they
        have one. Default: `ATTACKS_OF_NORM`.
      num_samples: of the expectation through which a random classifier is attacked.
      num_draws: by which it is judged; an input counts as broken by the share of draws in which it is, of one half or
        more.
      bounds: the least and the greatest value of an input, numbers or arrays that broadcast against one input, such as
        one for each feature; None for 0 and 1.
      mask: which values the attacks may change, booleans that broadcast against one input; None for all.
      evaluator: applies programs to many inputs. Default: `Evaluator()`.

    Returns:
      The report; print it for a table.

    Raises:
      TypeError: for arguments of a wrong type.
      ValueError: for an unknown norm or attack, an attack of another norm, a setting out of its range, no inputs, or
        what `check_classifier` refuses.
    """
    check_choice("norm", norm, tuple(ATTACKS_OF_NORM))
    check_number("epsilon", epsilon, above=0.0)
    if not len(inputs):
        raise ValueError("there are no inputs to evaluate")
    inputs, labels = np.asarray(inputs), np.asarray(labels).astype(np.int32)
    attack_key, judge_key = jax.random.split(key)
    judging = {"num_draws": num_draws, "evaluate": evaluator or Evaluator()}
    is_random = isinstance(classifier, Randomized)
    seen = expectation(classifier, attack_key, num_samples=num_samples) if is_random else classifier
    chosen = [_configured(each, norm, epsilon).limited(bounds, mask) for each in (attacks or ATTACKS_OF_NORM[norm])]
    attempts = make_attempts("none", inputs, labels)
    for each in chosen:
        check_settings(each, seen, inputs.shape[1:], targeted=False)
    if not is_random:
        check_classifier(classifier, inputs)
    # What is no decision is wrong as well.
    clean = (judge(classifier, inputs, labels, key=judge_key, **judging).predictions == labels).mean(0) > 0.5

    def measure(configured: ConfiguredAttack) -> tuple[Outcome, np.ndarray]:
        """What an attack did, and how far its successes are from the inputs; infinity for none."""
        outcome = run_attack(configured, seen, attempts, key=attack_key, judged=classifier, **judging)
        success = (outcome.success_rate >= 0.5) & clean
        return outcome, np.where(success, np.asarray(of_norm(outcome.distances, norm), np.float64), np.inf)

    distances, rows = np.where(clean, np.inf, 0.0), []
    for each in chosen:
        outcome, found = measure(each)
        distances = np.minimum(distances, found)
        rows.append(_row(each.text, outcome, found, clean, epsilon))
    broken = is_within(distances, epsilon)
    radii = epsilon * np.array([0.0, *_RADII])
    climber = next((each for each in chosen if each.attack.kind == "budget"), None)
    for radius in radii[1:]:
        if climber is not None and radius != epsilon:
            distances = np.minimum(distances, measure(_with_epsilon(climber, radius))[1])
    return Report(
        norm=norm,
        epsilon=float(epsilon),
        clean=metrics.Rate.of(clean),
        robust=metrics.Rate.of(~broken),
        rows=tuple(rows),
        broken=broken,
        distances=distances,
        curve=np.stack([radii, (~is_within(distances[None], radii[:, None])).mean(1)]),
        warnings=(*((LOGARITHM,) if takes_logarithm(classifier) else ()), *_warnings(rows, clean)),
    )


def _configured(given: str | ConfiguredAttack, norm: str, epsilon: float) -> ConfiguredAttack:
    found = parse_attack(given, "attacks") if isinstance(given, str) else given
    if found.attack.targets == "required":
        raise ValueError(f"{found.text} needs targets; the report is on untargeted attacks")
    if "norm" not in found.words and norm in found.attack.norm and len(found.attack.norm) > 1:
        found = found.replace(words={**found.words, "norm": norm})
    if found.norm != norm:
        raise ValueError(f"{found.text} is an attack in {found.norm}; the budget is in {norm}")
    needs_epsilon = found.attack.kind == "budget" and "epsilon" not in found.numbers
    return _with_epsilon(found, epsilon) if needs_epsilon else found


def _with_epsilon(configured: ConfiguredAttack, epsilon: float) -> ConfiguredAttack:
    return configured.replace(numbers={**configured.numbers, "epsilon": float(epsilon)})


def _row(text: str, outcome: Outcome, found: np.ndarray, clean: np.ndarray, epsilon: float) -> AttackRow:
    counted = is_within(found, epsilon)
    return AttackRow(
        attack=text,
        broken=metrics.Rate.of(counted[clean]),
        outside=int((np.isfinite(found) & ~counted).sum()),
        median_distance=float(np.median(found[counted])) if counted.any() else None,
        zero_gradient_share=outcome.zero_gradient_share,
        seconds=outcome.seconds,
    )


def _warnings(rows: Sequence[AttackRow], clean: np.ndarray) -> list[str]:
    found = [
        f"{row.attack}: {row.zero_gradient_share:.1%} of its gradients were exactly zero; the classifier may mask its "
        "gradients, so this rate says little"
        for row in rows
        if (row.zero_gradient_share or 0.0) > ZERO_SHARE
    ]
    if not clean.any():
        found.append("the classifier gets no input right, so there is nothing to attack")
    return found
