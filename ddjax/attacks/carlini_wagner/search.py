"""What the three attacks of Carlini and Wagner share: variables, Adam, progress, state, and the margin missed."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from ddjax.attacks import loops
from ddjax.attacks.examples import Examples, PerExample, expand
from ddjax.attacks.problem import Problem
from ddjax.checks import check_number
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


@dataclasses.dataclass(frozen=True)
class Variables:
    """The variables of a search: tanh variables of a bounded box, or else the inputs themselves."""

    problem: Problem

    def of(self, inputs: Float[Array, "N ..."]) -> Float[Array, "N ..."]:
        """The variables of inputs."""
        if not self.problem.is_bounded:
            return inputs
        low, high = self.problem.low, self.problem.high
        # A feature whose bounds coincide is constant.
        width = jnp.where(high > low, high - low, 1.0)
        return jnp.arctanh((2 * inputs - (low + high)) / width * _SPAN)

    def view(self, variables: Float[Array, "N ..."]) -> tuple[Float[Array, "N ..."], Pull]:
        """The inputs of variables, and what takes a gradient with respect to the inputs to that of the variables."""
        low, high = self.problem.low, self.problem.high
        if not self.problem.is_bounded:
            return jnp.clip(variables, low, high), lambda gradient: gradient
        half, shares = (high - low) / (2 * _SPAN), jnp.tanh(variables)
        inputs = jnp.clip((low + high) / 2 + half * shares, low, high)
        return inputs, lambda gradient: gradient * (half * (1 - shares**2))

    def restrict(self, variables: Float[Array, "N ..."]) -> Float[Array, "N ..."]:
        """The variables whose inputs are inside the box."""
        if not self.problem.is_bounded:
            return jnp.clip(variables, self.problem.low, self.problem.high)
        limit = jnp.arctanh(jnp.asarray(_SPAN, variables.dtype))
        return jnp.clip(variables, -limit, limit)


class Adam(NamedTuple):
    """A variable and its optimizer state, with a count of its own for each example."""

    variable: Float[Array, "B ..."]
    state: optax.ScaleByAdamState


def begin(variable: Float[Array, "B ..."], count: Int[Array, " B"]) -> Adam:
    """Adam before its first step; `count` gives the counters their sharding."""
    # Built by hand, so that every part has the sharding of the batch.
    zeros = jnp.zeros_like(variable)
    return Adam(variable, optax.ScaleByAdamState(jnp.zeros_like(count), zeros, zeros))


def descend(
    adam: Adam,
    gradient: Float[Array, "B ..."],
    learning_rate: Array,
    restrict: Callable[[Array], Array] | None = None,
) -> Adam:
    """One step of Adam; `learning_rate` broadcasts against the variables, which `restrict` keeps in their range."""
    # optax raises a float to an integer power, which strict promotion would refuse.
    with jax.numpy_dtype_promotion("standard"):
        update, state = jax.vmap(_ADAM.update)(gradient, adam.state)
    variable = adam.variable - learning_rate * update  # pyright: ignore
    return Adam(variable if restrict is None else restrict(variable), state)  # pyright: ignore


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


class State(NamedTuple):
    """The state of a search, one entry for each example; `own` is what one attack has beyond the others.

    The examples and the confidence do not change, but are compacted with the rest.
    """

    examples: Examples
    confidence: Float[Array, " B"]
    adam: Adam
    progress: Progress
    constant: Float[Array, " B"]
    best: Float[Array, " B"]
    best_inputs: Float[Array, "B ..."]
    live: Bool[Array, " B"]
    steps: Int[Array, " B"]
    zero_gradients: Int[Array, " B"]
    own: Any


def start(
    problem: Problem, variable: Float[Array, "B ..."], own: Any, *, confidence: PerExample, constant: Scalar
) -> State:
    """The state before the first step.

    Raises:
      TypeError: for a confidence that is no number.
      ValueError: for a confidence that is negative or not finite.
    """
    check_number("confidence", confidence, least=0.0)
    # Every entry is derived from the inputs, so that it has their sharding.
    zeros, blank = problem.zeros, problem.blank
    return State(
        examples=problem.examples,
        confidence=blank + jnp.asarray(confidence, blank.dtype),
        adam=begin(variable, zeros),
        progress=no_progress(blank, zeros),
        constant=blank + jnp.asarray(constant, blank.dtype),
        best=blank + jnp.inf,
        best_inputs=problem.clean,
        live=zeros == 0,
        steps=zeros,
        zero_gradients=zeros,
        own=own,
    )


def run(problem: Problem, step: Callable[[State], State], state: State) -> State:
    """Takes steps until no example is live."""
    return loops.while_live(step, lambda state: state.live, state, lanes=loops.lanes(problem.clean))


def iterate(state: State, inputs: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
    """The inputs of a step, with masked entries as they were; those of the first step are the clean ones.

    The tanh gives the clean ones back but for the last bit.
    """
    return loops.select(state.steps == 0, state.examples.clean, state.examples.unmasked(inputs))


class Evaluation(NamedTuple):
    """The classifier at the inputs of a step.

    Attributes:
      hinge: (f)^+ of the paper: by how much the margin is missed.
      gradient: of the hinge, with respect to the inputs.
      raw_gradient: of the objective, also where the margin is reached.
      reached: whether it is.
    """

    hinge: Float[Array, " B"]
    gradient: Float[Array, "B ..."]
    raw_gradient: Float[Array, "B ..."]
    reached: Bool[Array, " B"]


def evaluate(logits_fn: LogitsFn, inputs: Float[Array, "B ..."], state: State) -> Evaluation:
    """Looks at the inputs of a step."""
    examples, confidence = state.examples, state.confidence
    logits, distance, gradient = examples.objective_and_gradient(logits_fn, inputs)
    missing = distance + examples.required_margin(logits, confidence)
    return Evaluation(
        hinge=jnp.maximum(missing, 0.0),
        gradient=jnp.where(expand(missing > 0, gradient), gradient, 0.0),
        raw_gradient=gradient,
        reached=examples.reached(logits, confidence),
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
