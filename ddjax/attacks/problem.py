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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt32

from ddjax import layers
from ddjax.attacks.contract import AttackResult
from ddjax.attacks.examples import Criterion, Examples, expand, per_example, positive
from ddjax.attacks.precision import in_precision
from ddjax.checks import check_number, known_values
from ddjax.classifier import LogitsFn

# The least and the greatest value of an input: numbers, or arrays that broadcast against one input.
Bounds = tuple[Any, Any]
# A margin must exceed rounding, relative to the logits that are compared, to count as one during a search: XLA rounds
# differently in batches of other sizes, and what is found in one must hold in the next. This many units of the logits'
# precision; networks in half precision round to about their own unit.
_GUARD, _GUARD_OF_HALF = 84.0, 2.0
# Inputs may lie outside the bounds by this many units in the last place: the two are often computed in two precisions.
_SLACK = 8.0


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

    def share_of_range(self, setting: str, value: Any, share: float) -> Float[Array, "B ..."]:
        """A setting of at least 0, in units of the inputs, which broadcasts against them: see `PerValue`.

        None takes a share of each value's range. A traced value that is negative or not finite counts as 0.

        Raises:
          TypeError: when it is no number.
          ValueError: when it is negative or not finite, or when it is None and the bounds have no finite range.
        """
        if value is None:
            self._check_range(setting)
            return jnp.broadcast_to(jnp.asarray(share, self.clean.dtype) * self.width, self.clean.shape)
        check_number(setting, value, least=0.0)
        if np.ndim(value) == self.clean.ndim:
            if not _fits(np.shape(value), self.clean.shape):
                raise ValueError(
                    f"{setting} must broadcast against the inputs of shape {self.clean.shape}, got {np.shape(value)}"
                )
            return positive(jnp.broadcast_to(jnp.asarray(value, self.clean.dtype), self.clean.shape))
        return positive(per_example(value, self.clean))

    def share_of_scale(self, setting: str, value: Any, share: float, power: int = 1) -> Array:
        """A setting above 0, one for all examples or one for each; None takes a share of the range to a power.

        Raises:
          TypeError: when it is no number.
          ValueError: when it is not positive and finite, or when it is None and the bounds have no finite range.
        """
        if value is None:
            self._check_range(setting)
            return jnp.asarray(share, self.clean.dtype) * self.scale**power
        check_number(setting, value, above=0.0)
        return jnp.asarray(value, self.clean.dtype)

    def _check_range(self, setting: str) -> None:
        if not self.is_bounded:
            raise ValueError(
                f"{self._name} needs {setting}: its default is a share of the range of the inputs, and the bounds "
                f"{_shown(self._bounds)} have no finite range"
            )

    def clip(self, inputs: Float[Array, "B ..."]) -> Float[Array, "B ..."]:
        """The inputs inside the box, with masked entries as they were."""
        return self.examples.unmasked(jnp.clip(inputs, self.low, self.high))

    def result(
        self,
        found: Float[Array, "B ..."],
        logits: Float[Array, "B K"],
        *,
        steps: Int[Array, " B"],
        zero_gradients: Int[Array, " B"],
        gradients: Int[Array, " B"] | None = None,
        queries: Int[Array, " B"] | None = None,
        success: Bool[Array, " B"] | None = None,
        info: dict[str, Any] | None = None,
    ) -> AttackResult:
        """The result of an attack that returns what it has found, successful or not.

        Args:
          found: inputs inside the box.
          logits: of exactly these inputs, by `logits_fn`.
          steps: this and all that follow are as in the result.
          zero_gradients: of the `gradients`.
          gradients: None for one gradient a step.
          queries: None for one forward pass for each gradient.
          success: None for `Examples.is_adversarial` of the logits.
          info: None for nothing.

        Returns:
          The result; rows with bad values are their original inputs, failures, with NaN logits.
        """
        success = self.examples.is_adversarial(logits) if success is None else success
        inputs, logits = found.astype(self._original.dtype), logits.astype(self._logits_dtype)
        if self._valid is not None:
            inputs = jnp.where(expand(self._valid, inputs), inputs, self._original)
            logits = jnp.where(self._valid[:, None], logits, jnp.nan)
            success = success & self._valid
        gradients = steps if gradients is None else gradients
        queries = gradients if queries is None else queries
        counts = (count.astype(jnp.int32) for count in (steps, gradients, queries, zero_gradients))
        return AttackResult(inputs, success, logits, *counts, info=info or {})

    def nearest(
        self, found: Float[Array, "B ..."], *, is_found: Bool[Array, " B"] | None = None, **counts: Any
    ) -> AttackResult:
        """The result of a minimum-norm attack: judges what was found, and returns the clean input of a failure.

        Args:
          found: the closest adversarial inputs; the clean ones where there were none.
          is_found: where what was found counts at all. None for everywhere.
          **counts: as in `result`. The queries are those without the pass that judges here.

        Returns:
          The result.
        """
        logits = layers.in_parts(self.logits_fn, found)
        success = self.examples.is_adversarial(logits)
        if is_found is not None:
            success = success & is_found
        # A failure's `found` is the clean input, and these are its logits: a search keeps only what is adversarial by
        # more than rounding.
        inputs = jnp.where(expand(success, found), found, self.clean)
        queries = counts.pop("queries", counts.get("gradients", counts["steps"])) + 1
        return self.result(inputs, logits, success=success, queries=queries, **counts)


def prepare(
    name: str,
    logits_fn: LogitsFn,
    inputs: Float[Array, "B ..."],
    labels: Int[Array, " B"],
    key: Key[Array, "..."] | None = None,
    targets: Int[Array, " B"] | None = None,
    mask: Bool[Array, "..."] | None = None,
    criterion: Criterion | None = None,
    bounds: Bounds = (0.0, 1.0),
) -> Problem:
    """Checks the arguments that all attacks have; `ddjax.attacks.contract` describes them.

    Shapes and types are always checked. Values are checked where they are known, that is, outside of a trace; in a
    trace, rows with bad values are marked and come back as failures.

    Args:
      name: of the attack, for errors.
      logits_fn: this and all that follow are those of the contract.

    Returns:
      The problem.

    Raises:
      TypeError: as in the contract.
      ValueError: as in the contract.
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
    low, high, is_bounded = box(bounds, inputs, dtype)
    known_low, known_high = (known_values(bound) for bound in bounds)
    # An entry whose bounds coincide is constant: no step is spent on it. In a trace, any may be.
    if known_low is None or known_high is None or (known_low == known_high).any():
        varies = jnp.broadcast_to(low < high, inputs.shape)
        mask = varies if mask is None else mask & varies
    original = jnp.asarray(inputs)
    labels = jnp.asarray(labels).astype(jnp.int32)
    targets = None if targets is None else jnp.asarray(targets).astype(jnp.int32)
    valid = _check_values(bounds, original, labels, targets, low, high, outputs.shape[1])
    clean = jnp.clip(original.astype(dtype), low, high)
    if valid is not None:
        clean = jnp.where(expand(valid, clean), clean, jnp.clip(jnp.zeros_like(clean), low, high))
        labels = jnp.where(valid, labels, 0)
        targets = None if targets is None else jnp.where(valid, targets, 1)
    is_half = jnp.finfo(outputs.dtype).bits < 32
    guard = (_GUARD_OF_HALF if is_half else _GUARD) * float(jnp.finfo(outputs.dtype).eps)
    return Problem(
        logits_fn=in_precision(logits_fn, original.dtype, outputs.dtype, dtype),
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
    if mask.dtype == jnp.bool and _fits(mask.shape, inputs.shape):
        return jnp.broadcast_to(mask, inputs.shape)
    raise ValueError(
        f"mask must be of booleans that broadcast against the inputs of shape {inputs.shape}, "
        f"got {mask.dtype} of shape {mask.shape}"
    )


def box(bounds: Bounds, inputs: Float[Array, "B ..."], dtype: Any = None) -> tuple[Array, Array, bool]:
    """The bounds as arrays that broadcast against a batch of inputs, and whether they are finite.

    Args:
      bounds: as in the contract.
      inputs: the batch.
      dtype: of the arrays. None takes that of the inputs.

    Raises:
      TypeError: for bounds that are no pair of numbers or arrays.
      ValueError: for bounds that are no interval, or that do not broadcast against one input.
    """
    if not isinstance(bounds, tuple | list) or len(bounds) != 2:
        raise TypeError(f"bounds must be a pair, the least and the greatest value, got {bounds!r}")
    for bound in bounds:
        if isinstance(bound, list | tuple | str | None):
            raise TypeError(f"bounds must be numbers or arrays, got {bounds!r}")
        if not _fits(np.shape(bound), inputs.shape[1:]):
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
    low, high = (jnp.asarray(bound, inputs.dtype if dtype is None else dtype) for bound in bounds)
    low, high = (bound.reshape((1,) * (inputs.ndim - bound.ndim) + bound.shape) for bound in (low, high))
    return low, high, is_bounded


def _fits(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    """Whether an array of a shape broadcasts to another shape."""
    try:
        return np.broadcast_shapes(shape, to) == to
    except ValueError:
        return False


def _check_values(
    bounds: Bounds, inputs: Array, labels: Array, targets: Array | None, low: Array, high: Array, num_classes: int
) -> Bool[Array, " B"] | None:
    """Which rows have good values; None where all are known to have.

    Raises:
      ValueError: for a row with bad values, where they are known.
    """
    are_classes = lambda _, classes: (classes >= 0) & (classes < num_classes)
    are_other = lambda _, classes, labels: classes != labels
    inside = f"the inputs must be finite and inside the bounds {_shown(bounds)}"
    checks: list[tuple[Any, ...]] = [
        (inside, _are_inside, inputs, low, high),
        (f"labels must be classes from 0 to {num_classes - 1}", are_classes, labels),
    ]
    if targets is not None:
        checks.append((f"targets must be classes from 0 to {num_classes - 1}", are_classes, targets))
        checks.append(("a target must differ from the label of its row", are_other, targets, labels))
    unknown = []
    for complaint, check, *arrays in checks:
        # By NumPy where the values are known: in a trace, even operations on constants are traced.
        known = [known_values(array) for array in arrays]
        if any(values is None for values in known):
            unknown.append(check(jnp, *arrays))
        elif not check(np, *known).all():
            if check is _are_inside:
                values = np.asarray(known[0], np.float64)
                complaint += (
                    ", found NaN" if np.isnan(values).any() else f", found {values.min():g} to {values.max():g}"
                )
            raise ValueError(complaint)
    return functools.reduce(operator.and_, unknown) if unknown else None


def _are_inside(xp: Any, inputs: Any, low: Any, high: Any) -> Any:
    """Whether each row is finite and inside the bounds, to a few units in the last place; `xp` is NumPy or its JAX."""
    unit = _SLACK * float(jnp.finfo(inputs.dtype).eps)
    inputs = inputs.astype(low.dtype)
    size = lambda bound: xp.where(xp.isfinite(bound), xp.abs(bound), 0.0)
    slack = (unit * xp.maximum(size(low), size(high))).astype(low.dtype)
    inside = xp.isfinite(inputs) & (inputs >= low - slack) & (inputs <= high + slack)
    return xp.all(inside, axis=tuple(range(1, inside.ndim)))


def _shown(bounds: Bounds) -> str:
    """The bounds in an error: at most four numbers."""
    ends = []
    for bound in bounds:
        known = known_values(bound)
        if known is None:
            return "of the call"
        least, most = float(known.min()), float(known.max())
        ends.append(f"{least:g}" if least == most else f"[{least:g} ... {most:g}]")
    return " to ".join(ends)
