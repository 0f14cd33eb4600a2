"""What defenses of images share: the check of shapes, and float32 inside of a defense of narrower inputs."""

import jax.numpy as jnp
from jaxtyping import Array


def check_images(name: str, inputs: Array) -> None:
    """Refuses inputs that are no images, for a defense that works on pixels, blocks or windows.

    Args:
      name: of the defense.
      inputs: a batch.

    Raises:
      ValueError: for another shape than `[B, H, W, C]`.
    """
    if inputs.ndim != 4:
        raise ValueError(f"{name} works on images [B, H, W, C], got inputs of the shape {tuple(inputs.shape)}")


def widened(inputs: Array) -> Array:
    """The inputs in float32, or wider where they are; bfloat16 and float16 lose too much inside of a defense."""
    return inputs.astype(jnp.float32) if inputs.dtype.itemsize < 4 else inputs
