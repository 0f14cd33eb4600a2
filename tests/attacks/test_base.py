import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddjax import attacks
from ddjax.attacks import base

# Every attack with the settings and targets it needs.
CALLS = {
    "fgsm": lambda f, x, y, t, **kw: attacks.fgsm(f, x, y, **kw),
    "fgsm targeted": lambda f, x, y, t, **kw: attacks.fgsm(f, x, y, targets=t, **kw),
    "jsma": lambda f, x, y, t, **kw: attacks.jsma(f, x, y, targets=t, gamma=0.3, **kw),
    "jsma logits": lambda f, x, y, t, **kw: attacks.jsma(f, x, y, targets=t, gamma=0.3, score_space="logits", **kw),
    "jsma down": lambda f, x, y, t, **kw: attacks.jsma(f, x, y, targets=t, theta=-1.0, gamma=0.3, **kw),
}


def run(name, network, batch, **settings):
    return CALLS[name](network, *batch, **settings)


def assert_same(got, wanted):
    np.testing.assert_allclose(got.images, wanted.images, atol=1e-6)
    np.testing.assert_array_equal(got.success, wanted.success)
    np.testing.assert_array_equal(got.steps, wanted.steps)


@pytest.mark.parametrize("name", CALLS)
class TestContract:
    def test_result_is_in_the_box_and_success_is_judged_on_it(self, name, network, batch):
        _, labels, targets = batch
        result = run(name, network, batch)
        assert float(result.images.min()) >= 0
        assert float(result.images.max()) <= 1
        decisions = jnp.argmax(network(result.images), axis=1)
        wanted = decisions != labels if name == "fgsm" else decisions == targets
        np.testing.assert_array_equal(result.success, wanted)
        np.testing.assert_allclose(result.logits, network(result.images), atol=1e-5)
        assert bool(result.success.any())

    def test_eager_jit_vmap_and_shard_map_agree(self, name, network, batch):
        eager = run(name, network, batch)
        assert_same(jax.jit(lambda f, b: run(name, f, b))(network, batch), eager)
        doubled = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf[::-1]]), batch)
        stacked = jax.jit(jax.vmap(lambda b: run(name, network, b)))(doubled)
        assert_same(jax.tree.map(lambda leaf: leaf[0], stacked), eager)
        assert_same(jax.tree.map(lambda leaf: leaf[1][::-1], stacked), eager)
        mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        spec = jax.sharding.PartitionSpec
        sharded = jax.shard_map(
            lambda f, b: run(name, f, b),
            mesh=mesh,
            in_specs=(spec(), spec("data")),
            out_specs=spec("data"),
            check_vma=False,
        )
        assert_same(jax.jit(sharded)(network, batch), eager)

    def test_an_example_does_not_depend_on_its_batch(self, name, network, batch):
        whole = run(name, network, batch)
        part = run(name, network, jax.tree.map(lambda leaf: leaf[5:12], batch))
        assert_same(part, jax.tree.map(lambda leaf: leaf[5:12], whole))

    def test_dead_gradients_give_neither_nan_nor_false_success(self, name, network, batch):
        images, labels, _ = batch
        saturated = lambda x: network(x) * 1e6
        result = run(name, saturated, batch)
        assert np.isfinite(result.images).all()
        decisions = jnp.argmax(saturated(result.images), axis=1)
        if name == "fgsm":
            np.testing.assert_array_equal(result.success, decisions != labels)
        constant = lambda x: (
            jnp.zeros((x.shape[0], 4)) + jnp.array([1.0, 0, 0, 0])[None] + 0 * x.sum((1, 2, 3))[:, None]
        )
        zeros = jnp.zeros_like(labels)
        failed = run(name, constant, (images, zeros, zeros + 2))
        assert not failed.success.any()
        np.testing.assert_array_equal(failed.images, images)

    def test_logits_that_are_not_finite_are_never_success(self, name, network, batch):
        broken = lambda x: network(x) * jnp.nan
        result = run(name, broken, batch)
        assert not result.success.any()
        assert np.isfinite(result.images).all()

    def test_parameters_are_arguments_not_constants(self, name, network, batch):
        traces = []

        @jax.jit
        def attack(f, b):
            traces.append(1)
            return run(name, f, b)

        attack(network, batch)
        attack(jax.tree.map(lambda leaf: 2 * leaf, network), batch)
        assert len(traces) == 1

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda x, y, t: (x.at[0, 0, 0, 0].set(jnp.nan), y, t), "found NaN"),
            (lambda x, y, t: (x * 255, y, t), "found values from 0 to 255"),
            (lambda x, y, t: (x[0], y, t), "shape \\[B, H, W, C\\], got float32 of shape \\(6, 6, 1\\)"),
            (lambda x, y, t: ((x * 255).astype(jnp.uint8), y, t), "must be floats"),
            (lambda x, y, t: (x[:0], y[:0], t[:0]), "the batch of images is empty"),
            (lambda x, y, t: (x, y[:3], t), "labels must be 24 integers"),
            (lambda x, y, t: (x, y.astype(jnp.float32), t), "labels must be 24 integers"),
        ],
    )
    def test_bad_input(self, name, network, batch, change, message):
        attack = inspect.unwrap(attacks.ATTACKS[name.split()[0]])
        images, labels, targets = change(*batch)
        with pytest.raises(ValueError, match=message):
            attack(network, images, labels, targets=None if name == "fgsm" else targets)

    def test_a_target_that_is_the_label(self, name, network, batch):
        if name != "fgsm":
            with pytest.raises(ValueError, match="a target must differ from the true label"):
                run(name, network, (batch[0], batch[1], batch[1]))

    def test_bounds_that_are_no_interval(self, name, network, batch):
        with pytest.raises(ValueError, match="bounds must be an interval"):
            run(name, network, batch, bounds=(1.0, 0.0))


@pytest.mark.parametrize("batch_size", [1, 7, 64, 200])
def test_while_live_steps_each_example_its_own_number_of_times(batch_size):
    limits = np.random.default_rng(0).integers(0, 20, batch_size)
    state = (jnp.zeros(batch_size, jnp.int32), jnp.asarray(limits, jnp.int32), jnp.arange(batch_size))
    sizes = []

    def step(state):
        count, limit, name = state
        sizes.append(count.shape[0])
        return jnp.where(count < limit, count + 1, count), limit, name

    count, limit, name = jax.jit(lambda s: base.while_live(step, lambda s: s[0] < s[1], s))(state)
    np.testing.assert_array_equal(count, limits)
    np.testing.assert_array_equal(limit, limits)
    np.testing.assert_array_equal(name, np.arange(batch_size))
    assert sizes[0] == batch_size
    assert (sizes[-1] < batch_size) == (batch_size == 200)
