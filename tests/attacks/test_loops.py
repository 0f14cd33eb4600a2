import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddjax.attacks import loops, problem
from ddjax.platforms import for_cpu


def test_one_key_is_one_for_each_row_and_more_are_taken_as_they_are():
    key = jax.random.key(0)
    few, many = (jax.random.key_data(problem.example_keys("x", key, count)) for count in (3, 5))
    np.testing.assert_array_equal(few, many[:3])
    assert len(np.unique(many, axis=0)) == 5
    keys = jax.random.split(jax.random.key(7), 24)
    np.testing.assert_array_equal(jax.random.key_data(problem.example_keys("x", keys, 24)), jax.random.key_data(keys))
    with pytest.raises(ValueError, match="x needs one key or 3, one for each input, got \\(24,\\)"):
        problem.example_keys("x", keys, 3)
    with pytest.raises(TypeError, match="x needs a key as jax.random.key makes it"):
        problem.example_keys("x", None, 3)


@pytest.mark.parametrize("batch_size", [1, 7, 64, 200])
@pytest.mark.parametrize("smallest", [1, 32])
def test_while_live_steps_each_example_its_own_number_of_times(batch_size, smallest):
    limits = np.random.default_rng(0).integers(0, 20, batch_size)
    state = (jnp.zeros(batch_size, jnp.int32), jnp.asarray(limits, jnp.int32), jnp.arange(batch_size))
    sizes = []

    def step(state):
        count, limit, name = state
        sizes.append(count.shape[0])
        return jnp.where(count < limit, count + 1, count), limit, name

    loop = jax.jit(lambda s: loops.while_live(step, lambda s: s[0] < s[1], s, smallest=smallest))
    count, limit, name = loop(state)
    np.testing.assert_array_equal(count, limits)
    np.testing.assert_array_equal(limit, limits)
    np.testing.assert_array_equal(name, np.arange(batch_size))
    assert sizes[0] == batch_size
    assert min(sizes) == {1: 1, 32: 50 if batch_size == 200 else batch_size}[smallest]


@pytest.mark.parametrize("lanes", [1, 6, 49, 50, 60])
def test_where_an_example_ends_the_next_takes_its_place(lanes):
    # Some need no step at all.
    limits = np.random.default_rng(1).integers(0, 20, 50)
    keys = jax.random.split(jax.random.key(0), 50)
    sizes, steps = [], []

    def step(state):
        count, limit, name, keys = state
        sizes.append(count.shape[0])
        live = count < limit
        jax.debug.callback(lambda live: steps.append(live.sum()), live)
        return jnp.where(live, count + 1, count), limit, name, keys

    state = (jnp.zeros(50, jnp.int32), jnp.asarray(limits, jnp.int32), jnp.arange(50), keys)

    @jax.jit
    def loop(state):
        # Other platforms keep all examples at work; their form would be traced, too.
        with for_cpu():
            return loops.while_live(step, lambda state: state[0] < state[1], state, lanes=lanes)

    count, limit, name, after = loop(state)
    jax.effects_barrier()
    np.testing.assert_array_equal(count, limits)
    np.testing.assert_array_equal(limit, limits)
    np.testing.assert_array_equal(name, np.arange(50))
    np.testing.assert_array_equal(jax.random.key_data(after), jax.random.key_data(keys))
    assert max(sizes) == min(lanes, 50)
    # Where some had to wait, the last few go on in a smaller batch.
    assert min(sizes) == {1: 1, 6: 2, 49: 13, 50: 50, 60: 50}[lanes]
    assert sum(steps) == limits.sum()
    if lanes == 6:
        # Few turns are lost: to examples that need none, and at the end.
        assert len(steps) < limits.sum() / 6 + 20


def test_other_platforms_keep_all_examples_at_work():
    def run(count):
        step = lambda state: (jnp.minimum(state[0] + 1, state[1]), state[1])
        return loops.while_live(step, lambda state: state[0] < state[1], (count, count + 5), lanes=6)

    texts = {
        platform: jax.jit(run).trace(jnp.zeros(50, jnp.int32)).lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "cuda")
    }
    # Only the form for CPU has arrays of six examples.
    assert "tensor<6xi32>" in texts["cpu"]
    assert "tensor<6xi32>" not in texts["cuda"]
