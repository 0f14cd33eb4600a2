"""The classifier in the precision of a search: it sees its own types, and its gradients do not underflow."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ddjax.attacks.examples import expand
from ddjax.classifier import LogitsFn


def in_precision(logits_fn: LogitsFn, inputs_dtype: Any, logits_dtype: Any, dtype: Any) -> LogitsFn:
    """A classifier whose inputs and logits have the floating type of the search, `dtype`.

    Rows of the caller's classifier must not influence each other. It sees inputs of its own type, `inputs_dtype`, and
    returns logits of `logits_dtype`. With float16 among the two, the result has derivatives in reverse mode only.
    """
    if dtype == inputs_dtype == logits_dtype:
        return logits_fn

    def cast(inputs: Array) -> Array:
        return logits_fn(inputs.astype(inputs_dtype)).astype(dtype)

    if jnp.float16 not in (inputs_dtype, logits_dtype):
        return cast
    return lambda inputs: _with_scaled_gradients(cast, inputs)


def _with_scaled_gradients(logits_fn: LogitsFn, inputs: Float[Array, "B ..."]) -> Float[Array, "B K"]:
    """The logits, with a backward pass that starts with numbers of about 1 in each row.

    The softmax of a certain classifier has slopes below 6e-8, the smallest number of float16: they would be zero in
    the backward pass although they are not in the precision of the search. Factors are powers of two, so that scaling
    does not round.
    """
    # What the classifier closes over may be traced and differentiated by the caller.
    converted, constants = jax.closure_convert(logits_fn, inputs)

    @jax.custom_vjp
    def scaled(inputs: Array, *constants: Any) -> Array:
        return converted(inputs, *constants)

    def forward(inputs: Array, *constants: Any) -> tuple[Array, Any]:
        return jax.vjp(converted, inputs, *constants)

    def backward(vjp_fn: Any, cotangent: Array) -> tuple[Any, ...]:
        # Gradients of what is closed over are sums over rows, which cannot be scaled back.
        of_constants = vjp_fn(cotangent)[1:]
        largest = jnp.max(jnp.abs(cotangent), axis=1)
        _, exponent = jnp.frexp(jnp.where(jnp.isfinite(largest) & (largest > 0), largest, 1.0))
        slope = vjp_fn(times_power_of_two(cotangent, -exponent))[0]
        return times_power_of_two(slope, exponent), *of_constants

    scaled.defvjp(forward, backward)
    return scaled(inputs, *constants)


def times_power_of_two(values: Float[Array, "B ..."], exponent: Int[Array, " B"]) -> Float[Array, "B ..."]:
    """Multiplies each row by a power of two, in two steps because the power itself may leave the range of the type."""
    half = exponent // 2
    for part in (half, exponent - half):
        values = values * expand(jnp.ldexp(jnp.ones((), values.dtype), part), values)
    return values
