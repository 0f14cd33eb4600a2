"""Feature Distillation: images through a coarse quantization of their cosine transform; and the random distortion grid.

Nothing is trained here, whatever the name says. Both are transforms of the input.

Reference:
  Liu et al., Feature Distillation: DNN-Oriented JPEG Compression Against Adversarial Examples, 2019 (arXiv 1803.05787).
  Qiu et al., Mitigating Advanced Adversarial Attacks with More Advanced Gradient Obfuscation Techniques, 2020
  (arXiv 2005.13712), for the grid.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from ddjax import checks
from ddjax.classifier import bpda, transform

Table = tuple[tuple[float, ...], ...]

# The steps of the public code that combines the two: finer for the 4 x 4 lowest frequencies.
TABLE: Table = tuple(tuple(25.0 if max(i, j) < 4 else 30.0 for j in range(8)) for i in range(8))


def cosine_matrix(size: int) -> np.ndarray:
    """The orthonormal DCT-II of `size` values as a matrix: `cosine_matrix(n) @ x`."""
    frequency, place = np.mgrid[:size, :size]
    matrix = np.sqrt(2 / size) * np.cos(np.pi * (2 * place + 1) * frequency / (2 * size))
    matrix[0] /= np.sqrt(2)
    return matrix


def distill_features(
    images: Float[Array, "B H W C"], *, table: Table = TABLE, shifted: bool = False
) -> Float[Array, "B H W C"]:
    """Quantizes the block-wise cosine transform of images in 8-bit units.

    Images are mirrored around their edge pixels up to whole blocks, equally on both sides, and cropped back. Each
    channel goes by itself.

    Args:
      images: within [0, 1].
      table: the quantization step of each frequency, a square of positive numbers; its side is that of the blocks.
      shifted: crops at the origin of the padded images as the public code does, which shifts them by half the padding.

    Returns:
      Images within [0, 1] without a gradient: it is zero everywhere.

    Raises:
      ValueError: for a table that is no square of positive finite numbers.
    """
    steps = np.asarray(table, np.float32)
    block = len(steps)
    if steps.shape != (block, block) or not (np.isfinite(steps) & (steps > 0)).all():
        raise ValueError(f"a quantization table must be a square of positive numbers, got {table}")
    batch, rows, columns, channels = images.shape
    pads = [-side % block for side in (rows, columns)]
    sides = [(pad // 2, pad - pad // 2) for pad in pads]
    padded = 255 * jnp.pad(images, ((0, 0), *sides, (0, 0)), mode="reflect")
    blocks = padded.reshape(batch, (rows + pads[0]) // block, block, (columns + pads[1]) // block, block, channels)
    matrix = jnp.asarray(cosine_matrix(block), images.dtype)
    multiply = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    spectrum = multiply("ki,lj,bminjc->bmnklc", matrix, matrix, blocks)
    step = jnp.asarray(steps, images.dtype)[None, None, None, :, :, None]
    coarse = jnp.round(spectrum / step) * step
    restored = multiply("ki,lj,bmnklc->bminjc", matrix, matrix, coarse).reshape(padded.shape)
    top, left = (0, 0) if shifted else (sides[0][0], sides[1][0])
    return jnp.clip(restored[:, top : top + rows, left : left + columns] / 255, 0.0, 1.0)


def random_grid(
    images: Float[Array, "B H W C"],
    keys: Key[Array, " B"],
    *,
    limit: float = 0.25,
    cells: int = 10,
    flips: bool = False,
) -> Float[Array, "B H W C"]:
    """The random distortion grid: columns and rows are stretched and compressed, cell by cell.

    A side is cut into cells of `side // cells` pixels. Each cell shows a stretch of the image whose length is that of
    the cell times 1 + U(-limit, limit), from where the cell before ended; a last cell that is cut off by the edge shows
    all that is left. Positions are rounded, so pixels are moved and not mixed, and gradients pass.

    Args:
      images: a batch.
      keys: one for each image.
      limit: of the change of lengths, in [0, 1).
      cells: the number of cells of a side, at least 1.
      flips: runs each of the two directions from the other end with probability one half, as the authors' TensorFlow
        twin does.

    Returns:
      The distorted images.

    Raises:
      ValueError: for a limit or number of cells out of its range.
    """
    if not 0 <= limit < 1 or cells < 1:
        raise ValueError(f"a grid needs a limit in [0, 1) and at least one cell, got {limit} and {cells}")

    def distort(image: Array, key: Array) -> Array:
        of_rows, of_columns = jax.random.split(key)
        rows = _positions(of_rows, image.shape[0], limit, cells, flips)
        return image[rows][:, _positions(of_columns, image.shape[1], limit, cells, flips)]

    return jax.vmap(distort)(images, keys)


def _positions(key: Array, side: int, limit: float, cells: int, flips: bool) -> Array:
    """Which pixel each place of a side shows."""
    length = max(side // cells, 1)
    starts = range(0, side, length)
    of_steps, of_flip = jax.random.split(key)
    steps = jax.random.uniform(of_steps, (len(starts),), minval=1 - limit, maxval=1 + limit)
    parts, before = [], jnp.float32(0)
    for index, start in enumerate(starts):
        end = min(start + length, side)
        after = before + length * steps[index] if start + length <= side else jnp.float32(side)
        parts.append(jnp.linspace(before, after, end - start, dtype=jnp.float32))
        before = after
    places = jnp.clip(jnp.round(jnp.concatenate(parts)), 0, side - 1).astype(jnp.int32)
    if flips:
        places = jnp.where(jax.random.bernoulli(of_flip), (side - 1 - places)[::-1], places)
    return places


def random_jitter(
    images: Float[Array, "B H W C"], keys: Key[Array, " B"], *, limit: float = 0.025
) -> Float[Array, "B H W C"]:
    """Moves each column and each row by a random share of its coordinate, bilinearly; far from the origin the most.

    Args:
      images: a batch.
      keys: one for each image.
      limit: the place j shows j (1 + U(-limit, limit)); in [0, 1).

    Returns:
      The distorted images.

    Raises:
      ValueError: for a limit out of its range.
    """
    if not 0 <= limit < 1:
        raise ValueError(f"the limit must be in [0, 1), got {limit}")

    def distort(image: Array, key: Array) -> Array:
        for axis, half in enumerate(jax.random.split(key)):
            side = image.shape[axis]
            share = jax.random.uniform(half, (side,), minval=1 - limit, maxval=1 + limit)
            place = jnp.clip(jnp.arange(side, dtype=image.dtype) * share, 0.0, side - 1.0)
            low = jnp.floor(place)
            weight = (place - low).reshape(*(side if other == axis else 1 for other in range(3)))
            low = low.astype(jnp.int32)
            near, far = (jnp.take(image, at, axis=axis) for at in (low, jnp.minimum(low + 1, side - 1)))
            image = (1 - weight) * near + weight * far
        return image

    return jax.vmap(distort)(images, keys)


def distill_and_distort(
    images: Float[Array, "B H W C"],
    keys: Key[Array, " B"],
    *,
    table: Table = TABLE,
    shifted: bool = False,
    grid: str = "jitter",
    limit: float = 0.025,
    straight_through: bool = False,
) -> Float[Array, "B H W C"]:
    """Feature Distillation and then one of the two random distortions.

    Args:
      images: within [0, 1].
      keys: one for each image.
      table: see `distill_features`.
      shifted: see `distill_features`.
      grid: `"jitter"`, as the public code that combines them has it, or `"cells"`, the grid of Qiu et al., for whom a
        limit of 0.25 is usual.
      limit: of the distortion.
      straight_through: lets gradients pass the quantization as if it were not there, by BPDA, and the distortion as it
        is; what an attack looks through.

    Returns:
      The defended images.

    Raises:
      ValueError: for an unknown grid.
    """
    distortions = {"jitter": random_jitter, "cells": random_grid}
    checks.check_choice("grid", grid, distortions)
    distill = transform(distill_features, table=table, shifted=shifted)
    return distortions[grid]((bpda(distill) if straight_through else distill)(images), keys, limit=limit)
