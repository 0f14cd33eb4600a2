"""Randomization: images in a random size at a random place.

Reference:
  Xie et al., Mitigating Adversarial Effects Through Randomization, 2018 (arXiv 1711.01991).
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ddjax.checks import check_choice, check_number, check_whole_number
from ddjax.defenses.declaration import declare
from ddjax.defenses.images import Images, Keys, check_images

METHODS = ("bilinear", "nearest")


def resize_and_pad(
    images: Images,
    keys: Keys,
    *,
    largest: int | None = None,
    smallest: int | None = None,
    pad_value: float = 0.5,
    restore: bool = True,
    method: str = "bilinear",
) -> Float[Array, "B H2 W2 C"]:
    """Resizes each image to a random size and puts it at a random place of a larger one.

    The size, and then the offsets from above and from the left, are uniform. A size is the longer side; the shorter
    one is scaled by the same factor and rounded, for the padded image too. Gradients pass.

    Args:
      images: a batch.
      keys: one for each image.
      largest: the longer side of the padded image, which the resized one does not reach; None takes that of the image
        times 331 / 299, as the paper has it, and at least one pixel more.
      smallest: the least longer side of the resized image, at least 1 and below `largest`; None takes that of the
        image.
      pad_value: the value of the padding.
      restore: resizes the padded image to the size it had, for networks that take one size.
      method: `"bilinear"` or `"nearest"`, for all resizing. Neither smooths before it makes images smaller.

    Returns:
      Images of the size they had, or without `restore` those whose longer side is `largest`.

    Departures from the paper:
      Pixels have their centers at one half, so that resizing does not shift images.
    """
    check_images("resizing", images)
    check_choice("method", method, METHODS)
    check_number("pad_value", pad_value)
    for name, value in (("largest", largest), ("smallest", smallest)):
        if value is not None:
            check_whole_number(name, value, least=1)
    rows, columns = images.shape[1:3]
    side = max(rows, columns)
    most = max(round(side * 331 / 299), side + 1) if largest is None else largest
    least = side if smallest is None else smallest
    if _scaled(min(rows, columns), least, side) < 1 or least >= most:
        raise ValueError(f"sides must be at least 1 and smallest below largest, got {least} and {most}")
    whole = (_scaled(rows, most, side), _scaled(columns, most, side))

    def place(image: Array, key: Array) -> Array:
        of_size, *of_offsets = jax.random.split(key, 3)
        drawn = jax.random.randint(of_size, (), least, most)
        sizes = (_scaled(rows, drawn, side), _scaled(columns, drawn, side))
        # The upper end of the range is excluded, and an image may end where the larger one does.
        offsets = [
            jax.random.randint(half, (), 0, total - size + 1)
            for half, total, size in zip(of_offsets, whole, sizes, strict=True)
        ]
        at = [jnp.arange(total) - offset for total, offset in zip(whole, offsets, strict=True)]
        if method == "nearest":
            # In integers: the place that holds the center of the new pixel.
            sources = [
                jnp.clip((2 * place + 1) * length // (2 * size), 0, length - 1)
                for place, length, size in zip(at, (rows, columns), sizes, strict=True)
            ]
            resized = image[sources[0]][:, sources[1]]
        else:
            scale = jnp.stack([size / length for size, length in zip(sizes, (rows, columns), strict=True)])
            scale, shift = scale.astype(image.dtype), jnp.stack(offsets).astype(image.dtype)
            shape = (*whole, image.shape[2])
            resized = jax.image.scale_and_translate(image, shape, (0, 1), scale, shift, method, antialias=False)
        inside = [(place >= 0) & (place < size) for place, size in zip(at, sizes, strict=True)]
        return jnp.where((inside[0][:, None] & inside[1][None, :])[:, :, None], resized, pad_value)

    padded = jax.vmap(place)(images, keys)
    return jax.image.resize(padded, images.shape, method=method, antialias=False) if restore else padded


def _scaled(length: int, wanted: Any, side: int) -> Any:
    """A length times `wanted / side`, rounded half up, in integers."""
    return (2 * length * wanted + side) // (2 * side)


DEFENSES = (declare(resize_and_pad, images=True, gradient="own", random=True),)
