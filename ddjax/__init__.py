"""Defensive distillation, the attacks that decide, and what survived, in JAX and Flax."""

from ddjax.attacks import (
    AttackResult,
    bim,
    bpda,
    carlini_wagner_l0,
    carlini_wagner_l2,
    carlini_wagner_linf,
    ddn,
    deepfool,
    expectation,
    fgsm,
    jacobian_augmentation,
    jsma,
    mim,
    pgd,
    reparameterized,
    single_draw,
    smallest_epsilon,
)
from ddjax.classifier import at_temperature, bind, in_bfloat16, normalized, randomized, transformed
from ddjax.jacobian import amplitude
from ddjax.training import distill, fit, soft_labels, train_epoch, train_step
from ddjax.version import __version__

__all__ = [
    "AttackResult",
    "__version__",
    "amplitude",
    "at_temperature",
    "bim",
    "bind",
    "bpda",
    "carlini_wagner_l0",
    "carlini_wagner_l2",
    "carlini_wagner_linf",
    "ddn",
    "deepfool",
    "distill",
    "expectation",
    "fgsm",
    "fit",
    "in_bfloat16",
    "jacobian_augmentation",
    "jsma",
    "mim",
    "normalized",
    "pgd",
    "randomized",
    "reparameterized",
    "single_draw",
    "smallest_epsilon",
    "soft_labels",
    "train_epoch",
    "train_step",
    "transformed",
]
