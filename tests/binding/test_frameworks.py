"""The same network in every framework: equal logits, attacks and programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

import ddjax
from ddjax.attacks import ATTACKS
from tests.binding import equal_attacks, frameworks

INPUTS = jax.random.uniform(jax.random.key(0), (5, *frameworks.SHAPE))


@pytest.mark.parametrize("name", frameworks.NETWORKS)
def test_every_framework_gives_the_same_logits_and_one_program_for_two_sets_of_weights(name):
    traces = []

    @jax.jit
    def logits_and_jacobian(logits_fn, inputs):
        traces.append(1)
        pull = lambda unit: jax.vjp(logits_fn, inputs)[1](jnp.broadcast_to(unit, (len(inputs), len(unit))))[0]
        return logits_fn(inputs), jax.vmap(pull)(jnp.eye(frameworks.CLASSES))

    for seed in (0, 1):
        weights = frameworks.make_weights(seed)
        found = logits_and_jacobian(frameworks.NETWORKS[name](weights), INPUTS)
        wanted = logits_and_jacobian(Partial(frameworks.plain, weights), INPUTS)
        for one, other in zip(found, wanted, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    # One for this network, and one for the function beside it.
    assert len(traces) == 2
    ddjax.check_classifier(frameworks.NETWORKS[name](weights), INPUTS)


@pytest.mark.parametrize("name", [name for name in frameworks.NETWORKS if name not in ("linen", "keras", "exported")])
def test_attacks_agree_in_float64_and_share_a_program(name):
    """A few; all by `python -m tests.binding.equal_attacks`."""
    with jax.enable_x64(True):
        for attack in ("jsma", "ddn"):
            largest, equal, _, programs = equal_attacks.compare(ATTACKS[attack], name, np.float64, count=8)
            assert (largest <= equal_attacks.INPUTS, equal, programs) == (True, 1, 1)
