"""Defenses that transform what the classifier sees: one paper, one file.

A defense is a function of images, a `ddjax.classifier.Transform`, or one that asks the classifier about several such.
As it is deployed it is `classifier.transformed(logits_fn, transform)` or, where it is random,
`classifier.randomized(logits_fn, transform)`; an attack that knows it looks through `aware` and `attacks.expectation`.
"""

import inspect

from ddjax.attacks import bpda
from ddjax.classifier import Transform, transform
from ddjax.defenses import feature_distillation, squeezing

# The transforms by the name that launchers use.
TRANSFORMS = {
    **{name: function for name, (function, _) in squeezing.SQUEEZERS.items()},
    "feature_distillation": feature_distillation.distill_features,
    "feature_distillation_grid": feature_distillation.distill_and_distort,
    "random_grid": feature_distillation.random_grid,
    "random_jitter": feature_distillation.random_jitter,
}
# Those without a useful gradient, which about give back what they are given.
_SHATTERED = (squeezing.reduce_bit_depth, squeezing.binarize, feature_distillation.distill_features)


def is_random(defense: Transform) -> bool:
    """Whether a transform of `TRANSFORMS` takes keys; of one that wraps another, such as BPDA's, it says nothing."""
    return "keys" in inspect.signature(defense.function).parameters


def aware(defense: Transform) -> Transform:
    """The transform as an attack that knows it looks through it: its own gradient where it has one, else BPDA's."""
    if defense.function in _SHATTERED:
        return bpda(defense)
    if defense.function is feature_distillation.distill_and_distort:
        return transform(defense.function, **dict(defense.settings) | {"straight_through": True})
    return defense
