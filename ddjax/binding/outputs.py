"""Checks that what is called a classifier returns logits, in evaluation mode; and classifiers of probabilities."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float

from ddjax.checks import check_choice
from ddjax.classifier import LogitsFn, as_pytree

OUTPUTS = ("logits", "probabilities")
# What reports say of a classifier that is made of probabilities.
LOGARITHM = "the model returns probabilities; the attacks saw their logarithm, which has no gradient where one is 0"
# How far logits of one input may differ between a batch of one and of two, relative to the largest: some programs
# round differently by batch size, in units of the type. Dropout and batch normalization change them by far more.
_ROUNDING, _UNITS = 1e-3, 16.0


def _logarithm(logits_fn: LogitsFn, inputs: Array) -> Array:
    probabilities = logits_fn(inputs)
    return jnp.log(jnp.maximum(probabilities, jnp.finfo(probabilities.dtype).tiny))


def from_probabilities(probabilities_fn: LogitsFn) -> Partial:
    """The classifier of a model that ends in a softmax: its logits are the logarithms of the probabilities.

    They equal the model's own logits up to a constant for each input, where no probability underflows to 0. There the
    logarithm is that of the smallest normal number, and its gradient is 0. Take the logits before the softmax where
    you can.
    """
    return Partial(_logarithm, as_pytree(probabilities_fn))


def takes_logarithm(logits_fn: Any) -> bool:
    """Whether a classifier is made of probabilities, by `from_probabilities`, behind whatever else."""
    if not isinstance(logits_fn, Partial):
        return False
    return logits_fn.func is _logarithm or any(takes_logarithm(argument) for argument in logits_fn.args)


def as_logits(logits_fn: Partial, outputs: str) -> Partial:
    """The classifier of a model with such outputs, one of `OUTPUTS`.

    Raises:
      ValueError: for other outputs.
    """
    check_choice("outputs", outputs, OUTPUTS)
    return from_probabilities(logits_fn) if outputs == "probabilities" else logits_fn


def check_classifier(
    logits_fn: LogitsFn, inputs: Float[np.ndarray | Array, "B ..."], name: str = "the classifier"
) -> None:
    """Refuses what is no classifier in evaluation mode, by its logits of a few inputs.

    It compiles two small programs, and is not to be called inside of a compiled function. Attacks do not call it;
    `bind(..., example=...)` and `ddjax.evaluate` do.

    Args:
      logits_fn: the classifier.
      inputs: valid inputs; the first two are used.
      name: for errors.

    Raises:
      ValueError: for outputs that are no floats `[B, K]` with K of at least 2, without a finite one, or probabilities;
        for a model whose logits of one input depend on what else is in the batch, as in training.
    """
    first = jnp.asarray(inputs[:1])
    # Another input, if there is no second one.
    second = jnp.asarray(inputs[1:2]) if len(inputs) > 1 else first * 0.5
    # The first one twice: dropout draws the same for the first row of any batch.
    together = jnp.concatenate([first, second, first])
    shapes = jax.eval_shape(logits_fn, together)
    wanted = f"{name} must return one array of float logits [B, K], before softmax and argmax"
    if not hasattr(shapes, "shape"):
        raise ValueError(f"{wanted}, got a {type(shapes).__name__}")
    if len(shapes.shape) != 2 or shapes.shape[0] != 3 or not jnp.issubdtype(shapes.dtype, jnp.floating):
        raise ValueError(f"{wanted}, got {shapes.dtype} of shape {shapes.shape} for three inputs")
    if shapes.shape[1] < 2:
        raise ValueError(f"{name} must have at least two classes, got logits of shape {shapes.shape} for three inputs")
    program = jax.jit(lambda function, batch: function(batch))
    found, alone = (np.asarray(program(as_pytree(logits_fn), batch), np.float64) for batch in (together, first))
    is_finite = np.isfinite(found[::2]) & np.isfinite(alone)
    if not is_finite.any():
        raise ValueError(f"{name} returns logits that are not finite")
    error = max(_ROUNDING, _UNITS * float(jnp.finfo(shapes.dtype).eps))
    with np.errstate(invalid="ignore"):
        difference = np.abs(found[::2] - alone)[is_finite].max()
    if difference > error * max(1.0, np.abs(alone[np.isfinite(alone)]).max()):
        raise ValueError(
            f"{name} gives an input other logits when another one is in its batch: it is in training mode, or draws at "
            "random; switch it to evaluation, such as by train=False or model.eval()"
        )
    if not takes_logarithm(logits_fn) and (found >= 0).all() and np.abs(found.sum(axis=1) - 1).max() < error:
        raise ValueError(
            f"{name} returns probabilities, and attacks need logits: leave out its last softmax, or say "
            'bind(..., outputs="probabilities"), or --outputs=probabilities to a launcher'
        )
