"""Halving and doubling the resolution without loss: blocks of 2 x 2 pixels to channels, and back."""

from jaxtyping import Array, Float


def space_to_depth(images: Float[Array, "B H W C"]) -> Float[Array, "B H2 W2 C4"]:
    """Stacks the pixels of each block of 2 x 2 along the channels; the height and the width must be even."""
    batch, height, width, channels = images.shape
    blocks = images.reshape(batch, height // 2, 2, width // 2, 2, channels).swapaxes(2, 3)
    return blocks.reshape(batch, height // 2, width // 2, 4 * channels)


def depth_to_space(features: Float[Array, "B H W C4"]) -> Float[Array, "B H2 W2 C"]:
    """The inverse of `space_to_depth`."""
    batch, height, width, channels = features.shape
    blocks = features.reshape(batch, height, width, 2, 2, channels // 4).swapaxes(2, 3)
    return blocks.reshape(batch, 2 * height, 2 * width, channels // 4)
