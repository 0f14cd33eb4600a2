"""Attacks: one paper, one file; all with the contract of `ddjax.attacks.base`."""

from ddjax.attacks.base import AttackResult
from ddjax.attacks.gradient_sign import fgsm
from ddjax.attacks.jsma import jsma

# The attacks by the name that launchers use.
ATTACKS = {"fgsm": fgsm, "jsma": jsma}

__all__ = ["ATTACKS", "AttackResult", "fgsm", "jsma"]
