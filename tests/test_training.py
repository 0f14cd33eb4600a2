import contextlib
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import config
from scipy import special

from ddjax import data, layers, losses, training
from ddjax.models import ConvNet

pytestmark = pytest.mark.usefixtures("optax_promotion")
MODULE = ConvNet(num_classes=3, stages=((4,),), dense=(8,), dropout=(0.5,))
ADAM = optax.adam(1e-2)
RNG = np.random.default_rng(0)
IMAGES = jax.device_put(RNG.integers(0, 256, (50, 6, 6, 1)).astype(np.uint8))
TARGETS = jax.device_put(np.eye(3, dtype=np.float32)[RNG.integers(0, 3, 50)])
# The same on the host, where taking a part or another unit compiles nothing.
FLOATS = np.asarray(IMAGES, np.float32) / 255
HOST_TARGETS = np.asarray(TARGETS)
# Compiled, because that takes less time than operation by operation; tests of equal shapes share a program.
EPOCH = jax.jit(functools.partial(training.train_epoch, batch_size=16))
train_step = jax.jit(training.train_step, static_argnames=("augment", "adversary"))
soft_labels = jax.jit(training.soft_labels, static_argnames="batch_size")


@contextlib.contextmanager
def jaxtyping_disabled():
    """Lets a wrong type reach the library's own checks."""
    config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        config.update("jaxtyping_disable", False)


def fresh(seed=0):
    return training.create_state(MODULE, ADAM, (6, 6, 1), jax.random.key(seed))


def assert_equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)


def assert_close(one, other, **tolerance):
    jax.tree.map(functools.partial(np.testing.assert_allclose, **tolerance), one, other)


# In one piece, and in two parts, as a CPU does with larger images.
@pytest.mark.parametrize("pixels", [2**15, 25 * 36])
def test_step_is_the_gradient_of_the_tempered_cross_entropy(monkeypatch, pixels):
    monkeypatch.setattr(layers, "_CACHED_PIXELS", pixels)
    module = ConvNet(num_classes=3, stages=((4,),), dense=(8,), dropout=(0.0,))
    state = training.create_state(module, optax.sgd(0.1), (6, 6, 1), jax.random.key(0))
    soft = special.softmax(np.random.default_rng(1).normal(size=(50, 3)), axis=1).astype(np.float32)
    # A function of its own: what is traced depends on the size of a part.
    stepped, loss = jax.jit(lambda *given: training.train_step(*given))(state, (IMAGES, soft), 5.0)

    @jax.jit
    @jax.value_and_grad
    def expected_loss(params):
        logits = module.apply({"params": params}, jnp.asarray(FLOATS))
        return -jnp.mean(jnp.sum(soft * jax.nn.log_softmax(logits / 5.0), axis=1))

    value, gradient = expected_loss(state.params)
    np.testing.assert_allclose(loss, value, rtol=1e-5)
    expected = jax.tree.map(lambda p, g: np.asarray(p) - 0.1 * np.asarray(g), state.params, gradient)
    assert_close(stepped.params, expected, atol=1e-6)


NORMALIZED = ConvNet(num_classes=3, stages=((4,),), dense=(8,), dropout=(0.0,), batch_norm=True)


def test_a_step_carries_the_statistics_of_the_whole_batch(monkeypatch):
    # So small that a batch would go in parts.
    monkeypatch.setattr(layers, "_CACHED_PIXELS", 8 * 36)
    assert layers.images_at_once(48, (6, 6, 1)) == 8
    state = training.create_state(NORMALIZED, optax.sgd(0.1), (6, 6, 1), jax.random.key(0))
    images, targets = FLOATS[:48], HOST_TARGETS[:48]
    batch = (np.asarray(IMAGES)[:48], targets)
    # A function of its own: what is traced depends on the size of a part.
    stepped, loss = jax.jit(lambda *given: training.train_step(*given))(state, batch, 5.0)
    train = functools.partial(NORMALIZED.apply, train=True, mutable=["batch_stats"])
    logits, changed = jax.jit(train)(state.variables, images, rngs={"dropout": jax.random.key(0)})
    expected = -np.mean(np.sum(targets * special.log_softmax(np.asarray(logits) / 5.0, axis=1), axis=1))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert_close(stepped.statistics["batch_stats"], changed["batch_stats"], rtol=1e-5)
    # The classifier of the state uses them.
    classify = jax.jit(lambda logits_fn, images: logits_fn(images))
    found = np.asarray(classify(stepped.logits_fn, images))
    np.testing.assert_array_equal(found, jax.jit(NORMALIZED.apply)(stepped.variables, images))
    before = classify(stepped.replace(statistics=state.statistics).logits_fn, images)
    assert np.abs(np.subtract(found, before)).max() > 0


def test_images_are_varied_by_keys_of_their_own_that_change_with_the_step():
    seen = []

    def augment(images, keys):
        jax.debug.callback(lambda data: seen.append(np.asarray(data)), jax.random.key_data(keys))
        return images * 0.5

    state = fresh()
    varied, loss = train_step(state, (IMAGES, TARGETS), 1.0, augment=augment)

    # Varied inside of the program, or else it would round otherwise.
    @jax.jit
    def step_on_halves(state, images):
        return training.train_step(state, (data.to_float(images) * 0.5, TARGETS), 1.0)

    halved, expected = step_on_halves(state, IMAGES)
    np.testing.assert_array_equal(loss, expected)
    assert_equal(varied, halved)
    train_step(varied, (IMAGES, TARGETS), 1.0, augment=augment)
    jax.effects_barrier()
    assert len(np.unique(np.concatenate(seen), axis=0)) == 100


def test_steps_on_given_images_are_the_epoch():
    state, temperature = fresh(), jnp.float32(5)
    expected, loss = EPOCH(state, IMAGES, TARGETS, temperature)
    step = jax.jit(training.step_member)
    losses, images = [], np.asarray(IMAGES)
    for rows in np.asarray(jax.jit(training.epoch_rows, static_argnums=(1, 2))(state, 50, 16)):
        state, one = step(training.Member(state, TARGETS, temperature, jnp.bool_(True)), images[rows], rows)
        losses.append(one)
    np.testing.assert_allclose(np.mean(losses), loss, rtol=1e-5)
    assert_close(state.params, expected.params, atol=1e-6)
    member = training.Member(state, TARGETS, temperature, jnp.bool_(False))
    resting, nothing = step(member, images[:16], np.arange(16, dtype=np.int32))
    assert_equal(resting, state)
    assert np.isnan(nothing)


def test_one_program_for_all_temperatures_and_both_kinds_of_labels():
    traces = []

    @jax.jit
    def epoch(state, images, targets, temperature):
        traces.append(1)
        return training.train_epoch(state, images, targets, temperature, batch_size=16)

    for temperature in (1.0, 5.0, 100.0):
        teacher, _ = epoch(fresh(), IMAGES, TARGETS, jnp.float32(temperature))
        soft = soft_labels(teacher.logits_fn, IMAGES, jnp.float32(temperature))
        epoch(fresh(1), IMAGES, soft, jnp.float32(temperature))
    assert len(traces) == 1


DRAWN = []


class Watching(nn.Module):
    """Tells which examples each step sees."""

    @nn.compact
    def __call__(self, inputs):
        jax.debug.callback(lambda x: DRAWN.append(np.asarray(x)), inputs[:, 0, 0, 0])
        return inputs.reshape(inputs.shape[0], -1)[:, :3] * self.param("scale", nn.initializers.ones, ())


def test_each_epoch_has_its_own_order_of_different_examples():
    state = training.create_state(Watching(), optax.sgd(0.0), (1, 3, 1), jax.random.key(0))
    images = np.broadcast_to(np.arange(48, dtype=np.float32)[:, None, None, None], (48, 1, 3, 1)) / 48
    jax.effects_barrier()
    DRAWN.clear()
    for _ in range(2):
        state, _ = EPOCH(state, images, HOST_TARGETS[:48], jnp.float32(1))
    jax.effects_barrier()
    orders = np.round(np.concatenate(DRAWN) * 48).astype(int).reshape(2, 48)
    np.testing.assert_array_equal(np.sort(orders), np.tile(np.arange(48), (2, 1)))
    assert not np.array_equal(orders[0], orders[1])


def test_soft_labels_are_tempered_softmax_of_logits_without_dropout():
    state = fresh()
    logits = np.asarray(jax.jit(MODULE.apply)({"params": state.params}, FLOATS))
    labels = soft_labels(state.logits_fn, IMAGES, 7.0, batch_size=16)
    np.testing.assert_allclose(labels, special.softmax(logits / 7.0, axis=1), atol=1e-6)
    # A softmax of a softmax would be pinned to 1/3 up to its third: the classic mistake.
    large = lambda x: MODULE.apply({"params": state.params}, x) * 300
    sharp = jax.jit(lambda images: training.soft_labels(large, images, 7.0))(IMAGES)
    assert np.asarray(sharp).max() > 0.9


def test_distillation_trains_the_student_on_the_teachers_labels():
    key, settings = jax.random.key(0), {"temperature": 30.0, "epochs": 2, "batch_size": 16}
    teacher, student = training.distill(MODULE, ADAM, IMAGES, HOST_TARGETS.argmax(1), key=key, **settings)
    plain = training.train(MODULE, ADAM, IMAGES, TARGETS, key=jax.random.fold_in(key, 0), **settings)
    assert_equal(teacher, plain)
    labels = soft_labels(teacher.logits_fn, IMAGES, 30.0)
    expected = training.train(MODULE, ADAM, IMAGES, labels, key=jax.random.fold_in(key, 1), **settings)
    # The labels are those of another program, which rounds differently.
    assert_close(student.params, expected.params, atol=1e-6)


def test_distillation_at_a_high_temperature_learns_and_grows_the_logits():
    digits = data.load("digits", "train", num_examples=400)
    module = ConvNet(num_classes=10, stages=((8,),), dense=(32,), dropout=(0.0,))
    classify = jax.jit(lambda logits_fn, images: logits_fn(data.to_float(images)))
    sizes, accuracies = {}, {}
    for temperature in (1.0, 50.0):
        settings = {"temperature": temperature, "epochs": 25, "batch_size": 50, "key": jax.random.key(7)}
        _, student = training.distill(module, ADAM, digits.images, digits.labels, **settings)
        logits = np.asarray(classify(student.logits_fn, digits.images))
        sizes[temperature] = float(np.abs(logits).mean())
        accuracies[temperature] = float((logits.argmax(1) == digits.labels).mean())
    assert min(accuracies.values()) >= 0.94
    assert sizes[50.0] > 10 * sizes[1.0]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"temperature": 0.0}, ValueError, "temperature must be a finite number above 0"),
        ({"temperature": -3.0}, ValueError, "temperature must be a finite number above 0"),
        ({"epochs": 0}, ValueError, "epochs must be a whole number of at least 1"),
        ({"key": 3}, ValueError, "key must be one typed key"),
        ({"network": ConvNet}, ValueError, "the network must be a flax module"),
        ({"labels": np.full(50, 3)}, ValueError, "3"),
        ({"inputs": np.zeros((0, 6, 6, 1), np.float32)}, ValueError, "at least one example"),
        ({"optimizer": optax.sgd(1e30)}, FloatingPointError, "epoch 1"),
    ],
)
def test_bad_arguments_are_refused(change, error, message):
    given = {"network": MODULE, "optimizer": ADAM, "inputs": IMAGES, "labels": HOST_TARGETS.argmax(1), "epochs": 1}
    given |= {"key": jax.random.key(0), "batch_size": 16} | change
    with jaxtyping_disabled(), pytest.raises(error, match=message):
        training.train(**given)


def test_batches_that_cannot_be_drawn_are_refused():
    with pytest.raises(ValueError, match="batches of 51 cannot be drawn from 50 examples"):
        training.train_epoch(fresh(), IMAGES, TARGETS, 1.0, batch_size=51)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_noise_keeps_dtype_and_range_and_has_its_deviation(dtype):
    images = np.full((4, 32, 32, 1), 128, np.uint8) if dtype == np.uint8 else np.full((4, 32, 32, 1), 0.5, np.float32)
    noisy = training.with_noise(images, 0.05, jax.random.key(0))
    assert noisy.dtype == dtype
    change = (noisy.astype(np.float64) - images) / (255 if dtype == np.uint8 else 1)
    assert change.std() == pytest.approx(0.05, rel=0.1)
    np.testing.assert_array_equal(noisy, training.with_noise(images, 0.05, jax.random.key(0)))
    far = training.with_noise(images, 10.0, jax.random.key(0))
    assert far.min() >= 0
    assert far.max() <= (255 if dtype == np.uint8 else 1)
    np.testing.assert_array_equal(training.with_noise(images, 0.0, jax.random.key(0)), images)
    if dtype == np.float32:
        low, high = np.array([-3.0, 0.5], np.float32), np.array([2.0, 0.5], np.float32)
        rows = np.full((100, 2), 0.5, np.float32)
        table = training.with_noise(rows, 10.0, jax.random.key(0), (low, high))
        np.testing.assert_array_equal((table.min(0), table.max(0)), (low, high))
    with pytest.raises(ValueError, match="std must be a finite number at least 0, got -1"):
        training.with_noise(images, -1.0, jax.random.key(0))


class TestAdversary:
    def step(self, adversary):
        state = training.create_state(NORMALIZED, optax.sgd(0.1), (6, 6, 1), jax.random.key(0))
        images, targets = FLOATS[:16], HOST_TARGETS[:16]
        return state, images, train_step(state, (images, targets), 1.0, adversary=adversary)

    def test_trains_on_its_images_alone(self):
        state, images, (stepped, loss) = self.step(lambda logits_fn, images, labels, keys: 1 - images)

        # Varied inside of the program, or else it would round otherwise.
        @jax.jit
        def step_on_negatives(state, images, targets):
            return training.train_step(state, (1 - images, targets), 1.0)

        expected, expected_loss = step_on_negatives(state, images, HOST_TARGETS[:16])
        assert_equal(stepped, expected)
        np.testing.assert_array_equal(loss, expected_loss)

    def test_sees_the_network_in_use_the_labels_and_a_key_for_each_image(self):
        seen = {}

        def adversary(logits_fn, images, labels, keys):
            look = lambda *given: seen.update(zip(("logits", "labels", "keys"), map(np.asarray, given), strict=True))
            jax.debug.callback(look, logits_fn(images), labels, jax.random.key_data(keys))
            return images

        state, images, _ = self.step(adversary)
        jax.effects_barrier()
        in_use = jax.jit(NORMALIZED.apply)(state.variables, images)
        np.testing.assert_allclose(seen["logits"], in_use, rtol=1e-5)
        np.testing.assert_array_equal(seen["labels"], np.argmax(HOST_TARGETS[:16], axis=1))
        assert len(np.unique(seen["keys"], axis=0)) == 16

    def test_adversarial_training_lowers_the_loss_under_attack(self):
        @jax.jit
        def attack(logits_fn, images, labels):
            keys = jax.random.split(jax.random.key(9), 50)
            found = training.pgd_examples(logits_fn, images, labels, keys, epsilon=0.1, num_steps=7)
            return found, jnp.mean(losses.cross_entropy(logits_fn(found), labels))

        def attacked_loss(state):
            found, loss = attack(state.logits_fn, FLOATS, np.argmax(HOST_TARGETS, axis=1).astype(np.int32))
            assert np.abs(np.asarray(found) - FLOATS).max() <= 0.1 + 1e-6
            return float(loss)

        adversary = functools.partial(training.pgd_examples, epsilon=0.1, num_steps=3)
        trained = []
        for given in (None, adversary):
            epoch = jax.jit(functools.partial(training.train_epoch, batch_size=25, adversary=given))
            state = fresh()
            for _ in range(25):
                state, _ = epoch(state, IMAGES, TARGETS, 1.0)
            trained.append(attacked_loss(state))
        assert trained[1] < 0.9 * trained[0]
