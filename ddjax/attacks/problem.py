"""What every attack does before and after its search: it checks its arguments, and judges its result.

`prepare` turns the arguments of a call into a `Problem`. Outside of a trace, bad values raise. Inside of one, where
they cannot, a row with bad values is searched as a harmless one, and `Problem.result` gives it back unchanged, as a
failure with NaN logits.

The search runs in at least float32, whatever floating type the inputs have. The classifier always sees inputs of the
caller's type, so that success is judged on exactly what is returned.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from ddjax import layers
from ddjax.attacks.contract import AttackResult
from ddjax.checks import known_values
from ddjax.classifier import LogitsFn

# The least and the greatest value of an input: numbers, or arrays that broadcast against one input.
Bounds = tuple[Any, Any]
# A user's goal: from logits, labels and targets (or None) to a value that is negative where the attack has succeeded.
Criterion = Callable[[Array, Array, Array | None], Array]
PerExample = float | Float[Array, ""] | Float[Array, " B"]

# A margin must exceed rounding, relative to the logits that are compared, to count as one during a search: XLA rounds
# differently in batches of other sizes, and what is found in one must hold in the next. This many units of the logits'
# precision; networks in half precision round to about their own unit.
_GUARD, _GUARD_OF_HALF = 84.0, 2.0
# Inputs may lie outside the bounds by this many units in the last place: the two are often computed in two precisions.
_SLACK = 8.0


def per_example(values: PerExample, inputs: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
    """A number, or one for each example, such that it broadcasts against the batch of inputs."""
    values = jnp.asarray(values, inputs.dtype)
    return jnp.broadcast_to(values, inputs.shape[:1]).reshape(-1, *(1,) * (inputs.ndim - 1))


def norm(values: Float[Array, "B ..."], order: int | float = 2) -> Float[Array, " B"]:
    """The L1, L2 or Linf norm (`order` 1, 2 or infinity) of each example."""
    size = jnp.abs(values)
    axes = tuple(range(1, values.ndim))
    if order == 1:
        return jnp.sum(size, axis=axes)
    if order == 2:
        return jnp.sqrt(jnp.sum(size**2, axis=axes))
    return jnp.max(size, axis=axes)


def all_of(conditions: Bool[Array, "B ..."]) -> Bool[Array, " B"]:
    """Whether all entries of each example are true."""
    return jnp.all(conditions, axis=tuple(range(1, conditions.ndim)))


def is_dead(gradient: Float[Array, "B ..."]) -> Int[Array, " B"]:
    """1 where the gradient of an example is zero in every feature, else 0; for the count of zero gradients."""
    return all_of(gradient == 0).astype(jnp.int32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Examples:
    """The examples of an attack: a pytree of arrays with the batch as first axis, which may be part of a loop's state.

    Attributes:
      clean: the inputs before the attack, in the precision of the search.
      labels: the true classes, int32.
      targets: the classes to reach, int32, or None.
      mask: which entries may change, of the shape of the inputs, or None for all.
      criterion: the user's goal, or None for misclassification (or, with targets, for the target).
      guard: by how much, relative to the logits that are compared, a search's margin must exceed zero.
    """

    clean: Any
    labels: Any
    targets: Any
    mask: Any
    criterion: Criterion | None = dataclasses.field(metadata={"static": True})
    guard: float = dataclasses.field(metadata={"static": True})

    def is_adversarial(self, logits: Float[Array, "B K"]) -> Bool[Array, " B"]:
        """Whether the goal is reached; see `is_adversarial` and `criterion`."""
        if self.criterion is not None:
            return (self.criterion(logits, self.labels, self.targets) < 0) & is_decision(logits)
        return is_adversarial(logits, self.labels, self.targets)

    def objective(self, logits: Float[Array, "B K"]) -> Float[Array, " B"]:
        """What attacks minimize: how far the logits are from the goal; negative where it is reached."""
        if self.criterion is not None:
            return self.criterion(logits, self.labels, self.targets)
        own, other = self._compared(logits)
        return own - other if self.targets is None else other - own

    def required_margin(self, logits: Float[Array, "B K"], confidence: PerExample = 0.0) -> Float[Array, " B"]:
        """How far below zero a search must bring the objective: by the confidence, and by more than rounding."""
        confidence = jnp.asarray(confidence, logits.dtype)
        if self.criterion is not None:
            return jnp.broadcast_to(confidence, logits.shape[:1])
        own, other = self._compared(logits)
        size = lambda values: jnp.where(jnp.isfinite(values), jnp.abs(values), 0.0)
        return jnp.maximum(confidence, self.guard * jnp.maximum(size(own), size(other)))

    def reached(self, logits: Float[Array, "B K"], confidence: PerExample = 0.0) -> Bool[Array, " B"]:
        """`is_adversarial`, by the `required_margin`."""
        distance = self.objective(logits)
        # Where the compared logits are zero, so is the required margin.
        enough = (distance <= -self.required_margin(logits, confidence)) & (distance < 0)
        return enough & is_decision(logits)

    def objective_and_gradient(
        self, logits_fn: LogitsFn, inputs: Float[Array, "B ..."]
    ) -> tuple[Float[Array, "B K"], Float[Array, " B"], Float[Array, "B ..."]]:
        """The logits, the objective, and the objective's gradient; see `free`."""

        def total(inputs: Array) -> tuple[Array, tuple[Array, Array]]:
            logits = logits_fn(inputs)
            distance = self.objective(logits)
            # The sum, so that the gradient of an example does not depend on the batch.
            return jnp.sum(distance), (logits, distance)

        gradient, (logits, distance) = jax.grad(total, has_aux=True)(inputs)
        return logits, distance, self.free(gradient)

    def free(self, gradient: Float[Array, "..."]) -> Float[Array, "..."]:
        """A gradient `[B, ...]`, or a stack of them, with zero in the place of what is masked or not finite."""
        usable = jnp.isfinite(gradient)
        if self.mask is not None:
            usable = usable & self.mask.reshape((1,) * (gradient.ndim - self.mask.ndim) + self.mask.shape)
        return jnp.where(usable, gradient, 0.0)

    def _compared(self, logits: Array) -> tuple[Array, Array]:
        """The logit of the label or, with targets, of the target; and the largest of the others."""
        classes = self.labels if self.targets is None else self.targets
        is_class = jnp.arange(logits.shape[1], dtype=jnp.int32)[None, :] == classes[:, None]
        own = jnp.sum(jnp.where(is_class, logits, 0.0), axis=1)
        return own, jnp.max(jnp.where(is_class, -jnp.inf, logits), axis=1)


def is_adversarial(
    logits: Float[Array, "B K"], labels: Int[Array, " B"], targets: Int[Array, " B"] | None = None
) -> Bool[Array, " B"]:
    """Whether the decision is the target or, without targets, any class but the label.

    A class whose logit is minus infinity is switched off. NaN or plus infinity among the logits is no decision.
    """
    decision = jnp.argmax(logits, axis=1).astype(labels.dtype)
    reached = decision != labels if targets is None else decision == targets.astype(labels.dtype)
    return reached & is_decision(logits)


def is_decision(logits: Float[Array, "B K"]) -> Bool[Array, " B"]:
    """Whether the logits decide for a class: none is NaN or plus infinity, and not all are minus infinity."""
    return jnp.all(logits < jnp.inf, axis=1) & jnp.any(logits > -jnp.inf, axis=1)


@dataclasses.dataclass(frozen=True)
class Problem:
    """A checked call of an attack.

    Attributes:
      logits_fn: from inputs to logits, both in the precision of the search.
      examples: inputs, labels and targets; rows with bad values are replaced by harmless ones.
      low: the least values, which broadcast against the inputs.
      high: the greatest values.
      is_bounded: whether the bounds are finite.
      num_classes: K.
    """

    logits_fn: LogitsFn
    examples: Examples
    low: Array
    high: Array
    is_bounded: bool
    num_classes: int
    _name: str
    _bounds: Bounds
    _valid: Array | None
    _original: Array
    _logits_dtype: Any
    _key: Any

    @property
    def keys(self) -> Key[Array, " B"] | None:
        """One key for each example; None without a key."""
        return None if self._key is None else example_keys(self._name, self._key, self.clean.shape[0])

    @property
    def clean(self) -> Float[Array, "B ..."]:
        """The inputs before the attack."""
        return self.examples.clean

    @property
    def zeros(self) -> Int[Array, " B"]:
        """A zero for each example, with the sharding of the batch, for the counters of loops."""
        return jnp.zeros_like(self.examples.labels)

    @property
    def blank(self) -> Float[Array, " B"]:
        """A zero for each example in the precision of the search, with the sharding of the batch."""
        return jnp.zeros_like(self.examples.labels, self.clean.dtype)

    @property
    def width(self) -> Array:
        """The range of the values, high - low, which broadcasts against the inputs; a single number where it is one."""
        return self.high - self.low

    @property
    def scale(self) -> Float[Array, ""]:
        """The range of the values as one number: the root mean square of the features' ranges; 1 without a range."""
        if not self.is_bounded:
            return jnp.ones((), self.clean.dtype)
        return jnp.sqrt(jnp.mean(self.width**2))

    def share_of_range(self, setting: str, value: Any, share: float) -> Array:
        """A setting in units of the inputs, which broadcasts against them; None takes a share of each value's range.

        Raises:
          ValueError: when it is not given and the bounds have no finite range.
        """
        if value is None:
            self._check_range(setting)
            return jnp.broadcast_to(jnp.asarray(share, self.clean.dtype) * self.width, self.clean.shape)
        return per_example(value, self.clean)

    def share_of_scale(self, setting: str, value: Any, share: float, power: int = 1) -> Float[Array, ""]:
        """A setting that is one number; None takes a share of the range to a power.

        Raises:
          ValueError: when it is not given and the bounds have no finite range.
        """
        if value is None:
            self._check_range(setting)
            return jnp.asarray(share, self.clean.dtype) * self.scale**power
        return jnp.asarray(value, self.clean.dtype)

    def _check_range(self, setting: str) -> None:
        if not self.is_bounded:
            raise ValueError(
                f"{self._name} needs {setting}: its default is a share of the range of the inputs, and the bounds "
                f"{_shown(self._bounds)} have no finite range"
            )

    def clip(self, inputs: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
        """The inputs inside the box, with masked entries as they were."""
        inside = jnp.clip(inputs, self.low, self.high)
        return inside if self.examples.mask is None else jnp.where(self.examples.mask, inside, self.clean)

    def result(
        self,
        found: Float[Array, "B ..."],
        logits: Float[Array, "B K"],
        *,
        steps: Int[Array, " B"],
        gradients: Int[Array, " B"],
        queries: Int[Array, " B"],
        zero_gradients: Int[Array, " B"],
        success: Bool[Array, " B"] | None = None,
        info: dict[str, Any] | None = None,
    ) -> AttackResult:
        """The result of an attack that returns what it has found, successful or not.

        Args:
          found: inputs inside the box.
          logits: of exactly these inputs, by `logits_fn`.
          steps: as in the result.
          gradients: as in the result.
          queries: as in the result.
          zero_gradients: as in the result.
          success: whether the goal is reached. Default: `Examples.is_adversarial` of the logits.
          info: as in the result.

        Returns:
          The result; rows with bad values are their original inputs, failures, with NaN logits.
        """
        success = self.examples.is_adversarial(logits) if success is None else success
        inputs, logits = found.astype(self._original.dtype), logits.astype(self._logits_dtype)
        if self._valid is not None:
            valid = self._valid
            inputs = jnp.where(valid.reshape(-1, *(1,) * (inputs.ndim - 1)), inputs, self._original)
            logits = jnp.where(valid[:, None], logits, jnp.nan)
            success = success & valid
        counts = (steps, gradients, queries, zero_gradients)
        return AttackResult(inputs, success, logits, *(count.astype(jnp.int32) for count in counts), info=info or {})

    def nearest(
        self,
        found: Float[Array, "B ..."],
        *,
        steps: Int[Array, " B"],
        gradients: Int[Array, " B"],
        queries: Int[Array, " B"],
        zero_gradients: Int[Array, " B"],
        is_found: Bool[Array, " B"] | None = None,
    ) -> AttackResult:
        """The result of a minimum-norm attack: judges what was found, and returns the clean input of a failure.

        Args:
          found: the closest adversarial inputs; the clean ones where there were none.
          steps: as in the result.
          gradients: as in the result.
          queries: as in the result, without the pass that judges here.
          zero_gradients: as in the result.
          is_found: where what was found counts at all. Default: everywhere.

        Returns:
          The result.
        """
        logits = layers.in_parts(self.logits_fn, found)
        success = self.examples.is_adversarial(logits)
        if is_found is not None:
            success = success & is_found
        # A failure's `found` is the clean input, and these are its logits: a search keeps only what is adversarial by
        # more than rounding.
        inputs = jnp.where(success.reshape(-1, *(1,) * (found.ndim - 1)), found, self.clean)
        counts: dict[str, Any] = {"steps": steps, "gradients": gradients, "queries": queries + 1}
        counts["zero_gradients"] = zero_gradients
        return self.result(inputs, logits, success=success, **counts)


def prepare(
    name: str,
    logits_fn: LogitsFn,
    inputs: Float[Array, "B ..."],
    labels: Int[Array, " B"],
    *,
    key: Key[Array, "..."] | None = None,
    targets: Int[Array, " B"] | None = None,
    mask: Bool[Array, "..."] | None = None,
    criterion: Criterion | None = None,
    bounds: Bounds = (0.0, 1.0),
) -> Problem:
    """Checks the arguments that all attacks have.

    Shapes and types are always checked. Values are checked where they are known, that is, outside of a trace; in a
    trace, rows with bad values are marked and come back as failures.

    Args:
      name: of the attack, for errors.
      logits_fn: from inputs `[B, ...]` to logits `[B, K]`, K at least 2.
      inputs: floats inside the bounds, up to a few units in the last place.
      labels: the true classes, integers from 0 to K - 1.
      key: one typed key, B of them, or None.
      targets: the classes to reach, integers; none may be the label of its row.
      mask: which entries may change, booleans that broadcast against the inputs. Default: all.
      criterion: the goal, in the place of misclassification; from logits, labels and targets to a value `[B]` that is
        negative where the attack has succeeded.
      bounds: the least and the greatest value of an input: numbers, or arrays that broadcast against one input, such as
        one for each channel. They may be infinite.

    Returns:
      The problem.

    Raises:
      TypeError: for arguments that are no arrays, no function or no typed key.
      ValueError: for shapes, types or values that do not fit; the message says what was wanted.
    """
    for argument, array in (("inputs", inputs), ("labels", labels), ("targets", targets), ("mask", mask)):
        if array is not None and not (hasattr(array, "shape") and hasattr(array, "dtype")):
            raise TypeError(f"{argument} must be an array, got a {type(array).__name__}")
    if not callable(logits_fn):
        raise TypeError(f"logits_fn must be a function from inputs to logits, got a {type(logits_fn).__name__}")
    if inputs.ndim < 2 or not jnp.issubdtype(inputs.dtype, jnp.floating):
        raise ValueError(f"inputs must be floats of shape [B, ...], got {inputs.dtype} of shape {inputs.shape}")
    batch = inputs.shape[0]
    if 0 in inputs.shape:
        raise ValueError(f"the inputs are empty: their shape is {inputs.shape}")
    for argument, classes in (("labels", labels), ("targets", targets)):
        if classes is not None and (classes.shape != (batch,) or not jnp.issubdtype(classes.dtype, jnp.integer)):
            raise ValueError(
                f"{argument} must be {batch} integers, one for each input, got {classes.dtype} of shape {classes.shape}"
            )
    if mask is not None:
        mask = _check_mask(mask, inputs)
    if key is not None:
        _check_key(name, key, batch)
    outputs = _check_outputs(logits_fn, inputs)
    # By name: strict promotion, where a user asks for it, refuses to widen a type.
    dtype = jnp.dtype(jnp.float64 if jnp.float64 in (inputs.dtype, outputs.dtype) else jnp.float32)
    low, high, is_bounded = _box(bounds, inputs, dtype)
    original = jnp.asarray(inputs)
    inputs = original.astype(dtype)
    labels = jnp.asarray(labels).astype(jnp.int32)
    targets = None if targets is None else jnp.asarray(targets).astype(jnp.int32)
    valid = _check_values(bounds, original, labels, targets, low, high, outputs.shape[1])
    clean = jnp.clip(inputs, low, high)
    if valid is not None:
        keep = valid.reshape(-1, *(1,) * (inputs.ndim - 1))
        clean = jnp.where(keep, clean, jnp.clip(jnp.zeros_like(clean), low, high))
        labels = jnp.where(valid, labels, 0)
        targets = None if targets is None else jnp.where(valid, targets, 1)
    is_half = jnp.finfo(outputs.dtype).bits < 32
    guard = (_GUARD_OF_HALF if is_half else _GUARD) * float(jnp.finfo(outputs.dtype).eps)
    exact = logits_fn

    def cast(inputs: Array) -> Array:
        return exact(inputs.astype(original.dtype)).astype(dtype)

    return Problem(
        logits_fn=logits_fn if dtype == original.dtype == outputs.dtype else cast,
        examples=Examples(clean, labels, targets, mask, criterion, guard),
        low=low,
        high=high,
        is_bounded=is_bounded,
        num_classes=outputs.shape[1],
        _name=name,
        _bounds=bounds,
        _valid=valid,
        _original=original,
        _logits_dtype=outputs.dtype,
        _key=key,
    )


def example_keys(name: str, key: Key[Array, "..."] | UInt32[Array, "..."] | None, batch: int) -> Key[Array, " B"]:
    """One key for each example, which depends on the caller's key and, if that is a single one, on the row.

    Args:
      name: of the attack, for the error.
      key: one typed key, or B.
      batch: B.

    Raises:
      TypeError: without a typed key.
      ValueError: when there are neither one nor B of them.
    """
    key = _check_key(name, key, batch)
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(batch)) if key.shape == () else key


def _check_key(name: str, key: Any, batch: int) -> Array:
    """The key, where it is one."""
    if not (hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        got = "none" if key is None else f"a {type(key).__name__}"
        raise TypeError(f"{name} needs a key as jax.random.key makes it, got {got}")
    if key.shape not in ((), (batch,)):
        raise ValueError(f"{name} needs one key or {batch}, one for each input, got {key.shape}")
    return key


def _check_outputs(logits_fn: LogitsFn, inputs: Array) -> jax.ShapeDtypeStruct:
    """The shape and type of the logits, where these are what a classifier returns."""
    outputs = jax.eval_shape(logits_fn, jax.ShapeDtypeStruct(inputs.shape, inputs.dtype))
    wanted = f"logits_fn must return one array of float logits [B, K] with B={inputs.shape[0]} and K at least 2"
    if not isinstance(outputs, jax.ShapeDtypeStruct):
        raise ValueError(f"{wanted}, got a {type(outputs).__name__}")
    if outputs.ndim != 2 or outputs.shape[0] != inputs.shape[0] or outputs.shape[1] < 2:
        raise ValueError(f"{wanted}, got the shape {outputs.shape}")
    if not jnp.issubdtype(outputs.dtype, jnp.floating):
        raise ValueError(f"{wanted}, got {outputs.dtype}")
    return outputs


def _check_mask(mask: Array, inputs: Array) -> Bool[Array, "B ..."]:
    """The mask in the shape of the inputs."""
    try:
        full = jnp.broadcast_to(mask, inputs.shape)
    except ValueError:
        full = None
    if full is None or full.dtype != jnp.bool:
        raise ValueError(
            f"mask must be of booleans that broadcast against the inputs of shape {inputs.shape}, "
            f"got {mask.dtype} of shape {mask.shape}"
        )
    return full


def box(bounds: Bounds, inputs: Float[Array, "B ..."]) -> tuple[Array, Array]:
    """The bounds as arrays that broadcast against a batch of inputs.

    Raises:
      TypeError: for bounds that are no pair of numbers or arrays.
      ValueError: for bounds that are no interval, or that do not broadcast against one input.
    """
    return _box(bounds, inputs, inputs.dtype)[:2]


def _box(bounds: Bounds, inputs: Array, dtype: Any) -> tuple[Array, Array, bool]:
    """The bounds as arrays that broadcast against a batch of inputs, and whether they are finite."""
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        raise TypeError(f"bounds must be a pair, the least and the greatest value, got {bounds!r}")
    for bound in bounds:
        if isinstance(bound, list | tuple | str | None):
            raise TypeError(f"bounds must be numbers or arrays, got {bounds!r}")
        try:
            fits = np.broadcast_shapes(np.shape(bound), inputs.shape[1:]) == inputs.shape[1:]
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(
                f"bounds must broadcast against one input of shape {inputs.shape[1:]}, got {np.shape(bound)}"
            )
    known_low, known_high = (known_values(bound) for bound in bounds)
    is_bounded = True
    if known_low is not None and known_high is not None:
        # An entry whose bounds coincide is constant.
        if not (known_low <= known_high).all() or not (known_low < known_high).any():
            raise ValueError(f"bounds must be an interval, got {bounds}")
        is_bounded = bool(np.isfinite(known_low).all() and np.isfinite(known_high).all())
    low, high = (jnp.asarray(bound, dtype) for bound in bounds)
    low, high = (jnp.reshape(bound, (*(1,) * (inputs.ndim - bound.ndim), *bound.shape)) for bound in (low, high))
    return low, high, is_bounded


def _check_values(
    bounds: Bounds, inputs: Array, labels: Array, targets: Array | None, low: Array, high: Array, num_classes: int
) -> Bool[Array, " B"] | None:
    """Which rows have good values; None where all are known to have.

    Raises:
      ValueError: for a row with bad values, where they are known.
    """
    unknown = []
    for arrays, check, complaint in (
        ((inputs, low, high), _are_inside, lambda: f"the inputs must be finite and inside the bounds {_shown(bounds)}"),
        (
            (labels,),
            lambda _, classes: (classes >= 0) & (classes < num_classes),
            lambda: _not_classes("labels", num_classes),
        ),
        (
            (targets,),
            lambda _, classes: (classes >= 0) & (classes < num_classes),
            lambda: _not_classes("targets", num_classes),
        ),
        (
            (labels, targets),
            lambda _, one, other: one != other,
            lambda: "a target must differ from the label of its row",
        ),
    ):
        if any(array is None for array in arrays):
            continue
        # By NumPy where the values are known: in a trace, even operations on constants are traced.
        known = [known_values(array) for array in arrays]
        if any(values is None for values in known):
            unknown.append(check(jnp, *arrays))
        elif not check(np, *known).all():
            found = ""
            if arrays[0] is inputs:
                values = np.asarray(known[0], np.float64)
                found = ", found NaN" if np.isnan(values).any() else f", found {values.min():g} to {values.max():g}"
            raise ValueError(complaint() + found)
    return functools.reduce(operator.and_, unknown) if unknown else None


def _are_inside(xp: Any, inputs: Any, low: Any, high: Any) -> Any:
    """Whether each row is finite and inside the bounds, to a few units in the last place; `xp` is NumPy or its JAX."""
    unit = _SLACK * float(jnp.finfo(inputs.dtype).eps)
    inputs = inputs.astype(low.dtype)
    size = lambda bound: xp.where(xp.isfinite(bound), xp.abs(bound), 0.0)
    slack = (unit * xp.maximum(size(low), size(high))).astype(low.dtype)
    inside = xp.isfinite(inputs) & (inputs >= low - slack) & (inputs <= high + slack)
    return xp.all(inside, axis=tuple(range(1, inside.ndim)))


def _not_classes(name: str, num_classes: int) -> str:
    return f"{name} must be classes from 0 to {num_classes - 1}"


def _shown(bounds: Bounds) -> str:
    """The bounds in an error: at most four numbers."""
    ends = [(float(np.min(bound)), float(np.max(bound))) for bound in bounds]
    return " to ".join(f"{least:g}" if least == most else f"[{least:g} ... {most:g}]" for least, most in ends)
