import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ddjax import metrics


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (3, 10), (10, 10), (811, 900), (0, 1)])
def test_wilson_interval_is_scipys(successes, n):
    expected = stats.binomtest(successes, n).proportion_ci(method="wilson")
    np.testing.assert_allclose(metrics.wilson_interval(successes, n), expected, atol=1e-12)


def test_wilson_interval_edges():
    assert metrics.wilson_interval(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="cannot be 4 successes among 3"):
        metrics.wilson_interval(4, 3)


def test_accuracy_and_success_leave_clean_mistakes_out():
    logits = np.array([[2.0, 1.0], [0.0, 1.0], [1.0, 0.0], [np.nan, 9.0]])
    labels = np.array([0, 1, 1, 1])
    clean_correct = metrics.correct(logits, labels)
    np.testing.assert_array_equal(clean_correct, [True, True, False, False])
    assert metrics.accuracy(logits, labels) == (2, 4)
    rate = metrics.success_rate(np.array([True, False, True, True]), clean_correct)
    assert rate == (1, 2)
    assert rate.value == 0.5
    assert metrics.success_rate(np.array([True]), np.array([False])).value == 0.0


def test_mean_absolute_logit():
    assert metrics.mean_absolute_logit(np.array([[1.0, -3.0], [2.0, 2.0]])) == (2.0, pytest.approx(np.sqrt(0.5)))


def test_distances_by_hand():
    clean = jnp.zeros((2, 2, 2, 3))
    adversarial = clean.at[0, 0, 0].set(jnp.array([0.5, -0.25, 0.0])).at[0, 1, 1, 2].set(-1.0)
    measured = metrics.distances(clean, adversarial)
    np.testing.assert_array_equal(measured.l0_pixels, [2, 0])
    np.testing.assert_array_equal(measured.l0_values, [3, 0])
    np.testing.assert_allclose(measured.l1, [1.75, 0])
    np.testing.assert_allclose(measured.l2, [np.sqrt(0.25 + 0.0625 + 1), 0])
    np.testing.assert_allclose(measured.linf, [1, 0])
    of_vectors = metrics.distances(clean.reshape(2, 12), adversarial.reshape(2, 12))
    np.testing.assert_array_equal(of_vectors.l0_pixels, [3, 0])
    np.testing.assert_array_equal(of_vectors.l1, measured.l1)


def test_robustness_takes_the_easiest_target_and_counts_failures_at_the_cap():
    measured = metrics.robustness(
        np.array([4, 2, 6, 6, 6]),
        np.array([True, True, True, False, False]),
        np.array([7, 7, 7, 9, 9]),
        num_features=100,
        cap=12,
    )
    assert measured == (pytest.approx((2 + 12) / 2 / 100), 1, 2)
    empty = np.array([], int)
    assert metrics.robustness(empty, empty.astype(bool), empty, num_features=4, cap=2) == (0.0, 0, 0)


def test_cases_over_targets():
    image = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2])
    success = np.array([True, True, True, True, False, True, False, False, False])
    distance = np.array([1.0, 2.0, 6.0, 3.0, 99.0, 5.0, 0.0, 0.0, 0.0])
    found = metrics.cases(distance, success, image)
    # The best target of each image that has one; all attempts; images on which every target was reached.
    assert found["best"] == (metrics.Rate(2, 3), 2.0)
    assert found["average"] == (metrics.Rate(5, 9), 17 / 5)
    assert found["worst"] == (metrics.Rate(1, 3), 6.0)
    none = metrics.cases(distance[6:], success[6:], image[6:])
    assert [case.distance for case in none.values()] == [None, None, None]
