"""Feature Distillation: a coarse quantization of the image's cosine transform; and the random distortion grid.

Both are transforms of the input; neither trains anything.

Reference:
  Liu et al., Feature Distillation: DNN-Oriented JPEG Compression Against Adversarial Examples, 2019 (arXiv 1803.05787).
  Qiu et al., Mitigating Advanced Adversarial Attacks with More Advanced Gradient Obfuscation Techniques, 2020
  (arXiv 2005.13712), for the grid.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft
from jaxtyping import Array

from ddjax.checks import check_choice
from ddjax.defenses.declaration import declare
from ddjax.defenses.images import Images, Keys, blocks, check_images, widened

Table = tuple[tuple[float, ...], ...]

# The steps of the public code that combines the two: finer for the 4 x 4 lowest frequencies.
TABLE: Table = tuple(tuple(25.0 if max(i, j) < 4 else 30.0 for j in range(8)) for i in range(8))


def cosine_matrix(size: int) -> np.ndarray:
    """The orthonormal DCT-II of `size` values as a matrix: `cosine_matrix(n) @ x`."""
    return np.asarray(scipy.fft.dct(np.eye(size), axis=0, norm="ortho"))


def distill_features(images: Images, *, table: Table = TABLE) -> Images:
    """Quantizes the block-wise cosine transform of images in 8-bit units.

    The table has the quantization step of each frequency: a square of positive numbers, whose side is that of the
    blocks. Images are mirrored around their edge pixels up to whole blocks, equally on both sides, and cropped back.
    Channels are transformed one by one. The gradient is zero everywhere.

    Departures from the public code:
      It crops at the origin of the padded images, which shifts them by half the padding.
    """
    check_images("Feature Distillation", images)
    steps = np.asarray(table, np.float32)
    block = len(steps)
    if steps.shape != (block, block) or not (np.isfinite(steps) & (steps > 0)).all():
        raise ValueError(f"a quantization table must be a square of positive numbers, got {table}")
    rows, columns = images.shape[1:3]
    pads = (-side % block for side in (rows, columns))
    (top, below), (left, right) = ((pad // 2, pad - pad // 2) for pad in pads)
    wide = widened(images)
    padded = 255 * jnp.pad(wide, ((0, 0), (top, below), (left, right), (0, 0)), mode="reflect")
    # As products with a matrix: a fast transform gains nothing on blocks of eight, and rounds otherwise.
    matrix = jnp.asarray(cosine_matrix(block), wide.dtype)
    multiply = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    spectrum = multiply("ki,lj,bminjc->bmnklc", matrix, matrix, blocks(padded, block))
    step = jnp.asarray(steps, wide.dtype)[None, None, None, :, :, None]
    coarse = jnp.round(spectrum / step) * step
    restored = multiply("ki,lj,bmnklc->bminjc", matrix, matrix, coarse).reshape(padded.shape)
    return jnp.clip(restored[:, top : top + rows, left : left + columns] / 255, 0.0, 1.0).astype(images.dtype)


def random_grid(images: Images, keys: Keys, *, limit: float = 0.25, cells: int = 10, flips: bool = False) -> Images:
    """The random distortion grid: columns and rows are stretched and compressed, cell by cell.

    A side is cut into cells, at least one, of `side // cells` pixels. Each cell shows a stretch of the image that
    begins where the stretch of the cell before ended; its length is that of the cell times 1 + U(-limit, limit), for a
    limit in [0, 1). A last cell that is cut off by the edge shows all that is left. Positions are rounded, so pixels
    are moved and not mixed. Gradients pass. With `flips`, each of the two directions runs from the other end with
    probability one half, as in the authors' TensorFlow code.
    """
    check_images("the random grid", images)
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
    steps = jax.random.uniform(of_steps, (len(starts),), jnp.float32, minval=1 - limit, maxval=1 + limit)
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


def random_jitter(images: Images, keys: Keys, *, limit: float = 0.025) -> Images:
    """Moves each column and each row by a random share of its coordinate, bilinearly; most far from the origin.

    The place j shows j (1 + U(-limit, limit)), for a limit in [0, 1). Gradients pass.
    """
    check_images("the random jitter", images)
    if not 0 <= limit < 1:
        raise ValueError(f"the limit must be in [0, 1), got {limit}")

    def distort(image: Array, key: Array) -> Array:
        for axis, half in enumerate(jax.random.split(key)):
            side = image.shape[axis]
            share = jax.random.uniform(half, (side,), jnp.float32, minval=1 - limit, maxval=1 + limit)
            place = jnp.clip(jnp.arange(side, dtype=jnp.float32) * share, 0.0, side - 1.0)
            low = jnp.floor(place)
            weight = jnp.expand_dims((place - low).astype(image.dtype), (2, 1 - axis))
            first = low.astype(jnp.int32)
            near, far = (jnp.take(image, at, axis=axis) for at in (first, jnp.minimum(first + 1, side - 1)))
            image = (1 - weight) * near + weight * far
        return image

    return jax.vmap(distort)(images, keys)


def distill_and_distort(
    images: Images, keys: Keys, *, table: Table = TABLE, grid: str = "jitter", limit: float = 0.025
) -> Images:
    """Feature Distillation by a table, then one of the two random distortions with its limit.

    The grid is `"jitter"`, as the public code that combines them has it, or `"cells"`, that of Qiu et al., for whom a
    limit of 0.25 is usual. The gradient is zero everywhere.
    """
    return distort(distill_features(images, table=table), keys, grid=grid, limit=limit)


def distort(images: Images, keys: Keys, *, grid: str = "jitter", limit: float = 0.025) -> Images:
    """One of the two random distortions alone: the substitute for a defense-aware attack on `distill_and_distort`.

    Distortions are linear in the image, so this is the gradient of the distortion with the quantization passed straight
    through. The arguments are those of `distill_and_distort`.
    """
    distortions = {"jitter": random_jitter, "cells": random_grid}
    check_choice("grid", grid, distortions)
    return distortions[grid](images, keys, limit=limit)


DEFENSES = (
    declare(distill_features, name="feature_distillation", images=True, gradient="straight-through"),
    declare(
        distill_and_distort,
        name="feature_distillation_grid",
        images=True,
        gradient="substitute",
        substitute=distort,
        random=True,
    ),
    declare(random_grid, images=True, random=True, gradient="own"),
    declare(random_jitter, images=True, random=True, gradient="own"),
)
