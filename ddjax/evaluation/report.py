"""The one call for most users: attacks, the judge, rates with intervals, warnings and a curve."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from ddjax import metrics
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
      interval: the 95 percent Wilson interval of that rate.
      outside: how many successes lay outside the budget, and do not count.
      median_distance: of the counted successes, in the norm; None without one.
      zero_gradient_share: the share of its gradients that were exactly zero; None for an attack that takes none.
      seconds: for one input.
    """

    attack: str
    broken: metrics.Rate
    interval: tuple[float, float]
    outside: int
    median_distance: float | None
    zero_gradient_share: float | None
    seconds: float


@dataclasses.dataclass(frozen=True)
class Report:
    """What survived.

    Attributes:
      norm: of the budget.
      epsilon: the budget, in the units of the inputs.
      clean: how many of the inputs are classified correctly.
      robust: how many are classified correctly and broken by no attack within the budget.
      robust_interval: the 95 percent Wilson interval of that rate.
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
    robust_interval: tuple[float, float]
    rows: tuple[AttackRow, ...]
    broken: Bool[np.ndarray, " N"]
    distances: Float[np.ndarray, " N"]
    curve: Float[np.ndarray, "2 P"]
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        """The report as a table for a terminal."""
        low, high = metrics.wilson_interval(*self.clean)
        lines = [
            f"{self.norm} within {self.epsilon:.4g}, {self.clean.n} inputs, 95 percent intervals",
            f"clean accuracy   {self.clean.value:.4f} [{low:.4f}, {high:.4f}]",
            f"robust accuracy  {self.robust.value:.4f} [{self.robust_interval[0]:.4f}, {self.robust_interval[1]:.4f}]",
        ]
        width = max(len(row.attack) for row in self.rows)
        for row in self.rows:
            zero = "" if row.zero_gradient_share is None else f", zero gradients {row.zero_gradient_share:.1%}"
            median = "" if row.median_distance is None else f", median distance {row.median_distance:.4g}"
            lines.append(
                f"{row.attack:<{width}}  breaks {row.broken.value:.4f} [{row.interval[0]:.4f}, {row.interval[1]:.4f}] "
                f"of {row.broken.n}{median}{zero}"
            )
        return "\n".join([*lines, *(f"warning: {warning}" for warning in self.warnings)])


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
    evaluator: Evaluator | None = None,
) -> Report:
    """Attacks a classifier within a budget, and reports what survived.

    Every result is judged again outside of the attack, and held against the budget by a distance that is measured here.
    A random classifier is attacked through an expectation over `num_samples` draws, and judged with fresh ones.

    Args:
      classifier: from inputs `[B, ...]` to logits `[B, K]`, or a `Randomized`.
      inputs: in [0, 1].
      labels: the true classes.
      norm: of the budget, `"linf"`, `"l2"`, `"l1"` or `"l0"` (changed values).
      epsilon: the budget, above 0, in the units of the inputs.
      key: of all randomness.
      attacks: their texts, `name:key=value,...`, or configured attacks. Attacks with a radius get `epsilon` unless they
        have one. Default: `ATTACKS_OF_NORM`.
      num_samples: of the expectation through which a random classifier is attacked.
      num_draws: by which it is judged; an input counts as broken by the share of draws in which it is, of one half or
        more.
      evaluator: applies programs to many inputs. Default: `Evaluator()`.

    Returns:
      The report; print it for a table.

    Raises:
      TypeError: for arguments of a wrong type.
      ValueError: for an unknown norm or attack, an attack of another norm, a setting out of its range, or no inputs.
    """
    check_choice("norm", norm, tuple(ATTACKS_OF_NORM))
    check_number("epsilon", epsilon, above=0.0)
    if not len(inputs):
        raise ValueError("there are no inputs to evaluate")
    inputs, labels = np.asarray(inputs), np.asarray(labels).astype(np.int32)
    evaluator = evaluator or Evaluator()
    attack_key, judge_key = jax.random.split(key)
    seen = expectation(classifier, attack_key, num_samples=num_samples) if _is_random(classifier) else classifier
    chosen = [_configured(each, norm, epsilon) for each in (attacks or ATTACKS_OF_NORM[norm])]
    attempts = make_attempts("none", inputs, labels)
    for each in chosen:
        check_settings(each, seen, inputs.shape[1:], targeted=False)
    clean = judge(classifier, inputs, labels, key=judge_key, num_draws=num_draws, evaluate=evaluator).mean() < 0.5
    distances = np.where(clean, np.inf, 0.0)
    broken = ~clean
    rows = []
    for each in chosen:
        outcome = run_attack(
            each, seen, attempts, key=attack_key, judged=classifier, num_draws=num_draws, evaluate=evaluator
        )
        row, success, distance = _row(each, outcome, clean, norm, epsilon)
        distances = np.where(success, np.minimum(distances, distance), distances)
        broken |= success & is_within(distance, epsilon)
        rows.append(row)
    climber = next((each for each in chosen if each.attack.kind == "budget"), None)
    for radius in [epsilon * multiple for multiple in _RADII if multiple != 1]:
        if climber is None:
            break
        at_radius = climber.replace(numbers=dict(climber.numbers) | {"epsilon": float(radius)})
        outcome = run_attack(
            at_radius, seen, attempts, key=attack_key, judged=classifier, num_draws=num_draws, evaluate=evaluator
        )
        _, success, distance = _row(at_radius, outcome, clean, norm, radius)
        distances = np.where(success, np.minimum(distances, distance), distances)
    robust = metrics.Rate(int((~broken).sum()), len(broken))
    radii = epsilon * np.array([0.0, *_RADII])
    return Report(
        norm=norm,
        epsilon=float(epsilon),
        clean=metrics.Rate(int(clean.sum()), len(clean)),
        robust=robust,
        robust_interval=metrics.wilson_interval(*robust),
        rows=tuple(rows),
        broken=broken,
        distances=distances,
        curve=np.stack([radii, (~is_within(distances[None], radii[:, None])).mean(1)]),
        warnings=tuple(_warnings(rows, clean)),
    )


def _is_random(classifier: Any) -> bool:
    return isinstance(classifier, Randomized)


def _configured(given: str | ConfiguredAttack, norm: str, epsilon: float) -> ConfiguredAttack:
    found = parse_attack(given, "attacks") if isinstance(given, str) else given
    if found.attack.targets == "required":
        raise ValueError(f"{found.text} needs targets; the report is on untargeted attacks")
    if "norm" not in found.words and norm in found.attack.norm and len(found.attack.norm) > 1:
        found = found.replace(words=dict(found.words) | {"norm": norm})
    if found.norm != norm:
        raise ValueError(f"{found.text} is an attack in {found.norm}; the budget is in {norm}")
    if found.attack.kind == "budget" and "epsilon" not in found.numbers:
        found = found.replace(numbers=dict(found.numbers) | {"epsilon": float(epsilon)})
    return found


def _row(
    configured: ConfiguredAttack, outcome: Outcome, clean: np.ndarray, norm: str, epsilon: float
) -> tuple[AttackRow, np.ndarray, np.ndarray]:
    """The attack's row, its successes on correctly classified inputs, and the distances of all results."""
    distance = np.asarray(of_norm(outcome.distances, norm), np.float64)
    success = (outcome.success_rate >= 0.5) & clean
    counted = success & is_within(distance, epsilon)
    rate = metrics.Rate(int(counted.sum()), int(clean.sum()))
    row = AttackRow(
        attack=configured.text,
        broken=rate,
        interval=metrics.wilson_interval(*rate),
        outside=int((success & ~counted).sum()),
        median_distance=float(np.median(distance[counted])) if counted.any() else None,
        zero_gradient_share=outcome.zero_gradient_share,
        seconds=outcome.seconds,
    )
    return row, success, distance


def _warnings(rows: Sequence[AttackRow], clean: np.ndarray) -> list[str]:
    found = [
        f"{row.attack}: {row.zero_gradient_share:.1%} of its gradients were exactly zero; the classifier may mask its "
        "gradients, so this rate says little"
        for row in rows
        if row.zero_gradient_share is not None and row.zero_gradient_share > ZERO_SHARE
    ]
    if not clean.any():
        found.append("the classifier gets no input right, so there is nothing to attack")
    return found
