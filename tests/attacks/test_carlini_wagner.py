import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from ddjax.attacks.carlini_wagner import carlini_wagner_l0, carlini_wagner_l2, carlini_wagner_linf
from tests.attacks import linear

compiled_l2 = jax.jit(carlini_wagner_l2, static_argnames=("search_steps", "num_steps", "abort_early"))
compiled_l0 = jax.jit(carlini_wagner_l0, static_argnames=("by", "num_steps", "abort_early"))
compiled_linf = jax.jit(carlini_wagner_linf, static_argnames=("num_steps", "abort_early"))
CASES = [((3, 4, 1), 2, 1), ((4, 4, 1), 10, 8)]
# Few steps, for what is true however good the result is.
quick_l2 = functools.partial(compiled_l2, learning_rate=0.05, initial_const=0.1, search_steps=5, num_steps=100)
quick_l0 = functools.partial(compiled_l0, learning_rate=0.05, initial_const=0.1, const_factor=4.0, num_steps=60)
quick_linf = functools.partial(compiled_linf, learning_rate=0.02, initial_const=0.1, const_factor=4.0, num_steps=100)
QUICK = {"l2": quick_l2, "l0": quick_l0, "linf": quick_linf}
every_attack = pytest.mark.parametrize("norm", QUICK)


def distance(result, images, norm):
    change = np.asarray(result.inputs, np.float64) - np.asarray(images, np.float64)
    return (change != 0).any(axis=3).sum((1, 2)) if norm == "l0" else linear.size(change, norm)


def margins(logits_fn, images, classes):
    logits = np.asarray(linear.evaluate(logits_fn, images), np.float64)
    own = np.take_along_axis(logits, np.asarray(classes)[:, None], axis=1)[:, 0]
    return own - np.where(np.arange(logits.shape[1])[None] == np.asarray(classes)[:, None], -np.inf, logits).max(1)


def towards(logits_fn, images, target, norm):
    """The least distance at which a linear classifier decides for a target: no other class may be above it."""
    parameters = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), logits_fn.args[0])
    logits = np.asarray(logits_fn(images), np.float64)
    found = []
    for point, scores in zip(np.asarray(images, np.float64).reshape(len(images), -1), logits, strict=True):
        others = np.delete(np.arange(len(scores)), target)
        slopes = parameters["weights"][:, others] - parameters["weights"][:, [target]]
        missing = scores[others] - scores[target]
        if norm == "l2":
            # The least |r| with slopes' r <= -missing, from its dual: r = -slopes y / 2 with y >= 0.
            dual = lambda y, slopes=slopes, missing=missing: (slopes @ y) @ (slopes @ y) / 4 - missing @ y
            slope = lambda y, slopes=slopes, missing=missing: slopes.T @ (slopes @ y) / 2 - missing
            ends = [(0, None)] * len(others)
            best = optimize.minimize(dual, np.zeros(len(others)), jac=slope, bounds=ends, options={"ftol": 1e-15})
            found.append(np.sqrt(-best.fun))
            assert (point - slopes @ best.x / 2 > 0).all()
        else:
            # The least e with |r_i| <= e and slopes' r <= -missing, in the box.
            size = len(point)
            bound = -np.ones((size, 1))
            table = np.block([[np.eye(size), bound], [-np.eye(size), bound], [slopes.T, np.zeros((len(others), 1))]])
            limits = np.concatenate([np.zeros(2 * size), -missing])
            ends = [*zip(-point, 1 - point, strict=True), (0, None)]
            found.append(optimize.linprog(np.append(np.zeros(size), 1.0), table, limits, bounds=ends).fun)
    return np.array(found)


@pytest.mark.parametrize("case", CASES)
class TestClosedForms:
    def test_l2(self, far_linear, case):
        logits_fn, images, labels, distances = far_linear(*case, order=2)
        attack = functools.partial(compiled_l2, logits_fn, images, labels, num_steps=300)
        result = attack()
        assert result.success.all()
        found = distance(result, images, "l2")
        assert (found >= 0.999 * distances.min(1)).all()
        # Of ten classes it descends to one with a large logit, which sometimes is not the nearest.
        reached = distances[np.arange(len(labels)), np.argmax(logits_fn(result.inputs), axis=1)]
        assert (found <= 1.03 * (distances.min(1) if case[1] < 10 else reached)).all()
        assert np.median(found / distances.min(1)) <= 1.03

        target = case[1] - 1
        result = attack(targets=jnp.full_like(labels, target))
        wanted = towards(logits_fn, images, target, "l2")
        assert result.success.all()
        found = distance(result, images, "l2")
        assert (found >= 0.999 * wanted).all()
        assert (found <= 1.03 * wanted).all()

    def test_linf(self, far_linear, case):
        logits_fn, images, labels, distances = far_linear(*case, order=np.inf)
        attack = functools.partial(compiled_linf, logits_fn, images, labels, num_steps=300, decrease_factor=0.98)
        result = attack()
        assert result.success.all()
        found = distance(result, images, "linf")
        assert (found >= 0.999 * distances.min(1)).all()
        # Of ten classes it descends to one with a large logit, which sometimes is not the nearest.
        reached = distances[np.arange(len(labels)), np.argmax(logits_fn(result.inputs), axis=1)]
        assert (found <= 1.05 * (distances.min(1) if case[1] < 10 else reached)).all()
        assert np.median(found / distances.min(1)) <= 1.05

        target = case[1] - 1
        result = attack(targets=jnp.full_like(labels, target))
        wanted = towards(logits_fn, images, target, "linf")
        assert result.success.all()
        found = distance(result, images, "linf")
        assert (found >= 0.999 * wanted).all()
        assert (found <= 1.05 * wanted).all()


@pytest.mark.parametrize("by", ["pixel", "value"])
def test_l0_on_two_classes_is_close_to_the_greedy_optimum(by):
    rng = np.random.default_rng(3)
    shape, batch = (4, 4, 3), 6
    weights = rng.normal(size=(48, 2))
    slope = weights[:, 0] - weights[:, 1]
    images = rng.uniform(0, 1, (batch, *shape))
    # What each value can take from the margin, the other way than its slope, up to the end of the box.
    room = np.where(slope > 0, images.reshape(batch, -1), 1 - images.reshape(batch, -1))
    gain = (np.abs(slope) * room).reshape(batch, 16, 3)
    gain = gain.sum(2) if by == "pixel" else gain.reshape(batch, -1)
    ordered = np.cumsum(np.sort(gain, axis=1)[:, ::-1], axis=1)
    # The margin is half of what all together can take.
    margin = 0.5 * ordered[:, -1]
    least = (ordered <= margin[:, None]).sum(1) + 1
    offset = images.reshape(batch, -1) @ slope - margin
    parameters = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), (weights, offset))

    def logits(parameters, x):
        weights, offset = parameters
        # Each image has an offset of its own, so that its margin is the one wanted.
        scores = x.reshape(x.shape[0], -1) @ weights
        return scores - jnp.stack([offset, jnp.zeros_like(offset)], axis=1)

    images = jnp.asarray(images, jnp.float32)
    labels = jnp.zeros(batch, jnp.int32)
    settings = {"learning_rate": 0.05, "num_steps": 200, "by": by}
    result = compiled_l0(jax.tree_util.Partial(logits, parameters), images, labels, **settings)
    assert result.success.all()
    changed = np.asarray(result.inputs != images).reshape(batch, 16, 3)
    count = changed.any(2).sum(1) if by == "pixel" else changed.sum((1, 2))
    assert (count >= least).all()
    assert (count <= 1.25 * least + 1).all()


@pytest.fixture(scope="module")
def small(network, batch):
    """Some of the images of the small network; the last labels are wrong already."""
    images, labels, targets = jax.tree.map(lambda leaf: leaf[:8], batch)
    return network, images, labels, targets


@every_attack
def test_confidence_is_the_margin_and_costs_distance(small, norm):
    logits_fn, images, labels, targets = small
    attack = functools.partial(QUICK[norm], logits_fn, images, labels, targets=targets)
    before = None
    for confidence in (0.02, 0.06, 0.1):
        result = attack(confidence=jnp.full(8, confidence))
        found = np.asarray(result.success)
        assert found.mean() > 0.5
        assert (margins(logits_fn, result.inputs, targets)[found] >= confidence - 1e-6).all()
        size = distance(result, images, norm)
        if before is not None:
            both = found & before[0]
            # The counts of pixels are coarse, and the search for them greedy.
            assert np.median(size[both]) > np.median(before[1][both]) - (1 if norm == "l0" else 0)
        before = found, size


@every_attack
def test_confidence_may_differ_between_examples_and_be_swept(small, norm):
    logits_fn, images, labels, targets = small
    attack = lambda confidence: QUICK[norm](logits_fn, images, labels, targets=targets, confidence=confidence)
    low, high = attack(jnp.full(8, 0.02)), attack(jnp.full(8, 0.06))
    is_high = np.arange(8) % 2 == 1
    mixed = attack(jnp.where(is_high, 0.06, 0.02))
    for got, one, other in zip(*map(jax.tree.leaves, (mixed, low, high)), strict=True):
        choose = is_high.reshape(-1, *(1,) * (one.ndim - 1))
        np.testing.assert_array_equal(got, np.where(choose, other, one))
    swept = jax.vmap(attack)(jnp.array([0.02, 0.06]))
    for row, alone in enumerate((low, high)):
        np.testing.assert_array_equal(swept.success[row], alone.success)
        assert alone.success.any()
        of_row = jax.tree.map(lambda leaf, row=row: leaf[row], swept)
        one, two = (np.median(distance(result, images, norm)[alone.success]) for result in (of_row, alone))
        np.testing.assert_allclose(one, two, rtol=0.01)


def test_l2_is_not_worse_with_more_searches(small):
    logits_fn, images, labels, _ = small
    sizes = []
    for count in (2, 4, 6):
        result = compiled_l2(
            logits_fn, images, labels, learning_rate=0.05, initial_const=1.0, search_steps=count, num_steps=60
        )
        sizes.append(np.where(result.success, distance(result, images, "l2"), np.inf))
        assert (np.diff(sizes, axis=0) <= 0).all()
    assert np.isfinite(sizes[-1]).all()
    assert (sizes[-1] < sizes[0]).any()


@every_attack
def test_unreachable_targets_fail_and_misclassified_inputs_stay(network, batch, small, norm):
    # Thirty-two, as in the next test: one program for both. The target is never above the label.
    walled = jax.tree_util.Partial(_walled, network)
    images = jnp.concatenate([batch[0], batch[0][:8]])
    at_wall = jnp.argmax(linear.evaluate(walled, images), axis=1).astype(jnp.int32)
    result = QUICK[norm](walled, images, at_wall, targets=jnp.full(32, 3, jnp.int32), confidence=0.0)
    assert (at_wall != 3).all()
    assert not result.success.any()
    np.testing.assert_array_equal(result.inputs, images)
    logits_fn, images, labels, _ = small
    wrong = (labels + 1) % 4
    result = QUICK[norm](logits_fn, images, wrong, confidence=0.0)
    assert result.success.all()
    np.testing.assert_array_equal(result.inputs, images)
    assert (result.steps <= 1).all()


def _walled(logits_fn, images):
    logits = logits_fn(images)
    return jnp.concatenate([logits[:, :3], jnp.min(logits[:, :3], axis=1, keepdims=True) - 1], axis=1)


@every_attack
def test_easy_hard_and_failing_examples_of_a_batch_do_not_wait_for_each_other(network, batch, norm):
    # A hundred and sixty, so that those that are done leave the others to a smaller batch.
    images = np.tile(batch[0], (7, 1, 1, 1))[:160]
    walled = jax.tree_util.Partial(_walled, network)
    labels = np.asarray(linear.evaluate(walled, images)).argmax(1).astype(np.int32)
    kind = np.arange(160) % 5
    # Three of five towards another class, one that is wrong already, and one towards what cannot be reached.
    targets = np.where(kind == 4, np.int32(3), (labels + 1) % 3)
    is_done = kind == 3
    targets, labels = np.where(is_done, labels, targets), np.where(is_done, np.int32(3), labels)
    attack = lambda *given, targets: jax.tree.map(
        np.asarray, QUICK[norm](walled, *given, targets=targets, confidence=0.0)
    )
    together = attack(images, labels, targets=targets)
    apart = [attack(images[kind == k], labels[kind == k], targets=targets[kind == k]) for k in range(5)]
    assert together.success[is_done].all()
    assert not together.success[kind == 4].any()
    assert (together.steps[is_done] <= 1).all()
    for k, alone in enumerate(apart):
        rows = jax.tree.map(lambda leaf, k=k: leaf[kind == k], together)
        np.testing.assert_array_equal(rows.success, alone.success)
        one, two = (np.median(distance(result, images[kind == k], norm)) for result in (rows, alone))
        np.testing.assert_allclose(one, two, rtol=0.01, atol=1e-6)


def test_l0_leaves_the_other_values_as_they_were_to_the_bit(small):
    logits_fn, images, labels, targets = small
    # Values between levels too, and ends, where tanh is steepest or flat.
    for by in ("pixel", "value"):
        result = quick_l0(logits_fn, images, labels, targets=targets, by=by)
        assert result.success.all()
        change = np.abs(np.asarray(result.inputs) - np.asarray(images))
        assert ((change == 0) | (change >= 1e-4)).all()
        count = (change > 0).any(3).sum((1, 2))
        assert (count >= 1).all()
        # Far fewer than the 36.
        assert np.median(count) < 12


def test_l0_by_pixel_changes_whole_pixels_and_by_value_fewer_values():
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.uniform(0.2, 0.8, (6, 3, 3, 3)), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(27, 3)), jnp.float32)
    logits_fn = jax.tree_util.Partial(lambda weights, x: (x - 0.5).reshape(x.shape[0], -1) @ weights, weights)
    labels = jnp.argmax(logits_fn(images), axis=1).astype(jnp.int32)
    counts = {}
    for by in ("pixel", "value"):
        result = quick_l0(logits_fn, images, labels, by=by)
        assert result.success.all()
        changed = np.asarray(result.inputs) != images
        counts[by] = changed.any(3).sum((1, 2)), changed.sum((1, 2, 3))
    assert counts["pixel"][0].mean() <= counts["value"][0].mean()
    assert counts["value"][1].mean() <= counts["pixel"][1].mean()


def test_linf_is_closer_the_slower_tau_shrinks(small):
    logits_fn, images, labels, _ = small
    coarse, fine = (quick_linf(logits_fn, images, labels, decrease_factor=factor) for factor in (0.5, 0.95))
    assert coarse.success.all()
    assert fine.success.all()
    assert np.median(distance(fine, images, "linf")) < np.median(distance(coarse, images, "linf"))


@pytest.mark.parametrize(
    ("norm", "settings", "message"),
    [
        *[
            (norm, {name: value}, f"{name} must be a finite number")
            for norm, names in {
                "l2": ("learning_rate", "initial_const"),
                "l0": ("learning_rate", "initial_const", "largest_const"),
                "linf": ("learning_rate", "initial_const", "largest_const"),
            }.items()
            for name in names
            for value in (0.0, float("nan"))
        ],
        ("l2", {"search_steps": 0}, "search_steps must be a whole number of at least 1, got 0"),
        *[(norm, {"num_steps": 0}, "num_steps must be a whole number of at least 1, got 0") for norm in QUICK],
        *[(norm, {"confidence": -1.0}, "confidence must be a finite number at least 0, got -1.0") for norm in QUICK],
        *[(norm, {"bounds": (0.0, float("inf"))}, "needs learning_rate: its default is a share of") for norm in QUICK],
        *[(norm, {"const_factor": 1.0}, "const_factor must be a finite number above 1") for norm in ("l0", "linf")],
        ("linf", {"decrease_factor": 1.0}, "decrease_factor must be a finite number above 0 and below 1"),
        ("linf", {"decrease_factor": 0.0}, "decrease_factor must be a finite number above 0"),
        ("l0", {"by": "channel"}, "unknown by 'channel'; known: pixel, value"),
    ],
)
def test_bad_settings_are_refused(small, norm, settings, message):
    attack = {"l2": carlini_wagner_l2, "l0": carlini_wagner_l0, "linf": carlini_wagner_linf}[norm]
    with pytest.raises(ValueError, match=message):
        attack(*small[:3], **settings)
