"""Attacks: one paper, one file; all with the contract of `ddjax.attacks.base`."""

from ddjax.attacks.base import AttackResult
from ddjax.attacks.carlini_wagner import carlini_wagner_l0, carlini_wagner_l2, carlini_wagner_linf
from ddjax.attacks.ddn import ddn
from ddjax.attacks.deepfool import deepfool
from ddjax.attacks.gradient_sign import fgsm
from ddjax.attacks.jsma import jsma
from ddjax.attacks.pgd import bim, mim, pgd
from ddjax.attacks.smallest_epsilon import smallest_epsilon
from ddjax.attacks.substitute import jacobian_augmentation

# The attacks by the name that launchers use.
ATTACKS = {
    "fgsm": fgsm,
    "bim": bim,
    "mim": mim,
    "pgd": pgd,
    "jsma": jsma,
    "deepfool": deepfool,
    "ddn": ddn,
    "carlini_wagner_l0": carlini_wagner_l0,
    "carlini_wagner_l2": carlini_wagner_l2,
    "carlini_wagner_linf": carlini_wagner_linf,
}

# Whose examples end at different times: on a large batch they keep as many at work as suit the device, by themselves.
KEEP_LANES = (jsma, deepfool, carlini_wagner_l0, carlini_wagner_l2, carlini_wagner_linf)

__all__ = [
    "ATTACKS",
    "KEEP_LANES",
    "AttackResult",
    "bim",
    "carlini_wagner_l0",
    "carlini_wagner_l2",
    "carlini_wagner_linf",
    "ddn",
    "deepfool",
    "fgsm",
    "jacobian_augmentation",
    "jsma",
    "mim",
    "pgd",
    "smallest_epsilon",
]
