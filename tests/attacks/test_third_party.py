"""An attack of a user's own file, found by its import path, is held to the same contract."""

import pytest

from ddjax import attacks
from tests.attacks import checks

SOURCE = '''
"""One uniform draw in the ball of a radius: the weakest attack that needs a key."""

import jax
import jax.numpy as jnp

from ddjax import attacks
from ddjax.attacks.loops import select
from ddjax.checks import check_whole_number


def uniform_noise(
    logits_fn, inputs, labels, *, key=None, targets=None, epsilon: float | None = None, num_steps: int = 60, mask=None,
    criterion=None, bounds=(0.0, 1.0),
):
    """Draws points uniformly in the Linf ball, and keeps the best."""
    check_whole_number("num_steps", num_steps, least=1)
    given = {"targets": targets, "mask": mask, "criterion": criterion, "bounds": bounds}
    problem = attacks.prepare("uniform_noise", logits_fn, inputs, labels, key=key, **given)
    if key is None:
        raise TypeError("uniform_noise needs a key as jax.random.key makes it, got none")
    radius = problem.share_of_range("epsilon", epsilon, 0.5)

    def step(number, state):
        best, logits, least = state
        draw = lambda key: jax.random.uniform(jax.random.fold_in(key, number), inputs.shape[1:], best.dtype, -1.0, 1.0)
        moved = problem.clip(problem.clean + radius * jax.vmap(draw)(problem.keys))
        found = problem.logits_fn(moved)
        distance = problem.examples.objective(found)
        better = distance < least
        return select(better, (moved, found, distance), state)

    begin = problem.clean, problem.logits_fn(problem.clean), problem.blank + jnp.inf
    best, logits, _ = jax.lax.fori_loop(0, num_steps, step, begin)
    count = problem.zeros + num_steps
    return problem.result(
        best, logits, steps=count, gradients=problem.zeros, queries=count + 1, zero_gradients=problem.zeros
    )


ATTACKS = (
    attacks.declare(uniform_noise, norm="linf", kind="budget", targets="optional", random=True, access="score"),
)
'''


@pytest.fixture(scope="module")
def declaration(tmp_path_factory):
    directory = tmp_path_factory.mktemp("users")
    (directory / "users_attacks.py").write_text(SOURCE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(directory)
        yield attacks.ATTACKS.find("users_attacks:uniform_noise")


@pytest.mark.parametrize("check", checks.CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_attack_of_a_user_passes(as_a_user, declaration, check):
    check(declaration)


def test_user_attack_is_registered_once(declaration):
    assert "uniform_noise" not in attacks.ATTACKS
    assert attacks.ATTACKS.split("users_attacks:uniform_noise:epsilon=8/255") == (
        "users_attacks:uniform_noise",
        "epsilon=8/255",
    )
    with pytest.raises(ValueError, match="there already is attack 'fgsm'"):
        attacks.register(
            attacks.declare(
                declaration.function, name="fgsm", norm="linf", kind="budget", targets="no", random=True, access="score"
            )
        )
