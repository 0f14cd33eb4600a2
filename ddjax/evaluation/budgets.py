"""Budgets: how far an attack may move an input, in each norm, measured outside of the attack."""

from typing import Any

import numpy as np

from ddjax import metrics

# A distance may exceed its budget by this share: rounding of the norm's sum, and of inputs at the border of the ball.
_ROUNDING = 1e-4
# Common budgets for images in [0, 1]: of gray ones, as MNIST's, and of photographs, as CIFAR-10's. In L1, Tramer and
# Boneh, 2019 (arXiv 1904.13000). In L0, the share of values that Papernot et al. let JSMA change, 112 of 784.
_GRAY = {"linf": 0.3, "l2": 2.0, "l1": 10.0}
_PHOTOGRAPHS = {"linf": 8 / 255, "l2": 0.5, "l1": 2000 / 255}
_L0_SHARE = 1 / 7


def default_budgets(input_shape: tuple[int, ...]) -> dict[str, float]:
    """The common budgets in each norm: those of photographs where an image has three channels, else of gray images.

    They are for inputs in [0, 1], as tables are that `ddjax.data` scales.
    """
    is_photograph = len(input_shape) == 3 and input_shape[2] == 3
    return (_PHOTOGRAPHS if is_photograph else _GRAY) | {"l0": float(int(_L0_SHARE * np.prod(input_shape)))}


def of_norm(distances: metrics.Distances, norm: str) -> Any:
    """The distance in a norm; `"l0"` counts changed values."""
    return distances.l0_values if norm == "l0" else getattr(distances, norm)


def is_within(distance: Any, budget: Any) -> np.ndarray:
    """Whether distances are within a budget, up to rounding."""
    return np.asarray(distance) <= budget * (1 + _ROUNDING)
