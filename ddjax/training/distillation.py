"""Soft labels of a teacher, and inputs with noise for them."""

from typing import Any

import jax
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Key, Num

from ddjax.attacks.problem import Bounds
from ddjax.checks import check_number
from ddjax.classifier import LogitsFn
from ddjax.rounding import to_float
from ddjax.training.step import Scalar


def soft_labels(
    logits_fn: LogitsFn, inputs: Num[Array, "N ..."], temperature: Scalar, *, batch_size: int = 1000
) -> Float[Array, "N K"]:
    """The teacher's probabilities at a temperature, `softmax(logits / temperature)`, for each example.

    Args:
      logits_fn: the teacher, with dropout off; logits, not probabilities.
      inputs: the training set, uint8 or floats.
      temperature: the one the teacher was trained at.
      batch_size: how many examples go through the network at a time.

    Reference:
      Papernot et al., Distillation as a Defense, 2016 (arXiv 1511.04508).
    """

    def label(one_input: Array) -> Array:
        return soft_labels_of_batch((logits_fn, temperature), one_input[None])[0]

    return lax.map(label, inputs, batch_size=min(batch_size, inputs.shape[0]))


def soft_labels_of_batch(shared: Any, inputs: Num[Array, "B ..."]) -> Float[Array, "B K"]:
    """`soft_labels` of one batch, for `parallel.Evaluator`; `shared` are the teacher and the temperature."""
    logits_fn, temperature = shared
    return jax.nn.softmax(logits_fn(to_float(inputs)) / temperature)


def with_noise(
    images: Num[np.ndarray, "N ..."], std: float, key: Key[Array, ""], bounds: Bounds = (0.0, 1.0)
) -> Num[np.ndarray, "N ..."]:
    """Inputs with small random noise, for soft labels that also describe the surroundings of an input.

    The noise is normal, with a standard deviation of at least 0 on inputs within `bounds`, numbers or arrays that
    broadcast against one input. The results are on the host, within the bounds and of the dtype of the inputs; uint8
    ones are rounded.

    Raises:
      ValueError: when the standard deviation is negative or not finite.
    """
    check_number("std", std, least=0.0)
    noise = np.asarray(jax.random.normal(key, images.shape, np.float32))
    noisy = np.clip(np.asarray(to_float(images)) + np.float32(std) * noise, *bounds)
    return np.rint(255 * noisy).astype(np.uint8) if images.dtype == np.uint8 else noisy.astype(images.dtype)
