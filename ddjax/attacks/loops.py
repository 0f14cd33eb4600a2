"""The loop of searches whose examples end at different times."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int

from ddjax import layers
from ddjax.attacks.examples import expand
from ddjax.platforms import by_platform

State = TypeVar("State")


def lanes(inputs: Array) -> int:
    """How many of the inputs an attack should have at work at a time on CPU; see `while_live`."""
    return layers.images_at_once(inputs.shape[0], inputs.shape[1:], equal=False)


def while_live(
    step: Callable[[State], State],
    live: Callable[[State], Bool[Array, " B"]],
    state: State,
    *,
    lanes: int | None = None,
    smallest: int = 32,
) -> State:
    """Runs `step` until no example is live, and spends little time on those that are not.

    The state is a pytree of arrays whose first axis is the batch; that of examples that are not live stays as it is. On
    CPU at most `lanes` examples are at work at a time; where one ends, a waiting one takes its place. When none is
    waiting and at most a quarter of those at work is live, these go on in a smaller batch of that static size, and so
    on. Each size compiles one more copy of the loop, so the sizes are coarse.

    Args:
      step: advances the examples at work by one step; they must not influence each other.
      live: tells which examples still need steps.
      state: where to start.
      lanes: how many examples are at work at most on CPU; default: all, as on other platforms.
      smallest: no smaller batch is split off, except where examples had to wait.

    Returns:
      The state in which no example is live, in the original order.
    """
    count = live(state).shape[0]

    def advance(working: State) -> State:
        return select(live(working), step(working), working)

    def run(lanes: int, state: State) -> State:
        sizes = [lanes]
        least = smallest if lanes == count else min(smallest, _quarter(lanes))
        while least <= _quarter(sizes[-1]) < sizes[-1]:
            sizes.append(_quarter(sizes[-1]))
        # The examples at work are ahead of their copies in `state`.
        rows = jnp.arange(lanes, dtype=jnp.int32)
        working = jax.tree.map(lambda leaf: leaf[:lanes], state)
        for size, limit in zip(sizes, [*sizes[1:], 0], strict=True):
            if size < lanes:
                order = jnp.argsort(~live(working), stable=True)[:size]
                rows, working = jax.tree.map(lambda leaf, order=order: leaf[order], (rows, working))
            if size == lanes < count:
                state, rows, working = _while_waiting(advance, live, (state, rows, working), limit)
            else:
                working = lax.while_loop(lambda s, limit=limit: jnp.sum(live(s)) > limit, advance, working)
            state = working if size == count else _put(state, rows, working)
        return state

    everyone = functools.partial(run, count)
    if lanes is None or lanes >= count:
        return everyone(state)
    return by_platform(state, cpu=functools.partial(run, lanes), default=everyone)


def _quarter(size: int) -> int:
    return -(-size // 4)


def _while_waiting(
    step: Callable[[State], State],
    live: Callable[[State], Bool[Array, " L"]],
    state: tuple[State, Int[Array, " L"], State],
    limit: int,
) -> tuple[State, Int[Array, " L"], State]:
    """Runs `step` on so many examples at a time until no others are waiting and at most `limit` are live.

    The state is what is kept of all examples, the rows of those at work, and their states.
    """
    count = live(state[0]).shape[0]

    def refill(carry: tuple[Any, Any, Any, Any]) -> tuple[Any, Any, Any, Any]:
        kept, rows, working, waiting = carry
        # The first idle lane takes the first example that waits, the second the second, while there are any.
        idle = ~live(working)
        turn = waiting + jnp.cumsum(idle, dtype=jnp.int32) - 1
        takes = idle & (turn < count)
        kept = _put(kept, jnp.where(takes, rows, count), working)
        rows = jnp.where(takes, turn, rows)
        taken = jax.tree.map(lambda leaf: leaf[rows], kept)
        return kept, rows, select(takes, taken, working), waiting + jnp.sum(takes, dtype=jnp.int32)

    def advance(carry: tuple[Any, Any, Any, Any]) -> tuple[Any, Any, Any, Any]:
        kept, rows, working, waiting = carry
        working = step(working)
        is_due = (waiting < count) & jnp.any(~live(working))
        return lax.cond(is_due, refill, lambda carry: carry, (kept, rows, working, waiting))

    def goes_on(carry: tuple[Any, Any, Any, Any]) -> Array:
        return (carry[3] < count) | (jnp.sum(live(carry[2])) > limit)

    waiting = jnp.int32(state[1].shape[0])
    return lax.while_loop(goes_on, advance, (*state, waiting))[:3]


def _put(state: State, rows: Int[Array, " L"], working: State) -> State:
    """Writes the examples at work back to their rows; rows out of range are dropped."""
    return jax.tree.map(lambda leaf, part: leaf.at[rows].set(part, mode="drop"), state, working)


def select(condition: Bool[Array, " B"], new: State, old: State) -> State:
    """Chooses one of two states for each example."""
    choose = lambda a, b: a if a is b else jnp.where(expand(condition, a), a, b)
    return jax.tree.map(choose, new, old)
