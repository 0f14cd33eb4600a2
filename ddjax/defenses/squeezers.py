"""Squeezers: coarser or smoother images, the transforms of feature squeezing.

Reference:
  Xu, Evans and Qi, Feature Squeezing: Detecting Adversarial Examples in Deep Neural Networks, 2018 (arXiv 1704.01155).
"""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from ddjax import rounding
from ddjax.checks import check_number
from ddjax.classifier import Transform, transform
from ddjax.defenses.declaration import declare
from ddjax.defenses.images import Images, check_images, neighborhoods, surrounded, widened


def reduce_bit_depth(inputs: Float[Array, "B ..."], *, bits: int = 1) -> Float[Array, "B ..."]:
    """Rounds every value to the nearest of 2^bits equally spaced ones, for 1 to 16 bits.

    The gradient is zero everywhere.
    """
    if not 1 <= bits <= 16:
        raise ValueError(f"bits must be from 1 to 16, got {bits}")
    return rounding.round_to_levels(inputs, 2**bits)


def binarize(inputs: Float[Array, "B ..."], *, threshold: float = 0.5) -> Float[Array, "B ..."]:
    """One above the threshold, a finite number, and zero at and below it. The gradient is zero everywhere."""
    check_number("threshold", threshold)
    return (inputs > threshold).astype(inputs.dtype)


def median_filter(images: Images, *, height: int = 2, width: int = 2) -> Images:
    """The median of each pixel's neighborhood, in each channel.

    As `scipy.ndimage.median_filter` with mode `"reflect"`: the median of an even number of values is the upper of the
    two in the middle, an even side reaches further up or to the left, and images are mirrored at their edges. Gradients
    pass to the pixel that is the median. The sides of the neighborhood are at least 1.
    """
    check_images("a median filter", images)
    if height < 1 or width < 1:
        raise ValueError(f"a neighborhood must have sides of at least 1, got {height} x {width}")
    windows = neighborhoods(images, height, width, "symmetric")
    return jnp.sort(jnp.stack(windows, axis=-1), axis=-1)[..., len(windows) // 2]


def non_local_means(images: Images, *, search: int = 13, block: int = 3, strength: float = 2.0) -> Images:
    """Averages over pixels whose surroundings look alike.

    The weight of a pixel q for a pixel p is exp(-d(p, q) / h^2), d the mean squared difference of the two blocks around
    them over pixels and channels, in units of 8-bit levels.

    Args:
      images: within [0, 1].
      search: the side of the square of pixels q around p; odd.
      block: the side of the blocks that are compared; odd.
      strength: h, above 0.

    Reference:
      Buades, Coll and Morel, A Non-Local Algorithm for Image Denoising, 2005.

    Departures from the paper:
      The paper uses OpenCV's, which works on 8-bit images in the Lab space with weights from a table; this is the
      formula, and agrees approximately.
    """
    check_images("non-local means", images)
    if search < 1 or block < 1 or search % 2 == 0 or block % 2 == 0:
        raise ValueError(f"search and block must be odd, got {search} and {block}")
    check_number("strength", strength, above=0.0)
    wide, channels = widened(images), images.shape[3]
    padded = surrounded(wide, search, search, "symmetric")
    patch = (1, block, block, 1)

    def add(sums: tuple[Array, Array], offset: Array) -> tuple[tuple[Array, Array], None]:
        total, weights = sums
        zero = jnp.zeros_like(offset[0])
        other = lax.dynamic_slice(padded, (zero, offset[0], offset[1], zero), images.shape)
        squared = jnp.sum((255 * (wide - other)) ** 2, axis=3, keepdims=True)
        start = np.zeros((), squared.dtype)
        around = surrounded(squared, block, block, "symmetric")
        distance = lax.reduce_window(around, start, lax.add, patch, (1, 1, 1, 1), "VALID")
        weight = jnp.exp(-distance / (block * block * channels * strength**2))
        return (total + weight * other, weights + weight), None

    offsets = jnp.asarray([(i, j) for i in range(search) for j in range(search)], jnp.int32)
    start = jnp.zeros_like(wide), jnp.zeros_like(wide[..., :1])
    # The backward pass keeps nothing but the sums: a gradient costs one more forward pass.
    (total, weights), _ = lax.scan(jax.checkpoint(add), start, offsets)
    return (total / weights).astype(images.dtype)


def resample(images: Images, *, factor: int = 2) -> Images:
    """Scales the images down by a factor and up again, bilinearly.

    Sides are divided by the factor, at least 1, and rounded down, which must leave a pixel.
    """
    check_images("resampling", images)
    rows, columns = images.shape[1:3]
    if factor < 1 or min(rows, columns) // factor < 1:
        raise ValueError(f"images of {rows} x {columns} cannot be scaled down by {factor}")
    small = (images.shape[0], rows // factor, columns // factor, images.shape[3])
    return jax.image.resize(jax.image.resize(images, small, "bilinear"), images.shape, "bilinear")


def squeezer(name: str) -> Transform:
    """Makes a squeezer by name: `bit_depth_1`, `binary_0.5`, `median_2_2`, `non_local_means_13_3_2`, `resample_2`.

    The name is that of a declared squeezer, with all its settings in their order, or with none.

    Raises:
      ValueError: for an unknown name, or settings that are no numbers or too many.
    """
    for declared in DEFENSES:
        if name != declared.name and not name.startswith(f"{declared.name}_"):
            continue
        numbers, settings = name.removeprefix(declared.name).split("_")[1:], declared.parameters
        if len(numbers) in (0, len(settings)):
            pairs = zip(settings.items(), numbers, strict=False)
            with contextlib.suppress(ValueError):
                return transform(declared.function, **{key: type(each.default)(n) for (key, each), n in pairs})
    forms = ("_".join([declared.name, *map(str.upper, declared.parameters)]) for declared in DEFENSES)
    raise ValueError(f"unknown squeezer {name!r}; known: {', '.join(forms)}")


DEFENSES = (
    declare(reduce_bit_depth, name="bit_depth", gradient="straight-through"),
    declare(binarize, name="binary", gradient="straight-through"),
    declare(median_filter, name="median", images=True, gradient="own"),
    declare(non_local_means, images=True, gradient="own"),
    declare(resample, images=True, gradient="own"),
)
