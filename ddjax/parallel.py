"""Evaluation of a function over more examples than fit in a batch."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def map_batches(
    fn: Callable[..., Any],
    *arrays: np.ndarray | jax.Array,
    batch_size: int,
    progress: Callable[[int], Any] | None = None,
) -> Any:
    """Applies a function of a batch to any number of examples, in batches of one static size.

    The examples are spread evenly over the fewest batches that hold them. The last batch is filled up with copies of
    its last example, whose results are dropped, so that every batch runs the same compiled program.

    Args:
      fn: takes one batch of each array and returns a pytree of arrays with the batch as first axis.
      *arrays: all with the same first axis, N >= 1.
      batch_size: the largest size of a batch.
      progress: called with the number of examples finished, after each batch.

    Returns:
      What `fn` returns, for all N examples, as NumPy arrays.

    Raises:
      ValueError: for no examples, first axes that differ, or a batch size below 1.
    """
    sizes = {len(array) for array in arrays}
    if len(sizes) != 1:
        raise ValueError(f"the arrays hold different numbers of examples: {[len(array) for array in arrays]}")
    (total,) = sizes
    if total == 0:
        raise ValueError("there are no examples to evaluate")
    if batch_size < 1:
        raise ValueError(f"the batch size must be at least 1, got {batch_size}")
    num_batches = -(-total // batch_size)
    size = -(-total // num_batches)
    pieces = []
    for start in range(0, total, size):
        rows = np.minimum(np.arange(start, start + size), total - 1)
        result = fn(*(jnp.asarray(array[rows]) for array in arrays))
        kept = min(size, total - start)
        pieces.append(jax.tree.map(lambda leaf, kept=kept: np.asarray(leaf)[:kept], result))
        if progress is not None:
            progress(kept)
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *pieces)
