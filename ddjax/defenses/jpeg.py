"""JPEG compression as a transform of images, in JAX.

Reference:
  Guo, Rana, Cisse and van der Maaten, Countering Adversarial Images Using Input Transformations, 2018
  (arXiv 1711.00117).
  Wallace, The JPEG Still Picture Compression Standard, 1992; the standard is ITU-T T.81.
  Loeffler, Ligtenberg and Moschytz, Practical Fast 1-D DCT Algorithms with 11 Multiplications, 1989.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32

from ddjax import rounding
from ddjax.defenses.declaration import declare
from ddjax.defenses.images import Images, blocks, check_images, widened

Table = tuple[tuple[int, ...], ...]

# The quantization tables of the standard, Annex K: the steps of quality 50.
LUMINANCE: Table = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMINANCE: Table = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)

# The color transform of JFIF and its inverse in 16 bits: luminance Y, and chrominances Cb and Cr less 128.
_TO_YCC = np.rint(
    2**16 * np.array([[0.299, 0.587, 0.114], [-0.16874, -0.33126, 0.5], [0.5, -0.41869, -0.08131]])
).astype(np.int32)
_TO_RGB = np.rint(2**16 * np.array([[1, 0, 1.402], [1, -0.34414, -0.71414], [1, 1.772, 0]])).astype(np.int32)

# The left half of the orthonormal cosine transform times sqrt(8) 2^13; the right half is its mirror image, with the
# other sign in odd rows. Some entries are one off the nearest integer: they follow from the eleven constants in 13 bits
# of the fast algorithm of Loeffler et al. Codecs agree on these. With others, some coefficients in the middle between
# two steps would be rounded to another step, and their blocks would be several gray levels off.
_HALF = np.array(
    [
        (8192, 8192, 8192, 8192),
        (11363, 9633, 6437, 2260),
        (10703, 4433, -4433, -10703),
        (9633, -2259, -11362, -6436),
        (8192, -8192, -8192, 8192),
        (6437, -11362, 2261, 9633),
        (4433, -10704, 10704, -4433),
        (2260, -6436, 9633, -11363),
    ],
    np.int32,
)
_COSINES = np.concatenate([_HALF, _HALF[:, ::-1] * np.array([[1], [-1]] * 4, np.int32)], axis=1)


def quantization_table(table: Table, quality: int) -> np.ndarray:
    """The steps of a quality, integers from 1 to 255, by the rule of the Independent JPEG Group."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return np.clip((np.asarray(table, np.int32) * percent + 50) // 100, 1, 255)


def jpeg(images: Images, *, quality: int = 75, subsampling: bool = True) -> Images:
    """Compresses images as a baseline JPEG file does, and decompresses them.

    Values are rounded to 8 bits first, as a file holds them. The rest is the integer arithmetic of libjpeg, with equal
    values to the bit. The file itself is left out: the coding of the quantized coefficients is lossless. Rounding makes
    the gradient zero everywhere.

    Args:
      images: within [0, 1]; color of three channels or gray of one.
      quality: from 1, the coarsest, to 100.
      subsampling: halves the resolution of the chrominances (4:2:0), as codecs do by default.

    Reference:
      Guo et al., 2018 (arXiv 1711.00117), where the quality is 75.
    """
    check_images("JPEG", images)
    if not 1 <= quality <= 100:
        raise ValueError(f"quality must be from 1 to 100, got {quality}")
    rows, columns, channels = images.shape[1:]
    if channels not in (1, 3):
        raise ValueError(f"JPEG needs images of one or three channels, got {channels}")
    wide = widened(images)
    values = jnp.clip(jnp.round(255 * wide), 0, 255).astype(jnp.int32)
    luminance, chrominance = (quantization_table(table, quality) for table in (LUMINANCE, CHROMINANCE))
    if channels == 1:
        decoded = 128 + _quantize(values - 128, luminance)
    else:
        # The codec rounds a half of a luminance up, and of a chrominance down.
        bias = np.array([2**15, 2**15 - 1, 2**15 - 1], np.int32)[None, None, None]
        planes = (jnp.einsum("kc,bijc->bijk", _TO_YCC, values) + bias) >> 16
        bright, color = 128 + _quantize(planes[..., :1] - 128, luminance), planes[..., 1:]
        color = _quantize(_downsample(color) if subsampling else color, chrominance)
        if subsampling:
            color = _upsample(color[:, :, : -(-columns // 2)])[:, :rows, :columns]
        planes = jnp.concatenate([bright, color], axis=3)
        decoded = (jnp.einsum("ck,bijk->bijc", _TO_RGB, planes) + 2**15) >> 16
    return rounding.round_to_levels(decoded.astype(wide.dtype) / 255, 256).astype(images.dtype)


def without_rounding(images: Images, *, subsampling: bool = True) -> Images:
    """The linear part of `jpeg`, without its rounding: the chrominances lose half of their resolution.

    The substitute for a defense-aware attack, see `ddjax.bpda`. With the identity an attack would spend its budget on
    the colors of single pixels, which subsampling removes. Values may be slightly outside of [0, 1].
    """
    check_images("JPEG", images)
    if images.shape[3] == 1 or not subsampling:
        return images
    planes = jnp.einsum("kc,bijc->bijk", jnp.asarray(_TO_YCC / 2**16, images.dtype), images)
    bright, color = planes[..., :1], planes[..., 1:]
    color = _pad(color, 2, 2)
    means = jnp.mean(blocks(color, 2), axis=(2, 4))
    color = jax.image.resize(means, color.shape, "linear")[:, : images.shape[1], : images.shape[2]]
    planes = jnp.concatenate([bright, color], axis=3)
    return jnp.einsum("ck,bijk->bijc", jnp.asarray(_TO_RGB / 2**16, images.dtype), planes)


def _pad(planes: Array, rows: int, columns: int) -> Array:
    """Repeats the last row and column up to multiples of these."""
    pads = [(0, -side % multiple) for side, multiple in zip(planes.shape[1:3], (rows, columns), strict=True)]
    return jnp.pad(planes, ((0, 0), *pads, (0, 0)), mode="edge")


def _shift(values: Array, bits: int) -> Array:
    """Divides by a power of two and rounds."""
    return (values + 2 ** (bits - 1)) >> bits


def _quantize(planes: Int32[Array, "B h w c"], table: np.ndarray) -> Int32[Array, "B h w c"]:
    """To the quantized coefficients of each block and back; of 8-bit values less 128."""
    rows, columns = planes.shape[1:3]
    padded = _pad(planes, 8, 8)
    # Two more bits are kept between the two passes. Coefficients come as eighths, with the means of blocks exact.
    of_rows = _shift(jnp.einsum("lj,bminjc->bminlc", _COSINES, blocks(padded, 8)), 11)
    eighths = _shift(jnp.einsum("ki,bminlc->bmknlc", _COSINES, of_rows), 15)
    steps = jnp.asarray(table)[None, None, :, None, :, None]
    levels = jnp.sign(eighths) * ((jnp.abs(eighths) + 4 * steps) // (8 * steps))
    of_columns = _shift(jnp.einsum("ki,bmknlc->bminlc", _COSINES, levels * steps), 11)
    restored = _shift(jnp.einsum("lj,bminlc->bminjc", _COSINES, of_columns), 18)
    return jnp.clip(restored.reshape(padded.shape)[:, :rows, :columns], -128, 127)


def _downsample(planes: Int32[Array, "B H W c"]) -> Int32[Array, "B h w c"]:
    """The means of 2 x 2 pixels; a half goes down in one column and up in the next."""
    # The codec fills its blocks to the right before it takes the means, and downward after.
    padded = _pad(planes, 2, 16)
    total = jnp.sum(blocks(padded, 2), axis=(2, 4), dtype=jnp.int32)
    bias = 1 + jnp.arange(total.shape[2], dtype=jnp.int32) % 2
    return (total + bias[None, None, :, None]) >> 2


def _upsample(planes: Int32[Array, "B h w c"]) -> Int32[Array, "B H W c"]:
    """Twice the size by a triangle filter: three quarters of the near pixel and one of the far."""
    # The codec does not filter what is so narrow.
    if planes.shape[2] <= 2:
        return jnp.repeat(jnp.repeat(planes, 2, axis=1), 2, axis=2)
    for axis in (1, 2):
        # At the ends, the far pixel is the near one.
        at, last = np.arange(planes.shape[axis]), planes.shape[axis] - 1
        before, after = (jnp.take(planes, np.clip(at + step, 0, last), axis=axis) for step in (-1, 1))
        shape = [side * (1 + (other == axis)) for other, side in enumerate(planes.shape)]
        planes = jnp.stack([3 * planes + before, 3 * planes + after], axis=axis + 1).reshape(shape)
    bias = 8 - jnp.arange(planes.shape[2], dtype=jnp.int32) % 2
    return (planes + bias[None, None, :, None]) >> 4


DEFENSES = (declare(jpeg, images=True, gradient="substitute", substitute=without_rounding),)
