"""Rounding to levels: the 256 of an image file, and any other number of them. There is no second definition.

XLA multiplies by the inverse of a constant where NumPy divides, so two programs for `level / 255` may differ in the
last bit. No program here divides levels: an image that was rounded to 8 bits equals the same image read from a file
to the bit, in NumPy and in JAX, eager and compiled.
"""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from ddjax.checks import check_whole_number, known_values

ArrayT = TypeVar("ArrayT", np.ndarray, jax.Array)

# 1 / 255 in two parts. The first has 9 bits, so a byte times it is exact; the second is the rest. The sum of the two
# products is therefore rounded once, with or without a fused multiply-add. A table takes three times as long on a CPU.
_LEADING = np.float32(257 / 65536)
_REST = np.float32(1 / 255 - 257 / 65536)


def to_float(images: ArrayT) -> ArrayT:
    """Scales stored images to the range that models and attacks work in.

    Args:
      images: bytes, 0..255, or floats, which are returned as they are; of any shape. A NumPy array stays one.

    Returns:
      Bytes divided by 255, in [0, 1], as float32; each is the float32 that is nearest to the quotient.

    Raises:
      ValueError: for images of another type.
    """
    if jnp.issubdtype(images.dtype, jnp.floating):
        return images
    if images.dtype != np.uint8:
        raise ValueError(f"images must be uint8 or floats, got {images.dtype}")
    if isinstance(images, np.ndarray):
        return images.astype(np.float32) / np.float32(255)
    values = images.astype(np.float32)
    return values * _LEADING + values * _REST


def to_uint8(images: ArrayT) -> ArrayT:
    """Rounds images to the nearest bytes, 0..255, of a file: the inverse of `to_float`.

    Args:
      images: floats, clipped to [0, 1], or bytes, which are returned as they are; of any shape. A NumPy array stays
        one.
    """
    return images if images.dtype == np.uint8 else _levels(images, 256).astype(np.uint8)


def round_to_levels(
    inputs: ArrayT, levels: int, low: float | np.ndarray | jax.Array = 0.0, high: float | np.ndarray | jax.Array = 1.0
) -> ArrayT:
    """Rounds to the nearest of `levels` equally spaced values from `low` to `high`.

    A value that is a level already stays the same to the bit where `low` and `high` are single numbers that are known
    when the program is traced; else it may move by its last bit.

    Args:
      inputs: floats of any shape; values outside of the range go to its ends. A NumPy array stays one.
      levels: how many values there are, at least 2.
      low: the least value, a number or an array that broadcasts against the inputs.
      high: the largest value, above `low`, likewise.

    Raises:
      ValueError: for fewer than two levels.
    """
    check_whole_number("levels", levels, least=2)
    steps = np.arange(levels)
    least, most = known_values(low), known_values(high)
    if least is not None and most is not None and least.size == most.size == 1:
        low, high = least.astype(np.float64).item(), most.astype(np.float64).item()
        # In this order the ends are exact, and so are whole numbers.
        table = (low * steps[::-1] + high * steps) / (levels - 1)
        return _look_up(table, _levels((inputs - low) / (high - low), levels), inputs.dtype)
    positions: Any = _levels((inputs - low) / (high - low), levels)
    return low + _look_up(steps / (levels - 1), positions, inputs.dtype) * (high - low)


def round_to_8_bits(images: ArrayT) -> ArrayT:
    """Rounds images in [0, 1] to the 256 levels of a file: a change that cannot be saved is no adversarial example.

    In float32 the result equals `to_float(to_uint8(images))` to the bit.
    """
    return round_to_levels(images, 256)


def _levels(shares: ArrayT, levels: int) -> ArrayT:
    """The number of the nearest level for values in [0, 1]."""
    numpy: Any = np if isinstance(shares, np.ndarray) else jnp
    if shares.dtype.itemsize < 4:
        shares = shares.astype(np.float32)  # which holds all levels, and their halves
    return numpy.clip(numpy.round(shares * (levels - 1)), 0, levels - 1).astype(np.int32)


def _look_up(table: np.ndarray, positions: ArrayT, dtype: np.dtype) -> ArrayT:
    table = table.astype(dtype)
    return table[positions] if isinstance(positions, np.ndarray) else jnp.asarray(table)[positions]
