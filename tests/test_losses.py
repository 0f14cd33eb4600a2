import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddjax import losses

LOGITS = jnp.array([[2.0, -1.0, 0.5], [0.0, 0.0, 3.0]])


def test_cross_entropy_at_temperature_is_the_definition_without_t_squared():
    soft = jnp.array([[0.7, 0.2, 0.1], [0.0, 0.5, 0.5]])
    for temperature in (1.0, 7.0):
        expected = -np.sum(np.asarray(soft) * np.log(np.asarray(jax.nn.softmax(LOGITS / temperature))), axis=1)
        np.testing.assert_allclose(losses.cross_entropy_at_temperature(LOGITS, soft, temperature), expected, rtol=1e-5)


def test_cross_entropy_of_one_hot_labels_is_the_integer_one():
    labels = jnp.array([1, 2])
    one_hot = jax.nn.one_hot(labels, 3)
    soft = losses.cross_entropy_at_temperature(LOGITS, one_hot, 1.0)
    np.testing.assert_allclose(losses.cross_entropy(LOGITS, labels), soft, rtol=1e-5)
    huge = losses.cross_entropy(jnp.array([[1e4, -1e4]]), jnp.array([1]))
    np.testing.assert_allclose(huge, 2e4)


def test_margin_is_the_logit_less_the_largest_of_the_others():
    np.testing.assert_allclose(losses.margin(LOGITS, jnp.array([0, 1])), [1.5, -3.0])
    np.testing.assert_allclose(losses.margin(jnp.array([[1e4, -1e4]]), jnp.array([1])), -2e4)


def test_dlr_is_the_margin_over_the_spread_and_does_not_feel_scale_or_shift():
    labels = jnp.array([0, 1])
    np.testing.assert_allclose(losses.dlr(LOGITS, labels), [-1.5 / 3.0, 3.0 / 3.0])
    np.testing.assert_allclose(losses.dlr(1e4 * LOGITS + 3.0, labels), losses.dlr(LOGITS, labels), rtol=1e-5)


def test_targeted_dlr_compares_the_target_with_the_label():
    logits = jnp.array([[2.0, -1.0, 0.5, 0.0, -2.0]])
    wanted = (0.5 - 2.0) / (2.0 - (0.0 - 1.0) / 2)
    np.testing.assert_allclose(losses.targeted_dlr(logits, jnp.array([0]), jnp.array([2])), [wanted])


def test_dlr_of_equal_logits_and_its_gradient_are_finite():
    labels, targets = jnp.array([0, 1]), jnp.array([2, 2])
    for logits in (jnp.zeros((2, 4)), jnp.array([[0.0, 1, 1, 1], [1.0, 0, 1, 1]])):
        for loss in (lambda z: losses.dlr(z, labels), lambda z: losses.targeted_dlr(z, labels, targets)):
            assert jnp.all(jnp.isfinite(loss(logits)))
            assert jnp.all(jnp.isfinite(jax.grad(lambda z, loss=loss: loss(z).sum())(logits)))


def test_dlr_with_too_few_classes():
    with pytest.raises(ValueError, match="dlr needs at least 3 classes, got 2"):
        losses.dlr(LOGITS[:, :2], jnp.array([0, 1]))
    with pytest.raises(ValueError, match="targeted_dlr needs at least 4 classes, got 3"):
        losses.targeted_dlr(LOGITS, jnp.array([0, 1]), jnp.array([1, 2]))


# Five live classes, and others that are switched off.
LIVE = np.array([[2.0, -1.0, 0.5, 0.25, -2.0], [0.0, 1.5, 3.0, 1.0, -1.0]], np.float32)


def with_classes_off(off, places=(0, 3, 7)):
    """The logits with three more classes, and the index of each live class."""
    width = LIVE.shape[1] + len(places)
    rest = [column for column in range(width) if column not in places]
    logits = np.full((2, width), off, np.float32)
    logits[:, rest] = LIVE
    return jnp.asarray(logits), np.array(rest)


@pytest.mark.parametrize("off", [-np.inf, -1e9])
@pytest.mark.parametrize("name", ["margin", "cross_entropy", "logit", "dlr", "targeted_dlr", "at_temperature"])
def test_classes_that_are_switched_off_take_no_part_in_values_or_gradients(name, off):
    logits, live = with_classes_off(off)
    labels, targets = np.array([0, 1]), np.array([2, 3])

    def loss(logits, of):
        own, wanted = jnp.asarray(of[labels]), jnp.asarray(of[targets])
        if name == "targeted_dlr":
            return losses.targeted_dlr(logits, own, wanted)
        if name == "at_temperature":
            soft = 0.75 * jax.nn.one_hot(own, logits.shape[1]) + 0.25 * jax.nn.one_hot(wanted, logits.shape[1])
            return losses.cross_entropy_at_temperature(logits, soft, 3.0)
        return getattr(losses, name)(logits, own)

    np.testing.assert_allclose(loss(logits, live), loss(jnp.asarray(LIVE), np.arange(5)), rtol=1e-6)
    gradient = jax.grad(lambda z: loss(z, live).sum())(logits)
    wanted = jax.grad(lambda z: loss(z, np.arange(5)).sum())(jnp.asarray(LIVE))
    np.testing.assert_allclose(gradient[:, live], wanted, rtol=1e-5, atol=1e-7)
    assert not np.delete(np.asarray(gradient), live, axis=1).any()


@pytest.mark.parametrize("live", [1, 2, 3])
def test_dlr_with_too_few_live_classes_is_minus_the_margin(live):
    logits = jnp.full((1, 5), -jnp.inf).at[0, :live].set(jnp.array([2.0, 1.0, -1.5])[:live])
    label = jnp.array([0])
    for target in range(1, 5):
        targeted = lambda z, target=target: losses.targeted_dlr(z, label, jnp.array([target]))
        wanted = lambda z, target=target: z[:, target] - z[:, 0]
        np.testing.assert_allclose(targeted(logits), wanted(logits))
        gradients = [jax.grad(lambda z, loss=loss: loss(z).sum())(logits) for loss in (targeted, wanted)]
        np.testing.assert_array_equal(*gradients)
    minus_margin = lambda z: -losses.margin(z, label)
    if live < 3:
        np.testing.assert_allclose(losses.dlr(logits, label), minus_margin(logits))
        gradients = [
            jax.grad(lambda z, loss=loss: loss(z).sum())(logits)
            for loss in (lambda z: losses.dlr(z, label), minus_margin)
        ]
        np.testing.assert_array_equal(*gradients)
        assert jnp.all(jnp.isfinite(gradients[0]))
    else:
        np.testing.assert_allclose(losses.dlr(logits, label), -1.0 / 3.5)


def test_losses_of_a_label_that_is_switched_off_are_infinite_with_finite_gradients():
    logits, label, target = jnp.array([[-jnp.inf, 1.0, 0.5, 0.0, -1.0]]), jnp.array([0]), jnp.array([2])
    for loss, wanted in (
        (lambda z: losses.margin(z, label), -jnp.inf),
        (lambda z: losses.dlr(z, label), jnp.inf),
        (lambda z: losses.targeted_dlr(z, label, target), jnp.inf),
        (lambda z: losses.targeted_dlr(z, target, label), -jnp.inf),
        (lambda z: losses.cross_entropy(z, label), jnp.inf),
    ):
        value, gradient = jax.value_and_grad(lambda z, loss=loss: loss(z).sum())(logits)
        assert value == wanted
        assert jnp.all(jnp.isfinite(gradient))
        assert gradient[0, 0] != 0


def test_losses_of_logits_that_are_all_switched_off_are_no_number_but_zero():
    logits, label, target = jnp.full((1, 5), -jnp.inf), jnp.array([0]), jnp.array([2])
    for loss in (
        lambda z: losses.margin(z, label),
        lambda z: losses.dlr(z, label),
        lambda z: losses.targeted_dlr(z, label, target),
    ):
        value, gradient = jax.value_and_grad(lambda z, loss=loss: loss(z).sum())(logits)
        assert value == 0
        assert jnp.all(jnp.isfinite(gradient))


def test_margin_of_the_only_live_class_is_infinite():
    logits = jnp.array([[1.0, -jnp.inf, -jnp.inf]])
    np.testing.assert_array_equal(losses.margin(logits, jnp.array([0])), [jnp.inf])
    np.testing.assert_array_equal(losses.margin(logits, jnp.array([1])), [-jnp.inf])


def test_registered_losses_grow_away_from_the_label_and_towards_the_target():
    assert tuple(losses.REGISTRY) == ("cross_entropy", "margin", "dlr", "logit")
    logits = jnp.array([[3.0, 1.0, 0.5, 0.0, -1.0]])
    label, target = jnp.array([0]), jnp.array([3])
    for name, loss in losses.REGISTRY.items():
        assert loss.name == name
        gradient = jax.grad(lambda z, loss=loss: loss(z, label).sum())(logits)
        assert gradient[0, 0] < 0
        gradient = jax.grad(lambda z, loss=loss: loss(z, label, target).sum())(logits)
        assert gradient[0, 3] > 0


def test_losses_refuse_too_few_classes_and_targets_that_they_cannot_take():
    logits, label, target = jnp.zeros((1, 3)), jnp.array([0]), jnp.array([1])
    dlr = losses.REGISTRY["dlr"]
    assert dlr(logits, label).shape == (1,)
    with pytest.raises(ValueError, match="targeted_dlr needs at least 4 classes, got 3"):
        dlr(logits, label, target)
    with pytest.raises(ValueError, match="dlr needs at least 3 classes, got 2"):
        dlr(logits[:, :2], label)
    with pytest.raises(ValueError, match="own has no targeted form"):
        losses.Loss("own", losses.cross_entropy)(logits, label, target)
    with pytest.raises(ValueError, match="unknown loss 'ce'; known: cross_entropy, margin, dlr, logit"):
        losses.REGISTRY.find("ce")
