"""How each peer's attacks are called, with the settings that ours have."""

import importlib
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from . import peers

Settings = Mapping[str, Any]


class Adapter(NamedTuple):
    """How a peer's attack is called.

    Attributes:
      name: of the class or function that does it.
      settings: its arguments. A string names the setting of ours that it gets, a function makes it of all of them, and
        anything else is the value itself.
      note: what is not equal.
      most: how many examples it is given at most, because it is slow.
    """

    name: str
    settings: Settings
    note: str
    most: int | None


def _adapter(name: str, *same: str, note: str = "", most: int | None = None, **settings: Any) -> Adapter:
    """An adapter; `same` are settings that have the same name there."""
    return Adapter(name, {**{setting: setting for setting in same}, **settings}, note, most)


def make_call(
    attack: str, peer: str, network: peers.Network, settings: Settings, targeted: bool
) -> Callable[[Any, Any, Any], Any]:
    """Makes a peer's attack ready.

    Args:
      attack: a key of `ADAPTERS`.
      peer: a key of `ADAPTERS[attack]`.
      network: what is attacked.
      settings: those of our attack, and `batch`.
      targeted: whether the targets are aimed at.

    Returns:
      A function of images `[B, C, H, W]`, labels and targets, all tensors, to the adversarial images.
    """
    adapter = ADAPTERS[attack][peer]
    known = {**settings, "num_classes": network.num_classes, "num_features": math.prod(network.image_shape)}
    values = {
        name: value(known) if callable(value) else known[value] if isinstance(value, str) else value
        for name, value in adapter.settings.items()
    }
    call = _LIBRARIES[peer](adapter.name, network, values, targeted)
    return lambda images, labels, targets: call(images, targets if targeted else labels)


def _foolbox(name: str, network: peers.Network, values: dict[str, Any], targeted: bool) -> Any:
    import foolbox  # pyright: ignore[reportMissingImports]

    wrapped = foolbox.PyTorchModel(network.module, bounds=(0, 1), device=peers.device())
    criterion = foolbox.criteria.TargetedMisclassification if targeted else foolbox.criteria.Misclassification
    # An attack that minimizes the distance has no radius.
    radius = values.pop("epsilons", None)
    attack = getattr(foolbox.attacks, name)(**values)
    return lambda images, classes: attack(wrapped, images, criterion(classes), epsilons=radius)[1]


def _torchattacks(name: str, network: peers.Network, values: dict[str, Any], targeted: bool) -> Any:
    attack = getattr(importlib.import_module("torchattacks"), name)(network.module, **values)
    if targeted:
        attack.set_mode_targeted_by_label(quiet=True)
    return attack


def _adv_lib(name: str, network: peers.Network, values: dict[str, Any], targeted: bool) -> Any:
    attack = getattr(importlib.import_module("adv_lib.attacks"), name)
    return lambda images, classes: attack(network.module, images, classes, targeted=targeted, **values)


def _art(name: str, network: peers.Network, values: dict[str, Any], targeted: bool) -> Any:
    from art.attacks import evasion  # pyright: ignore[reportMissingImports]
    from art.estimators.classification import PyTorchClassifier  # pyright: ignore[reportMissingImports]
    from torch import nn  # pyright: ignore[reportMissingImports]

    classifier = PyTorchClassifier(
        network.module,
        nn.CrossEntropyLoss(),
        input_shape=network.image_shape,
        nb_classes=network.num_classes,
        clip_values=(0.0, 1.0),
        device_type="gpu" if peers.device() == "cuda" else "cpu",
    )
    attack = getattr(evasion, name)(classifier, **values)
    # It takes arrays on the host and gives them back; what that costs is a part of it.
    return lambda images, classes: attack.generate(images.cpu().numpy(), classes.cpu().numpy())


def _batched_torch(name: str, network: peers.Network, values: dict[str, Any], targeted: bool) -> Any:
    """An attack as one would write it in PyTorch."""
    theirs = peers.torch_training()
    attack, find_pair = getattr(theirs, name), theirs.best_pair_of_logits
    values |= {"formatted": network.memory_format, "center": 0.0}
    return lambda images, classes: attack(network.module, images, classes, find_pair, **values)


_LIBRARIES: dict[str, Callable[[str, peers.Network, dict[str, Any], bool], Any]] = {
    "foolbox": _foolbox,
    "torchattacks": _torchattacks,
    "adv_lib": _adv_lib,
    "art": _art,
    "batched_torch": _batched_torch,
}


def _num_pairs(settings: Settings) -> int:
    return int(settings["gamma"] * settings["num_features"] / 2 + 1e-3)


def _gamma_of_art(settings: Settings) -> float:
    """It goes on while the share is not above gamma, so that a pair more is changed; half a feature is for rounding."""
    return settings["gamma"] - 1.5 / settings["num_features"]


_ART = {"batch_size": "batch", "verbose": False}
_L2_FOOLBOX = _adapter(
    "L2CarliniWagnerAttack", "initial_const", "abort_early", binary_search_steps="search_steps",
    steps="num_steps", stepsize="learning_rate", most=32,
)  # fmt: skip
_L2_ADV_LIB = _adapter(
    "carlini_wagner_l2", "learning_rate", "initial_const", "abort_early", binary_search_steps="search_steps",
    max_iterations="num_steps",
)  # fmt: skip
_OWN_CONSTANT = "its own first constant, in other units"
# By attack and peer.
ADAPTERS: dict[str, dict[str, Adapter]] = {
    "fgsm": {
        "foolbox": _adapter("LinfFastGradientAttack", epsilons="epsilon"),
        "torchattacks": _adapter("FGSM", eps="epsilon"),
        "art": _adapter("FastGradientMethod", eps="epsilon", batch_size="batch"),
    },
    "pgd": {
        "foolbox": _adapter(
            "LinfProjectedGradientDescentAttack", epsilons="epsilon", abs_stepsize="step_size", steps="num_steps",
            random_start=True,
        ),
        "torchattacks": _adapter("PGD", eps="epsilon", alpha="step_size", steps="num_steps", random_start=True),
        "adv_lib": _adapter("pgd_linf", ε="epsilon", steps="num_steps", absolute_step_size="step_size"),
        "art": _adapter(
            "ProjectedGradientDescentPyTorch", eps="epsilon", eps_step="step_size", max_iter="num_steps",
            num_random_init=1, **_ART,
        ),
    },
    "ddn": {
        "foolbox": _adapter("DDNAttack", steps="num_steps", note="does not round to 256 levels"),
        "adv_lib": _adapter("ddn", steps="num_steps"),
    },
    "deepfool": {
        "foolbox": _adapter("L2DeepFoolAttack", "overshoot", steps="num_steps", candidates=None),
        "adv_lib": _adapter("df", "overshoot", steps="num_steps", return_unsuccessful=True),
        "torchattacks": _adapter("DeepFool", "overshoot", steps="num_steps", note="one image at a time", most=16),
        "art": _adapter("DeepFool", max_iter="num_steps", epsilon="overshoot", nb_grads="num_classes", **_ART),
    },
    "jsma": {
        "torchattacks": _adapter("JSMA", "theta", "gamma", note="one image at a time", most=8),
        "batched_torch": _adapter("jsma", "theta", num_pairs=_num_pairs, most=32),
        "art": _adapter(
            "SaliencyMapMethod", "theta", gamma=_gamma_of_art,
            note="computes less: the target's gradient alone, and no pairs", **_ART,
        ),
    },
    "carlini_wagner_l2": {"foolbox": _L2_FOOLBOX, "adv_lib": _L2_ADV_LIB},
    "carlini_wagner_l2_compacted": {
        "foolbox": _L2_FOOLBOX,
        "adv_lib": _L2_ADV_LIB,
        "torchattacks": _adapter(
            "CW", c=1.0, steps="num_steps", lr="learning_rate", note="computes less: one constant, no search"
        ),
        "art": _adapter(
            "CarliniL2Method", "learning_rate", "initial_const", targeted=True, binary_search_steps="search_steps",
            max_iter="num_steps", note="a line search in the place of Adam", most=2, **_ART,
        ),
    },
    "carlini_wagner_linf": {
        "adv_lib": _adapter(
            "carlini_wagner_linf", "learning_rate", "decrease_factor", max_iterations="num_steps",
            note=_OWN_CONSTANT, most=8,
        ),
        "art": _adapter(
            "CarliniLInfMethod", "learning_rate", "decrease_factor", targeted=True, max_iter="num_steps",
            note=_OWN_CONSTANT, most=2, **_ART,
        ),
    },
}  # fmt: skip
