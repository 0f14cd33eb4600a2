import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ddjax
from ddjax import attacks, layers, parallel, training
from ddjax.models import ConvNet

MODULE = ConvNet(num_classes=3, stages=((4,),), dense=(8,), dropout=(0.5,))
RNG = np.random.default_rng(0)
IMAGES = RNG.random((10, 6, 6, 1), np.float32)
LABELS = RNG.integers(0, 3, 10).astype(np.int32)
LOGITS_FN = ddjax.bind(MODULE, MODULE.init(jax.random.key(0), jnp.asarray(IMAGES[:1])))


@pytest.mark.parametrize(("total", "batch_size"), [(1, 4), (8, 4), (9, 4), (10, 100)])
@pytest.mark.parametrize("devices", [1, 2])
def test_all_examples_in_order_by_one_program(total, batch_size, devices):
    traces, finished = [], []
    mesh = parallel.make_mesh("data", devices)

    def double(factor, values, more):
        traces.append(values.shape[0])
        return {"scaled": factor * values, "sum": values + more}

    program = jax.jit(parallel.over_examples(double, mesh))
    values = np.arange(total, dtype=np.float32)
    result = parallel.map_batches(
        program, np.float32(3), values, values, batch_size=batch_size, mesh=mesh, progress=finished.append
    )
    np.testing.assert_array_equal(result["scaled"], 3 * values)
    np.testing.assert_array_equal(result["sum"], 2 * values)
    assert len(traces) == 1
    assert traces[0] <= batch_size
    assert sum(finished) == total


@pytest.mark.parametrize(
    ("total", "batch_size", "devices", "expected"),
    [(10, 4, 1, (3, 4)), (9, 4, 1, (3, 3)), (10, 5, 2, (3, 4)), (3, 1, 8, (1, 8)), (16, 8, 8, (2, 8))],
)
def test_batches_are_even_and_hold_all(total, batch_size, devices, expected):
    size = parallel._even_size(total, batch_size, devices)
    assert (-(-total // size), size) == expected
    assert size % devices == 0


@pytest.mark.parametrize("name", ["pgd", "jsma", "ddn", "carlini_wagner_l2"])
def test_an_attack_on_two_devices_is_the_attack_on_one(name):
    settings = {"carlini_wagner_l2": {"search_steps": 2, "num_steps": 10}, "ddn": {"num_steps": 10}}.get(name, {})
    targets = (LABELS + 1) % 3 if name == "jsma" else None

    def attack(logits_fn, images, labels, key_data, *rest):
        keys = jax.random.wrap_key_data(key_data)
        return attacks.ATTACKS[name].function(
            logits_fn, images, labels, key=keys, targets=rest[0] if rest else None, **settings
        )

    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(3)))(jnp.arange(10))
    columns = (IMAGES, LABELS, np.asarray(jax.random.key_data(keys))) + (() if targets is None else (targets,))
    mesh = parallel.make_mesh("data")
    assert mesh.size == 2
    alone = parallel.make_mesh("data", 1)
    one = parallel.map_batches(jax.jit(attack), LOGITS_FN, *columns, batch_size=10, mesh=alone)
    two = parallel.map_batches(
        jax.jit(parallel.over_examples(attack, mesh)), LOGITS_FN, *columns, batch_size=10, mesh=mesh
    )
    # Halves of a batch round differently, and steps that follow signs amplify it; draws and decisions are the same.
    np.testing.assert_array_equal(one.success, two.success)
    np.testing.assert_allclose(one.inputs, two.inputs, atol=2e-3)


def test_a_device_goes_through_its_share_in_parts(monkeypatch):
    sizes = []

    def first_pixel(factor, images, labels):
        sizes.append(len(images))
        return factor * images[:, 0, 0, 0], labels

    images = np.arange(24 * 64, dtype=np.float32).reshape(24, 8, 8, 1)
    # Eight images, which is the least, to a part.
    monkeypatch.setattr(layers, "_CACHED_PIXELS", 64)
    mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
    pixels, labels = jax.jit(parallel.over_examples(first_pixel, mesh))(np.float32(2), images, np.arange(24))
    # The form of a CPU, in parts, and that of other platforms.
    assert sorted(set(sizes)) == [8, 24]
    np.testing.assert_array_equal(pixels, 128 * np.arange(24))
    np.testing.assert_array_equal(labels, np.arange(24))
    sizes.clear()
    jax.jit(parallel.over_examples(first_pixel, mesh, in_parts=False))(np.float32(2), images, np.arange(24))
    assert sizes == [24]


@pytest.fixture(scope="module")
def alone():
    """Images, networks to be trained on them, and each with its loss after an epoch alone."""
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.integers(0, 256, (20, 6, 6, 1)), jnp.uint8)
    labels = np.eye(3, dtype=np.float32)[rng.integers(0, 3, 20)]
    with jax.numpy_dtype_promotion("standard"):
        create = jax.jit(lambda key: training.create_state(MODULE, optax.adam(1e-2), (6, 6, 1), key))
        states = [create(jax.random.key(seed)) for seed in range(3)]
        train = jax.jit(functools.partial(training.train_epoch, batch_size=8))
        temperatures = [np.float32(t) for t in (1, 10, 100)]
        # The second is not live: it stays as it was.
        members = [training.Member(s, labels, t, np.bool_(t != 10)) for s, t in zip(states, temperatures, strict=True)]
        trained = [
            train(m.state, images, jnp.asarray(labels), jnp.asarray(m.temperature)) if m.live else (m.state, np.nan)
            for m in members
        ]
    return images, members, trained


@pytest.mark.usefixtures("optax_promotion")
@pytest.mark.parametrize("stacking", ["map", "unroll", "vmap"])
@pytest.mark.parametrize("devices", [1, 2])
def test_a_stack_of_networks_trains_as_each_alone_by_one_trace(alone, stacking, devices):
    images, members, expected = alone
    traces = []

    def train(images, member):
        traces.append(1)
        return training.train_member(images, member, batch_size=8)

    mesh = parallel.make_mesh("sweep") if devices == 2 else jax.make_mesh((1,), ("sweep",), devices=jax.devices()[:1])
    stacked = parallel.stack(members, mesh)
    trained, losses = jax.jit(parallel.over_members(train, mesh, stacking))(parallel.replicate(images, mesh), stacked)
    if stacking != "unroll":
        assert len(traces) == 1
    for i, (got, (state, loss)) in enumerate(zip(parallel.unstack(trained, 3), expected, strict=True)):
        np.testing.assert_allclose(losses[i], loss, rtol=1e-5)
        for a, b in zip(jax.tree.leaves(got.params), jax.tree.leaves(state.params), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(jax.random.key_data(got.key), jax.random.key_data(state.key))


def test_one_process_does_what_it_is_told():
    assert parallel.is_primary()
    assert parallel.on_primary(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        parallel.on_primary(lambda: 1 // 0)


def test_bad_arguments():
    ones = np.ones(3)
    apply = functools.partial(parallel.map_batches, lambda _, *arrays: arrays, None, mesh=parallel.make_mesh("data"))
    with pytest.raises(ValueError, match="different numbers of examples"):
        apply(ones, ones[:2], batch_size=2)
    with pytest.raises(ValueError, match="no examples"):
        apply(ones[:0], batch_size=2)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        apply(ones, batch_size=0)
    with pytest.raises(ValueError, match="known: auto, map, unroll, vmap"):
        parallel.over_members(lambda _, a: a, parallel.make_mesh("sweep"), "pile")
