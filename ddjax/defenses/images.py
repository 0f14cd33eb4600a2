"""What defenses of images share: types, the check of shapes, float32 inside, blocks and neighborhoods of pixels."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

Images = Float[Array, "B H W C"]
# For a defense that takes inputs of any shape.
Inputs = Float[Array, "B ..."]
# One for each image.
Keys = Key[Array, " B"]
Labels = Int[Array, " B"]
# A number that may be traced.
Scalar = float | Float[Array, ""]


def check_images(name: str, inputs: Array) -> None:
    """Raises ValueError for inputs that are no images, for a defense that works on pixels, blocks or windows."""
    if inputs.ndim != 4:
        raise ValueError(f"{name} works on images [B, H, W, C], got inputs of the shape {tuple(inputs.shape)}")


def widened(inputs: Array) -> Array:
    """The inputs in float32, or wider where they are; bfloat16 and float16 lose too much inside of a defense."""
    return inputs.astype(jnp.float32) if inputs.dtype.itemsize < 4 else inputs


def blocks(images: Array, side: int) -> Array:
    """Splits images into square blocks, whose side divides theirs: `[B, rows of blocks, side, columns, side, C]`."""
    batch, rows, columns, channels = images.shape
    return images.reshape(batch, rows // side, side, columns // side, side, channels)


def surrounded(images: Array, height: int, width: int, mode: str) -> Array:
    """Pads images by what a neighborhood of this size reaches beyond them; an even side reaches further up or left."""
    sides = [(side // 2, (side - 1) // 2) for side in (height, width)]
    return jnp.pad(images, ((0, 0), *sides, (0, 0)), mode=mode)


def neighborhoods(images: Array, height: int, width: int, mode: str) -> list[Array]:
    """The padded images shifted by each offset of a neighborhood of this size."""
    rows, columns = images.shape[1:3]
    padded = surrounded(images, height, width, mode)
    return [padded[:, i : i + rows, j : j + columns] for i in range(height) for j in range(width)]
