"""Rounding to the levels of a file."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def round_to_levels(
    inputs: Float[Array, "B ..."], levels: int, low: Any = 0.0, high: Any = 1.0
) -> Float[Array, "B ..."]:
    """Rounds to the nearest of `levels` equally spaced values from low to high."""
    # From a table: XLA divides by a constant by multiplying with its inverse, which may be off in the last bit.
    table = jnp.asarray(np.arange(levels) / max(levels - 1, 1), inputs.dtype)
    width = jnp.where(high > low, high - low, 1.0)
    level = jnp.clip(jnp.round((inputs - low) / width * (levels - 1)), 0, levels - 1)
    return low + table[level.astype(jnp.int32)] * (high - low)
