"""Defensive distillation, the attacks that decide, and what survived, in JAX and Flax."""

from ddjax.attacks import (
    AttackResult,
    bim,
    carlini_wagner_l0,
    carlini_wagner_l2,
    carlini_wagner_linf,
    ddn,
    deepfool,
    fgsm,
    jacobian_augmentation,
    jsma,
    mim,
    pgd,
    smallest_epsilon,
)
from ddjax.binding import bind, bind_function, check_classifier, from_probabilities
from ddjax.classifier import (
    Randomized,
    Transform,
    at_temperature,
    bpda,
    expectation,
    in_bfloat16,
    normalized,
    randomized,
    reparameterized,
    single_draw,
    transform,
    transformed,
)
from ddjax.evaluation import evaluate, judge
from ddjax.jacobian import amplitude
from ddjax.torch_import import from_torch, sequential
from ddjax.training import TrainState, distill, soft_labels, train, train_epoch, train_step
from ddjax.version import __version__
from ddjax.weights import load_state_dict, load_weights

__all__ = [
    "AttackResult",
    "Randomized",
    "TrainState",
    "Transform",
    "__version__",
    "amplitude",
    "at_temperature",
    "bim",
    "bind",
    "bind_function",
    "bpda",
    "carlini_wagner_l0",
    "carlini_wagner_l2",
    "carlini_wagner_linf",
    "check_classifier",
    "ddn",
    "deepfool",
    "distill",
    "evaluate",
    "expectation",
    "fgsm",
    "from_probabilities",
    "from_torch",
    "in_bfloat16",
    "jacobian_augmentation",
    "jsma",
    "judge",
    "load_state_dict",
    "load_weights",
    "mim",
    "normalized",
    "pgd",
    "randomized",
    "reparameterized",
    "sequential",
    "single_draw",
    "smallest_epsilon",
    "soft_labels",
    "train",
    "train_epoch",
    "train_step",
    "transform",
    "transformed",
]
