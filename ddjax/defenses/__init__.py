"""Defenses: one paper, one file.

Most are functions of images, a `ddjax.classifier.Transform`. As it is deployed it is
`classifier.transformed(logits_fn, transform)` or, where it is random, `classifier.randomized(logits_fn, transform)`; an
attack that knows it looks through `aware` and `attacks.expectation`. Some make of a classifier another one themselves:
`WRAPPERS`. Others are detectors beside the classifier, `squeezing` and `lid`, or ways to train it:
`thermometer`.
"""

import inspect

from ddjax.classifier import Transform, bpda, transform
from ddjax.defenses import (
    activation_pruning,
    defense_gan,
    feature_distillation,
    input_transformations,
    jpeg,
    pixel_defend,
    randomization,
    squeezing,
)

# The transforms by the name that launchers use.
TRANSFORMS = {
    **{name: function for name, (function, _) in squeezing.SQUEEZERS.items()},
    "feature_distillation": feature_distillation.distill_features,
    "feature_distillation_grid": feature_distillation.distill_and_distort,
    "random_grid": feature_distillation.random_grid,
    "random_jitter": feature_distillation.random_jitter,
    "truncate_bit_depth": input_transformations.truncate_bit_depth,
    "jpeg": jpeg.jpeg,
    "total_variation": input_transformations.total_variation,
    "resize_and_pad": randomization.resize_and_pad,
}
# From a classifier to another one; quilting takes its patches, too, PixelDefend its density, Defense-GAN its generator.
WRAPPERS = {
    "activation_pruning": activation_pruning.pruned,
    "crop_ensemble": input_transformations.crop_ensemble,
    "defense_gan": defense_gan.defended,
    "pixel_defend": pixel_defend.defended,
    "quilting": input_transformations.quilted,
}
# Those without a useful gradient, which about give back what they are given.
_SHATTERED = (
    squeezing.reduce_bit_depth,
    squeezing.binarize,
    feature_distillation.distill_features,
    input_transformations.truncate_bit_depth,
    input_transformations.total_variation,
)


def is_random(defense: Transform) -> bool:
    """Whether a transform of `TRANSFORMS` takes keys; of one that wraps another, such as BPDA's, it says nothing."""
    return "keys" in inspect.signature(defense.function).parameters


def aware(defense: Transform) -> Transform:
    """The transform as an attack that knows it looks through it: its own gradient where it has one, else BPDA's."""
    if defense.function is jpeg.jpeg:
        settings = {name: value for name, value in defense.settings if name == "subsampling"}
        return bpda(defense, transform(jpeg.without_rounding, **settings))
    if defense.function in _SHATTERED:
        return bpda(defense)
    if defense.function is feature_distillation.distill_and_distort:
        return transform(defense.function, **dict(defense.settings) | {"straight_through": True})
    return defense
