"""Defensive distillation, the attacks that decide, and what survived, in JAX and Flax."""

from ddjax.attacks import AttackResult, fgsm, jsma
from ddjax.classifier import at_temperature, bind
from ddjax.jacobian import amplitude
from ddjax.training import distill, fit, soft_labels, train_epoch, train_step

__all__ = [
    "AttackResult",
    "amplitude",
    "at_temperature",
    "bind",
    "distill",
    "fgsm",
    "fit",
    "jsma",
    "soft_labels",
    "train_epoch",
    "train_step",
]
