"""Inputs that attacks once answered with a number that meant nothing, each with its right value.

The classifier is a random linear one, so that its gradient is everywhere alive and each example can be attacked.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ddjax
from tests.attacks.linear import size

CLASSES = 10
WEIGHTS = jax.random.normal(jax.random.key(0), (64, CLASSES))
INPUTS = jax.random.uniform(jax.random.key(1), (6, 8, 8, 1))
CW = {"search_steps": 5, "num_steps": 100, "initial_const": 0.1, "learning_rate": 0.05}
C0 = {"num_steps": 100, "initial_const": 0.1, "learning_rate": 0.05}
C_LINF = {"num_steps": 100, "learning_rate": 0.05}
# Those that compare margins, with settings under which they are fast.
MARGINS = {
    "ddn": {},
    "deepfool": {},
    "carlini_wagner_l2": CW,
    "carlini_wagner_l0": C0,
    "carlini_wagner_linf": C_LINF,
}
GRADIENTS = {"fgsm": {"epsilon": 0.1}, "pgd": {"epsilon": 0.1, "num_steps": 10, "random_start": False}}
TARGETED = MARGINS | GRADIENTS | {"jsma": {"gamma": 0.8}}
del TARGETED["deepfool"]

pytestmark = pytest.mark.usefixtures("as_a_user")


def classify(x):
    return x.reshape(len(x), -1) @ WEIGHTS.astype(x.dtype)


LABELS = classify(INPUTS).argmax(1).astype(jnp.int32)
TARGETS = (LABELS + 1) % CLASSES


def _with_fixed(fixed, x):
    logits = classify(x)
    return jnp.where(jnp.isnan(fixed), logits, fixed.astype(logits.dtype))


def with_class(classes, value):
    """The classifier with a fixed logit of one class, of the same one in all rows or of one for each; NaN for none."""
    is_class = jnp.arange(CLASSES, dtype=jnp.int32)[None] == jnp.broadcast_to(jnp.asarray(classes), (6,))[:, None]
    return jax.tree_util.Partial(_with_fixed, jnp.where(is_class, jnp.float32(value), jnp.nan))


PLAIN = with_class(0, jnp.nan)


@functools.cache
def _compiled(name, settings):
    attack = getattr(ddjax, name)
    return jax.jit(lambda f, x, y, t: attack(f, x, y, targets=t, **dict(settings)))


def run(name, logits_fn=PLAIN, inputs=INPUTS, labels=LABELS, *, targets=None, **settings):
    """Classifiers that `with_class` makes share a program."""
    logits_fn = logits_fn if isinstance(logits_fn, jax.tree_util.Partial) else jax.tree_util.Partial(logits_fn)
    found = _compiled(name, tuple(settings.items()))(logits_fn, inputs, labels, targets)
    return jax.tree.map(np.asarray, found)


def moved(result, inputs=INPUTS):
    return size(np.asarray(result.inputs, np.float64) - np.asarray(inputs, np.float64), "l2")


@pytest.mark.parametrize("value", [-1e9, -np.inf])
@pytest.mark.parametrize("name", MARGINS)
def test_masked_class_does_not_hide_the_others(name, value):
    logits_fn = with_class(7, value)
    labels = logits_fn(INPUTS).argmax(1).astype(jnp.int32)
    result = run(name, logits_fn, labels=labels, **MARGINS[name])
    assert result.success.all()
    decision = np.asarray(logits_fn(result.inputs)).argmax(1)
    assert (decision != labels).all()
    assert (decision != 7).all()


@pytest.mark.parametrize("name", MARGINS)
def test_input_whose_own_class_is_switched_off_is_adversarial_at_once(name):
    result = run(name, with_class(LABELS, -np.inf), **MARGINS[name])
    assert result.success.all()
    np.testing.assert_array_equal(result.inputs, INPUTS)


@pytest.mark.parametrize("name", TARGETED)
def test_target_that_is_switched_off_is_never_reached(name):
    result = run(name, with_class(TARGETS, -np.inf), targets=TARGETS, **TARGETED[name])
    assert not result.success.any()
    assert np.isfinite(result.inputs).all()
    assert (result.inputs >= 0).all()
    assert (result.inputs <= 1).all()


@pytest.mark.parametrize("loss", ["cross_entropy", "margin", "dlr", "logit"])
def test_pgd_with_each_loss_takes_classes_that_are_switched_off(loss):
    settings = GRADIENTS["pgd"] | {"loss": loss}
    other = run("pgd", with_class((LABELS + 5) % CLASSES, -np.inf), **settings)
    np.testing.assert_array_equal(
        other.success, run("pgd", with_class((LABELS + 5) % CLASSES, -60.0), **settings).success
    )
    assert other.success.all()
    assert run("pgd", with_class(LABELS, -np.inf), **settings).success.all()
    never = run("pgd", with_class(TARGETS, -np.inf), targets=TARGETS, **settings)
    assert not never.success.any()
    assert np.isfinite(never.inputs).all()


def test_pixels_up_to_255_in_a_trace_are_failures():
    result = run("carlini_wagner_l2", lambda z: classify(z / 255), INPUTS * 255, **CW)
    assert not result.success.any()
    np.testing.assert_array_equal(result.inputs, INPUTS * 255)
    assert np.isnan(result.logits).all()


def test_targets_equal_to_labels_in_a_trace_are_failures():
    result = run("carlini_wagner_l2", targets=LABELS, **CW)
    assert not result.success.any()
    np.testing.assert_array_equal(result.inputs, INPUTS)


def test_labels_that_are_no_classes_in_a_trace_are_failures():
    result = run("carlini_wagner_l2", labels=LABELS - 10, **CW)
    assert not result.success.any()
    np.testing.assert_array_equal(result.inputs, INPUTS)


def test_fourth_positional_argument_is_refused():
    with pytest.raises(TypeError, match="carlini_wagner_l2 takes logits_fn, inputs, labels by position"):
        ddjax.carlini_wagner_l2(classify, INPUTS, LABELS, TARGETS, **CW)
    with pytest.raises(TypeError, match="fgsm takes logits_fn, inputs, labels by position"):
        ddjax.fgsm(classify, INPUTS, LABELS, 0.01)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, jnp.float16) for name in ("ddn", "deepfool", "carlini_wagner_l2", *GRADIENTS)] + [("ddn", jnp.bfloat16)],
)
def test_half_precision_is_attacked_and_judged_on_what_is_returned(name, dtype):
    # The goal of each attack is its default one.
    settings = (MARGINS | GRADIENTS)[name]
    inputs = INPUTS.astype(dtype)
    labels = classify(inputs).argmax(1).astype(jnp.int32)
    result = run(name, inputs=inputs, labels=labels, **settings)
    exact = run(name, **settings)
    assert result.inputs.dtype == dtype
    assert result.success.mean() >= exact.success.mean() > 0
    logits = classify(jnp.asarray(result.inputs))
    np.testing.assert_array_equal(result.success, np.asarray(logits).argmax(1) != labels)
    # A unit of the logits in half precision is a large share of the shortest of these distances.
    np.testing.assert_allclose(np.mean(moved(result, inputs)), np.mean(moved(exact)), rtol=0.1)


@pytest.mark.parametrize("name", ["fgsm", "pgd", "ddn", "jsma"])
def test_float16_gradients_of_certain_classifier_do_not_underflow(name):
    # The slopes of the softmax are down to 1e-14, which float16 does not have.
    certain = lambda x: classify(x) * jnp.asarray(8.0, x.dtype)
    settings = TARGETED[name]
    targets = TARGETS if name == "jsma" else None
    half = INPUTS.astype(jnp.float16)
    results = [run(name, certain, inputs, targets=targets, **settings) for inputs in (half, INPUTS)]
    assert results[1].success.any()
    np.testing.assert_array_equal(*[result.success for result in results])
    np.testing.assert_array_equal(*[result.zero_gradients for result in results])


def test_float16_classifier_with_traced_parameters_is_differentiated_by_the_caller():
    # The attack is inside of a program that is differentiated with respect to what the classifier closes over.
    def loss(weights, inputs):
        logits_fn = lambda x: x.reshape(len(x), -1) @ weights.astype(x.dtype)
        result = ddjax.fgsm(logits_fn, inputs, LABELS, epsilon=0.1)
        return jnp.sum(result.logits.astype(jnp.float32) ** 2)

    half, full = (jax.jit(jax.grad(loss))(WEIGHTS, INPUTS.astype(dtype)) for dtype in (jnp.float16, jnp.float32))
    np.testing.assert_allclose(half, full, atol=0.01 * np.abs(full).max())


def test_ddn_on_0_to_255_is_ddn_on_0_to_1_scaled():
    plain = run("ddn")
    scaled = run("ddn", lambda z: classify(z / 255), INPUTS * 255, bounds=(0.0, 255.0))
    assert plain.success.all()
    assert scaled.success.all()
    np.testing.assert_allclose(moved(scaled, INPUTS * 255) / 255, moved(plain), rtol=0.02)


def test_ddn_without_bounds_needs_a_first_norm_and_then_succeeds():
    unbounded = {"bounds": (-np.inf, np.inf)}
    with pytest.raises(ValueError, match="ddn needs initial_norm"):
        ddjax.ddn(classify, INPUTS, LABELS, **unbounded)
    result = run("ddn", initial_norm=1.0, **unbounded)
    assert result.success.all()
    assert (moved(result) < 1.05 * moved(run("ddn"))).all()


def test_jsma_refuses_numpy_settings_that_mean_nothing():
    with pytest.raises(ValueError, match="has no temperature"):
        ddjax.jsma(classify, INPUTS, LABELS, targets=TARGETS, temperature=np.float32(100))
    with pytest.raises(ValueError, match="gamma must be a finite number at least 0 and at most 1"):
        ddjax.jsma(classify, INPUTS, LABELS, targets=TARGETS, gamma=np.float32(14.5))
    with pytest.raises(ValueError, match="less than the one pair"):
        ddjax.jsma(classify, INPUTS, LABELS, targets=TARGETS, gamma=0.01)


def test_fgsm_takes_bounds_of_channels_in_float64():
    mean, std = np.array([0.1307]), np.array([0.3081])
    inputs = (jnp.zeros((4, 8, 8, 1)) - 0.1307) / 0.3081
    labels = classify(inputs).argmax(1).astype(jnp.int32)
    bounds = ((0 - mean) / std, (1 - mean) / std)
    result = ddjax.fgsm(classify, inputs, labels, bounds=bounds)
    assert result.success.all()
    # The inputs are at the lower bound: a value stays, or rises by 0.3 of the range.
    width = float(bounds[1][0] - bounds[0][0])
    change = np.asarray(result.inputs) - np.asarray(inputs)
    np.testing.assert_allclose(change, np.where(change > 0.1, 0.3 * width, 0.0), rtol=1e-5, atol=1e-6)
    of_float32 = ddjax.fgsm(classify, inputs, labels, bounds=tuple(np.float32(bound) for bound in bounds))
    np.testing.assert_array_equal(result.inputs, of_float32.inputs)


@pytest.mark.parametrize("name", MARGINS | GRADIENTS)
def test_pixel_above_1_by_rounding_is_clipped(name):
    settings = (MARGINS | GRADIENTS)[name]
    inputs = INPUTS.at[:, 0, 0, 0].set(1.0)
    labels = classify(inputs).argmax(1).astype(jnp.int32)
    moved_out = inputs.at[:, 0, 0, 0].set(1.0000001)
    result, exact = (run(name, inputs=each, labels=labels, **settings) for each in (moved_out, inputs))
    assert result.success.any()
    for one, other in zip(jax.tree.leaves(result), jax.tree.leaves(exact), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ["fgsm", "carlini_wagner_l2", "jsma"])
def test_labels_of_8_bits_are_as_those_of_32(name):
    settings = (TARGETED | MARGINS)[name]
    targets = TARGETS if name == "jsma" else None
    small = None if targets is None else targets.astype(jnp.uint8)
    results = (
        run(name, labels=LABELS.astype(jnp.uint8), targets=small, **settings),
        run(name, targets=targets, **settings),
    )
    assert results[1].success.any()
    for one, other in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ["fgsm", "pgd", "ddn", "deepfool"])
def test_x64_values_are_those_of_float32(name):
    settings = (MARGINS | GRADIENTS)[name]
    plain = run(name, **settings)
    inputs, labels, weights = (np.asarray(array) for array in (INPUTS, LABELS, WEIGHTS))
    with jax.enable_x64(True):
        for dtype in (np.float32, np.float64):
            logits_fn = lambda x: x.reshape(len(x), -1) @ jnp.asarray(weights, x.dtype)
            wide = run(name, logits_fn, inputs.astype(dtype), labels.astype(np.int64), **settings)
            assert wide.inputs.dtype == dtype
            np.testing.assert_array_equal(wide.success, plain.success)
            np.testing.assert_allclose(wide.inputs, plain.inputs, atol=1e-4)
