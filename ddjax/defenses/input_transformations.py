"""Input transformations: bit depth, total variation, image quilting and ensembles of crops; JPEG has its own file.

Reference:
  Guo, Rana, Cisse and van der Maaten, Countering Adversarial Images Using Input Transformations, 2018
  (arXiv 1711.00117), section 4.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int32, Key

from ddjax import checks, rounding
from ddjax.classifier import LogitsFn, Randomized, as_pytree, map_draws
from ddjax.defenses.declaration import declare
from ddjax.defenses.images import Images, Keys, Scalar, check_images, neighborhoods, widened

# Of split Bregman: how closely the auxiliary differences are tied to the image's, in units of the data term. It changes
# the speed of convergence only: 20 iterations with this value get further than 50 with the 2 of the public code.
_COUPLING = 0.5
# How many distances between tiles and patches are held at once.
_ENTRIES = 2**20


def truncate_bit_depth(inputs: Float[Array, "B ..."], *, bits: int = 3) -> Float[Array, "B ..."]:
    """Keeps the leading bits, 1 to 8 of them, of 8-bit values and sets the others to zero.

    Inputs are rounded to 8 bits first. `squeezers.reduce_bit_depth` rounds to the nearest of as many values from 0 to 1
    instead; here the largest is below 1, 224 / 255 with three bits. The gradient is zero everywhere.

    Reference:
      Athalye, Carlini and Wagner, Obfuscated Gradients Give a False Sense of Security, 2018 (arXiv 1802.00420), whose
      code has the reduction of Guo et al. in this form.

    Departures from the paper:
      Guo et al. round. The attackers' code truncates 255 times the value, which sometimes takes an 8-bit value that was
      a float to the one below it.
    """
    if not 1 <= bits <= 8:
        raise ValueError(f"bits must be from 1 to 8, got {bits}")
    wide = widened(inputs)
    kept = (rounding.to_uint8(wide) >> (8 - bits) << (8 - bits)).astype(wide.dtype)
    return rounding.round_to_levels(kept / 255, 256).astype(inputs.dtype)


def total_variation(
    images: Images, keys: Keys, *, weight: Scalar = 0.03, keep: Scalar = 0.5, num_iterations: int = 50
) -> Images:
    """Drops pixels at random and fits an image of little total variation to those that are left.

    Minimizes over u the sum of (u - image)^2 over the kept pixels plus `weight` times the anisotropic total variation,
    the sum of |u_p - u_q| over pixels next to each other, in each channel. The result carries no gradient.

    Args:
      images: within [0, 1].
      keys: one for each image.
      weight: of the total variation, at least 0.
      keep: the probability with which a pixel is kept, in all channels at once; in (0, 1].
      num_iterations: of split Bregman, at least 1. After 50 the objective is within 0.1% of the least on CIFAR-10 and
        within 0.5% on MNIST, and the last changed images by less than 0.001 on average, where the public code stops.

    Reference:
      The solver is of Goldstein and Osher, The Split Bregman Method for L1-Regularized Problems, 2009.

    Departures from the paper:
      One mask for all channels, as the attackers' code has it. A fixed number of iterations instead of a tolerance. The
      sweep of Gauss-Seidel goes over all black squares of the checkerboard at once and then over all white ones, not
      pixel by pixel: the solution is the same, and the iterations are parallel.
    """
    check_images("total variation", images)
    checks.check_number("weight", weight, least=0.0)
    checks.check_number("keep", keep, above=0.0, most=1.0)
    if num_iterations < 1:
        raise ValueError(f"num_iterations must be at least 1, got {num_iterations}")
    dtype = images.dtype
    images = lax.stop_gradient(widened(images))
    rows, columns = images.shape[1:3]
    draw = lambda key: jax.random.bernoulli(key, keep, (rows, columns, 1))
    kept = jax.vmap(draw)(keys).astype(images.dtype)
    threshold = jnp.asarray(weight, images.dtype) / (2 * _COUPLING)
    row, column = np.mgrid[:rows, :columns]
    black = ((row + column) % 2 == 0)[None, :, :, None]
    neighbors: Any = sum((place > 0) * 1 + (place < side - 1) for place, side in ((row, rows), (column, columns)))
    diagonal = kept + _COUPLING * jnp.asarray(neighbors, images.dtype)[None, :, :, None]
    # Zero in an image of one pixel that is not kept.
    diagonal = jnp.where(diagonal > 0, diagonal, 1)

    def iterate(_: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        # From the differences plus their Bregman variables b, as they were, follow the new b and the shrunken d.
        smooth, *sums = state
        bregman = [jnp.clip(values, -threshold, threshold) for values in sums]
        wanted = [values - 2 * b for values, b in zip(sums, bregman, strict=True)]  # d - b
        for squares in (black, ~black):
            lack = [want - found for want, found in zip(wanted, _differences(smooth), strict=True)]
            step = (kept * (images - smooth) + _COUPLING * _adjoint(*lack)) / diagonal
            smooth = jnp.where(squares, smooth + step, smooth)
        down, right = (found + b for found, b in zip(_differences(smooth), bregman, strict=True))
        return smooth, down, right

    # The start is free of the dropped pixels, so that none shows before the solver has converged.
    count = jnp.maximum(jnp.sum(kept, axis=(1, 2), keepdims=True), 1)
    mean = jnp.sum(kept * images, axis=(1, 2), keepdims=True) / count
    start = jnp.where(kept > 0, images, mean), jnp.zeros_like(images), jnp.zeros_like(images)
    return jnp.clip(lax.fori_loop(0, num_iterations, iterate, start)[0], 0, 1).astype(dtype)


def _differences(images: Array) -> tuple[Array, Array]:
    """From each pixel to the next below it and to its right; zero from the last."""
    last_row, last_column = images[:, -1:], images[:, :, -1:]
    return jnp.diff(images, axis=1, append=last_row), jnp.diff(images, axis=2, append=last_column)


def _adjoint(down: Array, right: Array) -> Array:
    """The transposed of `_differences`, for what is zero in the last row and column."""
    first_row, first_column = jnp.zeros_like(down[:, :1]), jnp.zeros_like(right[:, :, :1])
    return -jnp.diff(down, axis=1, prepend=first_row) - jnp.diff(right, axis=2, prepend=first_column)


def patch_database(
    images: Float[Array, "N H W C"], key: Key[Array, ""], *, num_patches: int, patch: int = 5
) -> Float[Array, "P h w C"]:
    """Cuts the patches that `quilt` takes out of training images at random.

    They are of any image and from any place, and any of them may come more than once. Guo et al. have a million. The
    side `patch` is from 1 to the shorter of the images', of which there must be one.
    """
    count, rows, columns, channels = images.shape
    if not count:
        raise ValueError("quilting needs training images, of which it makes its patches")
    if num_patches < 1 or not 1 <= patch <= min(rows, columns):
        raise ValueError(
            f"a database needs at least one patch, with a side from 1 to {min(rows, columns)}, "
            f"got {num_patches} with {patch}"
        )
    ends = (count, rows - patch + 1, columns - patch + 1)
    draws = zip(jax.random.split(key, 3), ends, strict=True)
    places = [jax.random.randint(part, (num_patches,), 0, end) for part, end in draws]
    cut = lambda image, row, column: lax.dynamic_slice(images, (image, row, column, 0), (1, patch, patch, channels))[0]
    return jax.vmap(cut)(*places)


def quilt(
    images: Images, keys: Keys, patches: Float[Array, "P h w c"], *, overlap: int = 2, neighbors: int = 10
) -> Images:
    """Replaces each part of an image by a similar patch of other images.

    An image is covered with tiles of a patch's size, in raster order, each overlapping those to its left and above.
    Each tile is replaced by one of the patches that are nearest to it in the Euclidean distance, drawn uniformly. Where
    a patch overlaps earlier ones, the two meet along the path of least squared difference from one end of the overlap
    to the other. Images are mirrored to the right and below up to whole tiles, and cropped back. The result carries no
    gradient.

    Args:
      images: within [0, 1].
      keys: one for each image.
      patches: squares of the images' channels, see `patch_database`.
      overlap: of tiles, from 1 to one less than their side.
      neighbors: how many of the nearest patches are drawn from, from 1 to P.

    Reference:
      The quilting is of Efros and Freeman, Image Quilting for Texture Synthesis and Transfer, 2001.

    Departures from the paper:
      Where a patch overlaps both what is to its left and what is above, it shows where it lies beyond both seams; Efros
      and Freeman leave open how the two end. The attackers' code bars seams from the first row and column of an
      overlap, which nothing in the papers says; here they go anywhere.
    """
    check_images("quilting", images)
    total, side, width, channels = patches.shape
    if side != width or channels != images.shape[3]:
        raise ValueError(f"patches must be squares of {images.shape[3]} channels, got the shape {patches.shape}")
    if not 1 <= overlap < side or not 1 <= neighbors <= total:
        raise ValueError(
            f"quilting needs an overlap from 1 to {side - 1} and from 1 to {total} neighbors, "
            f"got {overlap} and {neighbors}"
        )
    dtype, shape = images.dtype, images.shape
    images = lax.stop_gradient(widened(images))
    patches = lax.stop_gradient(patches).astype(images.dtype)
    batch, rows, columns = shape[:3]
    stride = side - overlap
    down, across = (max(-(-(length - side) // stride), 0) + 1 for length in (rows, columns))
    pads = [(0, (count - 1) * stride + side - length) for count, length in ((down, rows), (across, columns))]
    padded = jnp.pad(images, ((0, 0), *pads, (0, 0)), mode="symmetric")
    starts = stride * np.indices((down, across)).reshape(2, -1).T
    of_rows, of_columns = (start[:, None] + np.arange(side) for start in starts.T)
    tiles = padded[:, of_rows[:, :, None], of_columns[:, None, :]]
    found = _nearest(tiles.reshape(batch * len(starts), -1), patches.reshape(total, -1), neighbors)
    draw = lambda key: jax.random.randint(key, (len(starts),), 0, neighbors, jnp.int32)
    chosen = jax.vmap(draw)(keys).reshape(-1, 1)
    chosen = jnp.take_along_axis(found, chosen, axis=1).reshape(batch, len(starts)).T

    def lay(canvas: Array, tile: tuple[Array, Array]) -> tuple[Array, None]:
        (i, j), index = tile
        zero = jnp.zeros_like(i)
        place = (zero, i, j, zero)
        there, patch = lax.dynamic_slice(canvas, place, (batch, side, side, channels)), patches[index]
        errors = jnp.sum((there - patch) ** 2, axis=3)
        beyond_left = _beyond_seam(errors[:, :, :overlap], side) | (j == 0)
        beyond_upper = jnp.swapaxes(_beyond_seam(jnp.swapaxes(errors[:, :overlap], 1, 2), side), 1, 2) | (i == 0)
        shown = jnp.where((beyond_left & beyond_upper)[..., None], patch, there)
        return lax.dynamic_update_slice(canvas, shown, place), None

    canvas, _ = lax.scan(lay, jnp.zeros_like(padded), (jnp.asarray(starts, jnp.int32), chosen))
    return canvas[:, :rows, :columns].astype(dtype)


def _nearest(tiles: Float[Array, "T D"], patches: Float[Array, "P D"], neighbors: int) -> Int32[Array, "T N"]:
    """Which patches are the nearest to each tile, the very nearest first."""
    squares = jnp.sum(patches**2, axis=1)

    def nearest(tile: Array) -> Array:
        # But for the tile's own square, which is the same for all.
        return lax.top_k(2 * jnp.dot(patches, tile, precision=lax.Precision.HIGHEST) - squares, neighbors)[1]

    return lax.map(nearest, tiles, batch_size=max(_ENTRIES // len(patches), 1))


def minimum_error_seam(errors: Float[Array, "B L O"]) -> Int32[Array, "B L"]:
    """The path of the least sum of errors along an overlap, which moves by one place at most from one step to the next.

    There are L steps along the overlap and O places across. The path is the place at each step, the lower one of two
    that are as good.

    Reference:
      Efros and Freeman, Image Quilting for Texture Synthesis and Transfer, 2001, section 2.1.
    """
    steps = jnp.moveaxis(errors, 1, 0)
    # The least sums from the start to each place.
    sums = [steps[0]]
    for step in steps[1:]:
        sides = jnp.pad(sums[-1], ((0, 0), (1, 1)), constant_values=jnp.inf)
        sums.append(step + jnp.minimum(sums[-1], jnp.minimum(sides[:, :-2], sides[:, 2:])))
    places = jnp.arange(errors.shape[2], dtype=jnp.int32)[None]
    seam = [jnp.argmin(sums[-1], axis=1).astype(jnp.int32)]
    for values in sums[-2::-1]:
        near = jnp.abs(places - seam[-1][:, None]) <= 1
        seam.append(jnp.argmin(jnp.where(near, values, jnp.inf), axis=1).astype(jnp.int32))
    return jnp.stack(seam[::-1], axis=1)


def _beyond_seam(errors: Float[Array, "B L O"], side: int) -> Array:
    """Of L x `side` pixels those on the seam and beyond it."""
    return jnp.arange(side, dtype=jnp.int32)[None, None] >= minimum_error_seam(errors)[:, :, None]


def local_means(images: Images, *rest: Any) -> Images:
    """The mean of each pixel and its eight neighbors: the substitute for a defense-aware attack on `quilt`.

    The border is repeated outside of the image. The keys and patches that `quilt` takes are not used.
    """
    del rest
    return jnp.mean(jnp.stack(neighborhoods(images, 3, 3, "edge")), axis=0)


def prepare_patches(
    images: Array, key: Key[Array, ""], *, num_patches: int = 10_000, patch: int = 5
) -> tuple[tuple[Array, ...], dict[str, Any]]:
    """The patches of `patch_database`, and no settings."""
    return (patch_database(jnp.asarray(images), key, num_patches=num_patches, patch=patch),), {}


def random_crop(images: Images, keys: Keys, *, size: int) -> Images:
    """Cuts a square out of each image and scales it bilinearly to the size of the image.

    The side of the square is `size` pixels, from 1 to the shorter of the image's. Its place is uniform within the
    image, in fractions of a pixel. Gradients pass.

    Departures from the paper:
      Crops are scaled to the classifier's size in one step, not to `size` pixels first.
    """
    check_images("a random crop", images)
    rows, columns = images.shape[1:3]
    if not 1 <= size <= min(rows, columns):
        raise ValueError(f"size must be from 1 to {min(rows, columns)}, got {size}")
    room = np.array([rows - size, columns - size], np.float32)
    scale = np.array([rows / size, columns / size], np.float32)

    def crop(image: Array, key: Array) -> Array:
        start = room * jax.random.uniform(key, (2,), jnp.float32)
        shape, move = image.shape, -scale * start
        return jax.image.scale_and_translate(image, shape, (0, 1), jnp.asarray(scale), move, "linear", antialias=False)

    return jax.vmap(crop)(images, keys)


@dataclasses.dataclass(frozen=True)
class _CropEnsemble:
    size: int
    num_crops: int

    def __call__(self, logits_fn: LogitsFn, images: Array, keys: Array) -> Array:
        draws = jax.vmap(lambda key: jax.random.split(key, self.num_crops))(keys)
        log_probs = lambda part: jax.nn.log_softmax(logits_fn(random_crop(images, part, size=self.size)))
        found = map_draws(log_probs, jnp.moveaxis(draws, 1, 0))
        return jax.nn.logsumexp(found, axis=0) - math.log(self.num_crops)


def crop_ensemble(logits_fn: LogitsFn, *, size: int, num_crops: int = 30) -> Randomized:
    """The classifier that averages the probabilities of at least one random crop of an image, see `random_crop`.

    Guo et al. have 30 crops of 90 of 224 pixels.

    Returns:
      A random classifier whose logits are the logarithms of the mean probabilities; a pytree whose leaves are those of
      `logits_fn`.
    """
    if size < 1 or num_crops < 1:
        raise ValueError(f"an ensemble needs at least one crop of at least one pixel, got {num_crops} of {size}")
    return Randomized(jax.tree_util.Partial(_CropEnsemble(size, num_crops), as_pytree(logits_fn)))


DEFENSES = (
    declare(truncate_bit_depth, gradient="straight-through"),
    declare(total_variation, images=True, gradient="straight-through", random=True),
    declare(
        quilt,
        name="quilting",
        images=True,
        prepare=prepare_patches,
        # Which patch is near a tile depends on no single pixel. With the identity an attack would spend its budget on
        # changes that quilting removes.
        gradient="substitute",
        substitute=local_means,
        random=True,
    ),
    declare(crop_ensemble, images=True, kind="wrapper", gradient="own", averages=True, size=24),
)
