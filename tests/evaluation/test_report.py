import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddjax
from ddjax import evaluation
from tests.evaluation.test_judging import INPUTS, LABELS, LINEAR, WEIGHTS

KEY = jax.random.key(0)


def _true_distances(dual):
    """The distance of each input to the nearest boundary of the linear classifier, in the norm whose dual is given."""
    logits = np.asarray(LINEAR(jnp.asarray(INPUTS)), np.float64)
    distances = np.full((len(LABELS), 3), np.inf)
    for row, label in enumerate(LABELS):
        for other in {0, 1, 2} - {int(label)}:
            slope = (WEIGHTS[:, label] - WEIGHTS[:, other]).astype(np.float64)
            distances[row, other] = (logits[row, label] - logits[row, other]) / np.linalg.norm(slope, dual)
    return distances.min(1)


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_report_on_a_linear_classifier_has_the_true_robust_accuracy(norm, dual):
    distances = _true_distances(dual)
    # In the widest gap between two of the middle distances.
    ordered = np.sort(distances)
    gap = 12 + int(np.argmax(np.diff(ordered)[12:28]))
    epsilon = float((ordered[gap] + ordered[gap + 1]) / 2)
    report = ddjax.evaluate(LINEAR, INPUTS, LABELS, norm=norm, epsilon=epsilon, key=KEY)
    assert report.clean == (40, 40)
    np.testing.assert_array_equal(report.broken, distances < epsilon)
    assert report.robust == (39 - gap, 40)
    low, high = report.robust_interval
    assert low < (39 - gap) / 40 < high
    assert (report.distances >= distances - 1e-5).all()
    radii, share = report.curve
    assert share[0] == 1.0
    assert (np.diff(share) <= 0).all()
    for radius, survived in zip(radii, share, strict=True):
        assert survived == pytest.approx((distances > radius).mean(), abs=0.051)
    assert not report.warnings
    assert f"robust accuracy  {(39 - gap) / 40:.4f}" in str(report)


def test_table_is_attacked_within_its_bounds_and_its_mask():
    """Features of ranges of their own, of which one is masked and one is constant: what is left counts."""
    low, width = np.linspace(-9, 6, 16, dtype=np.float32), np.float32(1)
    constant = np.arange(16) == 3
    shifted = lambda x: LINEAR(jnp.asarray(np.where(constant, INPUTS[0].ravel(), 0.0))[None] + (x - low[None]))
    inputs = low + np.where(constant, 0, INPUTS.reshape(40, 16))
    labels = np.asarray(shifted(jnp.asarray(inputs))).argmax(1).astype(np.int32)
    bounds, mask = (low, low + np.where(constant, 0, width)), jnp.arange(16) != 5
    settings = {"bounds": bounds, "mask": mask, "attacks": ["deepfool:norm=linf"], "key": KEY}
    report = ddjax.evaluate(shifted, inputs, labels, norm="linf", epsilon=0.05, **settings)
    free = np.asarray(mask) & ~constant
    logits, distances = np.asarray(shifted(jnp.asarray(inputs)), np.float64), np.full((40, 3), np.inf)
    for row, label in enumerate(labels):
        for other in {0, 1, 2} - {int(label)}:
            slope = (WEIGHTS[:, label] - WEIGHTS[:, other]).astype(np.float64)[free]
            distances[row, other] = (logits[row, label] - logits[row, other]) / np.abs(slope).sum()
    np.testing.assert_allclose(report.distances, distances.min(1), rtol=0.03)
    with pytest.raises(ValueError, match="bounds that are arrays must be finite"):
        ddjax.evaluate(shifted, inputs, labels, norm="linf", epsilon=0.05, **settings | {"bounds": (low, low + np.inf)})


def test_successes_outside_the_budget_do_not_count():
    distances = _true_distances(1)
    epsilon = float(np.sort(distances)[5])
    attacks = ["pgd:loss=margin,epsilon=0.25"]
    report = ddjax.evaluate(LINEAR, INPUTS, LABELS, norm="linf", epsilon=epsilon, attacks=attacks, key=KEY)
    assert report.rows[0].broken == (0, 40)
    assert report.robust == (40, 40)
    assert report.rows[0].outside > 20


def test_stopped_gradients_are_warned_of():
    stopped = lambda inputs: LINEAR(jax.lax.stop_gradient(inputs))
    report = ddjax.evaluate(stopped, INPUTS, LABELS, norm="linf", epsilon=0.1, key=KEY, attacks=["fgsm"])
    assert report.rows[0].zero_gradient_share == 1.0
    assert any("100.0% of its gradients were exactly zero" in warning for warning in report.warnings)


def test_misclassified_inputs_are_broken_and_not_attacked():
    wrong = np.where(np.arange(40) < 10, (LABELS + 1) % 3, LABELS)
    report = ddjax.evaluate(LINEAR, INPUTS, wrong, norm="linf", epsilon=1e-4, key=KEY, attacks=["fgsm"])
    assert report.clean == (30, 40)
    assert report.rows[0].broken.n == 30
    assert (report.distances[:10] == 0).all()
    assert report.broken[:10].all()


def test_logits_that_are_no_decision_are_not_right():
    undecided = lambda inputs: jnp.where(inputs[:, :1, 0, 0] < 0.5, jnp.nan, LINEAR(inputs))
    report = ddjax.evaluate(undecided, INPUTS, LABELS, norm="linf", epsilon=1e-4, key=KEY, attacks=["fgsm"])
    assert report.clean.successes == (INPUTS[:, 0, 0, 0] >= 0.5).sum() < 40
    assert report.robust.successes <= report.clean.successes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm": "l3"}, "unknown norm 'l3'; known: linf"),
        ({"epsilon": 0.0}, "epsilon must be a finite number above 0"),
        ({"attacks": ["ddn"]}, "ddn is an attack in l2; the budget is in linf"),
        ({"attacks": ["jsma"]}, "jsma needs targets"),
        ({"attacks": ["nothing"]}, "unknown attack 'nothing'; known: "),
        ({"attacks": ["pgd:num_steps=0"]}, "num_steps must be a whole number of at least 1"),
    ],
)
def test_bad_requests_are_refused(settings, message):
    given = {"norm": "linf", "epsilon": 0.1, "key": KEY} | settings
    with pytest.raises(ValueError, match=message):
        ddjax.evaluate(LINEAR, INPUTS, LABELS, **given)


def test_default_budgets_follow_the_kind_of_images():
    assert evaluation.default_budgets((28, 28, 1)) == {"linf": 0.3, "l2": 2.0, "l1": 10.0, "l0": 112.0}
    assert evaluation.default_budgets((32, 32, 3))["linf"] == 8 / 255


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_matrix_row_holds_attacks_to_the_budget_and_counts_what_is_lost(norm):
    labels = np.where(np.arange(40) == 3, (LABELS + 1) % 3, LABELS).astype(np.int32)
    row = evaluation.MatrixRow(LINEAR, INPUTS, labels, np.arange(40), key=KEY, evaluate=ddjax.parallel.Evaluator())
    assert row.clean_fields()["accuracy"] == 39 / 40
    tried = evaluation.make_attempts("none", INPUTS, labels)
    # Towards another class by far more than any budget, for every second input.
    moved = INPUTS.copy()
    direction = (WEIGHTS[:, (LABELS + 1) % 3] - WEIGHTS[:, LABELS]).T.reshape(INPUTS.shape)
    moved[::2] = INPUTS[::2] + 0.2 * np.sign(direction[::2])
    wrong = np.asarray(LINEAR(jnp.asarray(moved))).argmax(1) != labels
    size = {"linf": 0.2, "l2": 0.8}[norm]
    inside = row.judge(tried, moved, norm, size * 1.01)
    np.testing.assert_array_equal(inside.broken, wrong)
    outside = row.judge(tried, moved, norm, size * 0.99)
    assert outside.broken.sum() == 1
    assert outside.fields["accuracy"] == 39 / 40
    assert evaluation.worst_case([inside.broken, outside.broken])["accuracy"] == inside.fields["accuracy"]
