"""Attacks: one paper a file, each with the contract of `ddjax.attacks.contract`.

A file declares its attacks at its end. `ATTACKS` collects these declarations: launchers, tests and documentation read
them from there. `register` adds a user's own.
"""

import sys

from ddjax.attacks.carlini_wagner import carlini_wagner_l0, carlini_wagner_l2, carlini_wagner_linf
from ddjax.attacks.contract import Attack, AttackResult, declare
from ddjax.attacks.decoupled import ddn
from ddjax.attacks.gradient_sign import fgsm
from ddjax.attacks.linearized import deepfool
from ddjax.attacks.problem import Problem, prepare
from ddjax.attacks.projected_gradient import bim, mim, pgd
from ddjax.attacks.radius_search import smallest_epsilon
from ddjax.attacks.saliency import jsma
from ddjax.attacks.substitute import jacobian_augmentation
from ddjax.registry import Registry

ATTACKS: Registry[Attack] = Registry("attack", "ATTACKS")
ATTACKS.collect(sys.modules[__name__])
register = ATTACKS.register

__all__ = [
    "ATTACKS",
    "Attack",
    "AttackResult",
    "Problem",
    "bim",
    "carlini_wagner_l0",
    "carlini_wagner_l2",
    "carlini_wagner_linf",
    "ddn",
    "declare",
    "deepfool",
    "fgsm",
    "jacobian_augmentation",
    "jsma",
    "mim",
    "pgd",
    "prepare",
    "register",
    "smallest_epsilon",
]
