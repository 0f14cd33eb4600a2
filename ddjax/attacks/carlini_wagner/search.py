"""What the three attacks of Carlini and Wagner share: variables, Adam, progress, and the margin that is missed."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from ddjax.attacks.examples import Examples, PerExample, is_dead
from ddjax.attacks.problem import Problem
from ddjax.checks import check_number, check_whole_number
from ddjax.classifier import LogitsFn

Scalar = float | Float[Array, ""]
# From the gradient with respect to inputs to that with respect to the variables.
Pull = Callable[[Array], Array]
# How much of something a user-defined constraint is violated by, for a batch of any size; zero where it holds.
Constraint = Callable[[Float[Array, "N ..."]], Float[Array, " N"]]

# tanh spans the box divided by this.
_SPAN = 0.999
# Progress is looked at so many times for each constant, and must be at least this.
_CHECKS = 10
_PROGRESS = 0.9999
_ADAM = optax.scale_by_adam()


class Task(NamedTuple):
    """What does not change during the search; one entry for each example, so that it is compacted with the rest."""

    examples: Examples
    confidence: Float[Array, " B"]


def task_of(problem: Problem, confidence: PerExample) -> Task:
    """The examples with a confidence for each."""
    return Task(problem.examples, problem.blank + jnp.asarray(confidence, problem.clean.dtype))


@dataclasses.dataclass(frozen=True)
class Variables:
    """The variables of a search: tanh variables of a bounded box, or else the inputs themselves.

    Attributes:
      low: of the box, broadcasts against the inputs.
      high: of the box.
      is_bounded: whether the box is finite.
    """

    low: Array
    high: Array
    is_bounded: bool

    def of(self, inputs: Float[Array, "N ..."]) -> Float[Array, "N ..."]:
        """The variables of inputs."""
        if not self.is_bounded:
            return inputs
        return jnp.arctanh((2 * inputs - (self.low + self.high)) / self._width() * _SPAN)

    def inputs(self, variables: Float[Array, "N ..."]) -> Float[Array, "N ..."]:
        """The inputs of variables."""
        if not self.is_bounded:
            return jnp.clip(variables, self.low, self.high)
        half = (self.high - self.low) / (2 * _SPAN)
        return jnp.clip((self.low + self.high) / 2 + half * jnp.tanh(variables), self.low, self.high)

    def slope(self, variables: Float[Array, "N ..."]) -> Float[Array, "N ..."]:
        """The derivative of the inputs by the variables."""
        if not self.is_bounded:
            return jnp.ones_like(variables)
        return (self.high - self.low) / (2 * _SPAN) * (1 - jnp.tanh(variables) ** 2)

    def restrict(self, variables: Float[Array, "N ..."]) -> Float[Array, "N ..."]:
        """The variables whose inputs are inside the box."""
        if not self.is_bounded:
            return jnp.clip(variables, self.low, self.high)
        limit = jnp.arctanh(jnp.asarray(_SPAN, variables.dtype))
        return jnp.clip(variables, -limit, limit)

    def _width(self) -> Array:
        # A feature whose bounds coincide is constant.
        return jnp.where(self.high > self.low, self.high - self.low, 1.0)


def variables_of(problem: Problem) -> Variables:
    """The kind of variables that a problem's box asks for."""
    return Variables(problem.low, problem.high, problem.is_bounded)


def rate_of(problem: Problem, learning_rate: Scalar | None, default: float) -> Array:
    """The learning rate: the default is one of tanh variables.

    Raises:
      ValueError: when none is given and the variables are the inputs themselves.
    """
    if learning_rate is None:
        learning_rate = problem.share_of_scale("learning_rate", None, default, power=0)
    return jnp.asarray(learning_rate, problem.clean.dtype)


class Adam(NamedTuple):
    """A variable and its optimizer state, with a count of its own for each example."""

    variable: Float[Array, "B ..."]
    state: optax.ScaleByAdamState


def begin(variable: Float[Array, "B ..."], count: Int[Array, " B"]) -> Adam:
    """Adam before its first step; `count` gives the counters their sharding."""
    # Built by hand, so that every part has the sharding of the batch.
    zeros = jnp.zeros_like(variable)
    return Adam(variable, optax.ScaleByAdamState(jnp.zeros_like(count), zeros, zeros))


def descend(adam: Adam, gradient: Float[Array, "B ..."], learning_rate: Array) -> Adam:
    """One step of Adam; `learning_rate` broadcasts against the variables."""
    # optax raises a float to an integer power, which strict promotion would refuse.
    with jax.numpy_dtype_promotion("standard"):
        update, state = jax.vmap(_ADAM.update)(gradient, adam.state)
    return Adam(adam.variable - learning_rate * update, state)  # pyright: ignore


class Progress(NamedTuple):
    """The progress of the current constant: its steps, its least loss, and that loss when it was last looked at."""

    count: Int[Array, " B"]
    lowest: Float[Array, " B"]
    previous: Float[Array, " B"]


def no_progress(like: Float[Array, " B"], count: Int[Array, " B"]) -> Progress:
    """Before the first step with a constant."""
    infinite = jnp.full_like(like, jnp.inf)
    return Progress(jnp.zeros_like(count), infinite, infinite)


def advance(
    progress: Progress, loss: Float[Array, " B"], num_steps: int, abort_early: bool
) -> tuple[Progress, Bool[Array, " B"], Bool[Array, " B"]]:
    """Counts a step; tells whether the constant has had its steps, and whether it has stopped to make progress."""
    lowest = jnp.minimum(progress.lowest, loss)
    is_check = progress.count % max(num_steps // _CHECKS, 1) == 0
    stalled = is_check & (lowest > _PROGRESS * progress.previous)
    count = progress.count + 1
    previous = jnp.where(is_check, lowest, progress.previous)
    return Progress(count, lowest, previous), (count >= num_steps) | (stalled & abort_early), stalled


def check_search(num_steps: int, confidence: Any, positive: Mapping[str, Any]) -> None:
    """Refuses settings that are out of their ranges; None passes."""
    check_whole_number("num_steps", num_steps, least=1)
    check_number("confidence", confidence, least=0.0)
    for name, value in positive.items():
        if value is not None:
            check_number(name, value, above=0.0)


class Evaluation(NamedTuple):
    """The classifier at the inputs of a step.

    Attributes:
      hinge: (f)^+ of the paper: by how much the margin is missed.
      gradient: of the hinge, with respect to the inputs.
      raw_gradient: of the objective, also where the margin is reached.
      reached: whether it is.
      is_dead: 1 where the raw gradient is zero in every feature, else 0.
    """

    hinge: Float[Array, " B"]
    gradient: Float[Array, "B ..."]
    raw_gradient: Float[Array, "B ..."]
    reached: Bool[Array, " B"]
    is_dead: Int[Array, " B"]


def evaluate(logits_fn: LogitsFn, inputs: Float[Array, "B ..."], task: Task) -> Evaluation:
    """Looks at the inputs of a step."""
    examples, confidence = task
    logits, distance, gradient = examples.objective_and_gradient(logits_fn, inputs)
    missing = distance + examples.required_margin(logits, confidence)
    active = (missing > 0).reshape(-1, *(1,) * (inputs.ndim - 1))
    return Evaluation(
        hinge=jnp.maximum(missing, 0.0),
        gradient=jnp.where(active, gradient, 0.0),
        raw_gradient=gradient,
        reached=examples.reached(logits, confidence),
        is_dead=is_dead(gradient),
    )


def constrained(found: Evaluation, constraint: Constraint, inputs: Float[Array, "B ..."]) -> Evaluation:
    """Adds by how much a constraint is violated to what is missed of the margin."""

    def total(inputs: Array) -> tuple[Array, Array]:
        violation = constraint(inputs)
        return jnp.sum(violation), violation

    gradient, violation = jax.grad(total, has_aux=True)(inputs)
    gradient = jnp.where(jnp.isfinite(gradient), gradient, 0.0)
    return found._replace(
        hinge=found.hinge + violation,
        gradient=found.gradient + gradient,
        # A violation of NaN does not count as none.
        reached=found.reached & (violation <= 0),
    )
