import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddjax import losses
from ddjax.attacks.projected_gradient import LOSSES, NORMS, bim, mim, pgd
from tests.attacks import linear

# Radii at which some, but not all, of the images of the small network fall.
RADII = {"linf": 0.06, "l2": 0.25, "l1": 1.0}
compiled = jax.jit(pgd, static_argnames=("num_steps", "norm", "loss", "random_start", "num_restarts"))
constant = jax.tree_util.Partial(lambda images: jnp.array([[1.0, 0, 0, 0]]) + 0 * images.sum((1, 2, 3))[:, None])


def attack(network, batch, norm, epsilon, *, step_size=None, num_restarts=1, seed=0):
    """Always of the same form, so that the tests share one compiled program for each norm."""
    images, labels, _ = batch
    each = jnp.broadcast_to(jnp.asarray(epsilon, jnp.float32), labels.shape)
    # The default for five steps, or the same step for all.
    step_size = each / 2 if step_size is None else jnp.full_like(each, step_size)
    return compiled(
        network,
        images,
        labels,
        key=jax.random.key(seed),
        epsilon=each,
        step_size=step_size,
        norm=norm,
        num_steps=5,
        num_restarts=num_restarts,
    )


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("case", linear.CASES[1:3])
def test_pgd_on_linear_classifier_succeeds_at_just_the_radii_above_the_least(case, norm):
    logits_fn, images, labels = linear.problem(*case)
    radius, nearest = linear.least(logits_fn, images, labels, norm)
    radius = jnp.asarray(radius, jnp.float32)
    aimed = functools.partial(
        compiled, logits_fn, images, labels, targets=nearest, norm=norm, loss="margin", random_start=False
    )
    assert aimed(epsilon=1.02 * radius).success.all()
    assert not aimed(epsilon=0.98 * radius).success.any()


@pytest.mark.parametrize("norm", NORMS)
def test_random_starts_reach_the_least_radius_of_a_linear_classifier_too(norm):
    logits_fn, images, labels = linear.problem(*linear.CASES[1])
    radius, nearest = linear.least(logits_fn, images, labels, norm)
    radius = jnp.asarray(radius, jnp.float32)
    started = functools.partial(
        compiled,
        logits_fn,
        images,
        labels,
        key=jax.random.key(0),
        norm=norm,
        loss="margin",
        num_steps=100,
        num_restarts=2,
    )
    assert started(targets=nearest, epsilon=1.02 * radius, step_size=0.1 * radius).success.all()
    assert not started(targets=nearest, epsilon=0.98 * radius, step_size=0.1 * radius).success.any()
    assert not started(epsilon=0.98 * radius).success.any()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("targeted", [False, True])
def test_every_loss_finds_adversarial_images_and_is_judged_on_them(loss, targeted):
    logits_fn, images, labels = linear.problem(*linear.CASES[2])
    targets = (labels + 3) % 10 if targeted else None
    result = compiled(logits_fn, images, labels, targets=targets, epsilon=0.2, loss=loss, random_start=False)
    logits = logits_fn(result.inputs)
    np.testing.assert_allclose(result.logits, logits, atol=1e-5)
    decisions = jnp.argmax(logits, axis=1)
    np.testing.assert_array_equal(result.success, decisions == targets if targeted else decisions != labels)
    assert result.success.mean() > 0.5
    np.testing.assert_array_equal(result.gradients, 40)


@pytest.mark.parametrize("norm", NORMS)
def test_budget_and_box_hold(network, batch, norm):
    images, labels, _ = batch
    each = jnp.linspace(0.5, 4.0, len(labels)) * RADII[norm]
    result = attack(network, batch, norm, each)
    distance = linear.size(np.asarray(result.inputs, np.float64) - np.asarray(images, np.float64), norm)
    slack = 6e-8 if norm == "linf" else 1e-6 * np.asarray(each)
    assert (distance <= np.asarray(each, np.float64) + slack).all()
    assert (distance > 0.3 * np.asarray(each)).mean() > 0.5
    assert float(result.inputs.min()) >= 0
    assert float(result.inputs.max()) <= 1


@pytest.mark.parametrize("norm", NORMS)
def test_radius_zero_changes_nothing(network, batch, norm):
    result = attack(network, batch, norm, 0.0, step_size=0.1)
    np.testing.assert_array_equal(result.inputs, batch[0])
    assert not result.success.any()


@pytest.mark.parametrize("norm", NORMS)
def test_more_restarts_are_never_worse(network, batch, norm):
    one, four = (attack(network, batch, norm, RADII[norm], num_restarts=count) for count in (1, 4))
    before, after = (np.asarray(losses.cross_entropy(result.logits, batch[1])) for result in (one, four))
    assert (four.success >= one.success).all()
    assert (after >= before - 1e-5)[four.success == one.success].all()
    assert (after > before + 1e-4).any()
    np.testing.assert_array_equal(four.gradients, 20)
    np.testing.assert_array_equal(four.steps, 20)


@pytest.mark.parametrize("norm", NORMS)
def test_single_key_decides_the_starts(network, batch, norm):
    first, same, other = (attack(network, batch, norm, RADII[norm], seed=seed).inputs for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()


@pytest.mark.parametrize("norm", NORMS)
def test_random_starts_fill_the_ball_and_belong_to_the_example(norm):
    # Constant logits leave the start where it is; with a wide box nothing is cut off.
    images = jnp.zeros((400, 1, 3, 1))
    labels = jnp.zeros(400, jnp.int32)
    keys = jax.random.split(jax.random.key(2), 400)
    start = jax.jit(functools.partial(pgd, constant, epsilon=2.0, num_steps=1, norm=norm, bounds=(-9.0, 9.0)))
    result = start(images, labels, key=keys)
    assert not result.success.any()
    np.testing.assert_allclose(start(images[7:20], labels[7:20], key=keys[7:20]).inputs, result.inputs[7:20], atol=1e-6)
    # In three dimensions the cube of a uniform point's distance is uniform, whatever the norm.
    volumes = np.sort((linear.size(result.inputs, norm) / 2) ** 3)
    assert np.abs(volumes - (np.arange(400) + 0.5) / 400).max() < 0.08
    assert np.abs(result.inputs.mean(0)).max() < 0.2


def test_radii_are_swept_by_vmap_and_traced_once():
    logits_fn, images, labels = linear.problem(*linear.CASES[2])
    radii = jnp.array([0.0, 0.005, 0.2])
    traces = []

    @jax.jit
    def at(epsilon):
        traces.append(1)
        return pgd(logits_fn, images, labels, epsilon=epsilon, num_steps=5, loss="margin", random_start=False)

    swept = jax.jit(jax.vmap(at))(radii)
    for row, radius in enumerate(radii):
        single = at(radius)
        np.testing.assert_allclose(swept.inputs[row], single.inputs, atol=1e-5)
        np.testing.assert_array_equal(swept.success[row], single.success)
    assert len(traces) == 1


def test_default_step_size_makes_the_path_two_and_a_half_radii_long():
    # The slope of the loss is constant: the iterate marches on until the ball ends.
    rising = jax.tree_util.Partial(lambda x: jnp.stack([-x.sum((1, 2, 3)), jnp.zeros(x.shape[0])], axis=1))
    images, labels = jnp.zeros((1, 1, 1, 1)), jnp.zeros(1, jnp.int32)

    def reach(num_steps, step_size):
        settings = {"step_size": step_size, "num_steps": num_steps, "random_start": False, "loss": "logit"}
        return float(compiled(rising, images, labels, epsilon=0.4, **settings).inputs[0, 0, 0, 0])

    assert reach(4, 0.05) == pytest.approx(0.2)
    assert reach(4, None) == pytest.approx(0.4)
    # Zero is zero.
    assert reach(4, 0.0) == 0
    assert reach(1, 0.05) == pytest.approx(0.05)


def test_best_iterate_is_kept_and_success_comes_before_loss():
    def peak(images):
        value = images[:, 0, 0, 0]
        return jnp.stack([(value - 0.55) ** 2, value - value - 1], axis=1)

    def stripe(images):
        value = images[:, 0, 0, 0]
        return jnp.stack([-value, jnp.where((value > 0.55) & (value < 0.65), 1.0, -9.0)], axis=1)

    images, labels = jnp.full((1, 1, 1, 1), 0.5), jnp.zeros(1, jnp.int32)
    settings = {"epsilon": 0.4, "loss": "logit", "random_start": False}
    # One step too long: the image itself has the higher loss.
    missed = pgd(peak, images, labels, step_size=0.3, num_steps=1, **settings)
    np.testing.assert_array_equal(missed.inputs, images)
    # The loss rises on, but only the first step is a success.
    passed = pgd(stripe, images, labels, step_size=0.1, num_steps=3, **settings)
    np.testing.assert_allclose(passed.inputs[0, 0, 0, 0], 0.6, atol=1e-6)
    np.testing.assert_array_equal(passed.success, True)


def test_momentum_adds_gradients_of_unit_l1_norm():
    def logits_fn(images):
        x, y = images[:, 0, 0, 0], images[:, 0, 1, 0]
        return jnp.stack([(x - 0.55) ** 2 + 0.2 * y, jnp.zeros_like(x)], axis=1)

    def path(momentum):
        """The Linf steps by plain arithmetic; the last is the best."""
        point, velocity = np.array([0.5, 0.5]), np.zeros(2)
        for _ in range(3):
            slope = -np.array([2 * (point[0] - 0.55), 0.2])
            velocity = momentum * velocity + slope / np.abs(slope).sum()
            point = point + 0.04 * np.sign(velocity)
        return point

    images, labels = jnp.full((1, 1, 2, 1), 0.5), jnp.zeros(1, jnp.int32)
    settings = {"epsilon": 0.5, "step_size": 0.04, "num_steps": 3, "loss": "logit"}
    assert (path(0.0) != path(0.8)).any()
    plain = bim(logits_fn, images, labels, **settings)
    np.testing.assert_allclose(plain.inputs.reshape(2), path(0.0), atol=1e-6)
    carried = mim(logits_fn, images, labels, momentum=0.8, **settings)
    np.testing.assert_allclose(carried.inputs.reshape(2), path(0.8), atol=1e-6)


def test_bim_is_pgd_from_the_input():
    logits_fn, images, labels = linear.problem(*linear.CASES[1])
    settings = {"targets": (labels + 1) % 3, "epsilon": 0.1, "step_size": 0.03, "norm": "l2", "loss": "margin"}
    wanted = compiled(logits_fn, images, labels, num_steps=10, random_start=False, **settings).inputs
    np.testing.assert_allclose(bim(logits_fn, images, labels, **settings).inputs, wanted, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_zero_gradients_move_nothing(batch, norm):
    images, _, _ = batch
    labels = jnp.zeros(len(images), jnp.int32)
    for momentum in (0.0, 1.0):
        result = compiled(constant, images, labels, norm=norm, random_start=False, momentum=momentum)
        np.testing.assert_array_equal(result.inputs, images)
        assert not result.success.any()


@pytest.mark.parametrize("norm", NORMS)
def test_tiny_and_huge_gradients_have_a_direction(norm):
    logits_fn, images, labels = linear.problem(*linear.CASES[3])
    scaled = jax.tree_util.Partial(lambda f, scale, x: f(x) * scale, logits_fn)

    def at(scale):
        classifier = jax.tree_util.Partial(scaled, jnp.float32(scale))
        return compiled(classifier, images, labels, norm=norm, loss="margin", num_steps=5, random_start=False)

    plain = at(1.0)
    assert (plain.inputs != images).any()
    for scale in (1e-30, 1e30):
        np.testing.assert_allclose(at(scale).inputs, plain.inputs, atol=1e-5)
    # Logits that are not finite are no success, and leave no NaN in the images.
    broken = at(np.nan)
    assert not broken.success.any()
    np.testing.assert_array_equal(broken.inputs, images)


@pytest.mark.parametrize("norm", NORMS)
def test_bounds_by_channel_hold(norm):
    logits_fn, _, _ = linear.problem(*linear.CASES[1])
    low, high = jnp.array([-2.0, 0.0, -1.0]), jnp.array([2.0, 1.0, 3.0])
    images = jax.random.uniform(jax.random.key(0), (5, 2, 3, 3), minval=low[None, None, None], maxval=high)
    labels = jnp.argmax(logits_fn(images), axis=1).astype(jnp.int32)
    attack = jax.jit(functools.partial(pgd, epsilon=5.0, num_steps=5, norm=norm, bounds=(low, high)))
    moved = attack(logits_fn, images, labels, key=jax.random.key(1)).inputs
    assert bool(jnp.all((moved >= low[None, None, None]) & (moved <= high[None, None, None])))
    assert (moved != images).any()


def test_l1_step_passes_over_values_that_the_box_holds():
    weights = jnp.array([[0.0, 5.0], [0.0, 3.0], [0.0, 1.0]])
    logits_fn = lambda x: x.reshape(-1, 3) @ weights + jnp.array([[8.0, 0.0]])
    images, labels = jnp.array([1.0, 0.5, 0.5]).reshape(1, 1, 3, 1), jnp.zeros(1, jnp.int32)
    moved = pgd(logits_fn, images, labels, norm="l1", epsilon=0.25, random_start=False).inputs
    np.testing.assert_allclose(moved.reshape(3), [1.0, 0.75, 0.5], atol=1e-6)


@pytest.mark.parametrize("epsilon", [-0.1, float("nan"), float("inf")])
def test_bad_radius_is_refused(network, batch, epsilon):
    images, labels, _ = batch
    with pytest.raises(ValueError, match=f"epsilon must be a finite number at least 0, got {epsilon}"):
        pgd(network, images, labels, key=jax.random.key(0), epsilon=epsilon)
    # A compiled attack cannot refuse; it moves nothing rather than let NaN out.
    np.testing.assert_array_equal(attack(network, batch, "linf", epsilon).inputs, images)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm": "l0"}, "unknown norm 'l0'; known: linf, l2, l1"),
        ({"loss": "hinge"}, "unknown loss 'hinge'; known: cross_entropy, margin, dlr, logit"),
        ({"num_steps": 0}, "num_steps must be a whole number of at least 1, got 0"),
        ({"num_restarts": 0}, "num_restarts must be a whole number of at least 1, got 0"),
        ({"step_size": -1.0}, "step_size must be a finite number at least 0, got -1.0"),
        ({"momentum": float("nan")}, "momentum must be a finite number at least 0, got nan"),
        ({"num_restarts": 2, "random_start": False}, "2 restarts without a random start would all be the same"),
    ],
)
def test_bad_settings_are_refused(network, batch, settings, message):
    with pytest.raises(ValueError, match=message):
        pgd(network, *batch[:2], **({"key": jax.random.key(0)} | settings))


def test_random_start_without_key_is_refused(network, batch):
    with pytest.raises(TypeError, match="pgd with a random start needs a key as jax.random.key makes it, got none"):
        pgd(network, *batch[:2])


@pytest.mark.parametrize("attack", [bim, mim])
def test_relatives_of_pgd_name_themselves_in_errors(attack):
    logits_fn, images, labels = linear.problem(*linear.CASES[1])
    with pytest.raises(ValueError, match=f"^{attack.__name__} needs epsilon"):
        attack(logits_fn, images, labels, bounds=(-np.inf, np.inf))
    with pytest.raises(ValueError, match=f"^{attack.__name__} needs one key or 3"):
        attack(logits_fn, images, labels, key=jax.random.split(jax.random.key(0), 5))


@pytest.mark.parametrize("norm", NORMS)
def test_radius_of_zero_moves_nothing_beside_other_radii(norm):
    # The library's own projections take a radius of 0, with and without a change.
    logits_fn, images, labels = linear.problem(*linear.CASES[2])
    radii = jnp.asarray([0.0, 0.1] * 4, jnp.float32)
    for random_start in (False, True):
        result = compiled(
            logits_fn,
            images,
            labels,
            key=jax.random.key(0),
            epsilon=radii,
            num_steps=3,
            norm=norm,
            step_size=0.05,
            random_start=random_start,
        )
        change = np.asarray(result.inputs) - np.asarray(images)
        assert np.isfinite(change).all()
        np.testing.assert_array_equal(change[::2], 0.0)
        assert (linear.size(change[1::2], norm) > 0.01).all()
        assert (linear.size(change[1::2], norm) <= 0.1001).all()
