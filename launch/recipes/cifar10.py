"""Recipes for CIFAR-10: distillation, and the networks of the defenses that were broken on it."""

import dataclasses
from typing import Any

from .base import Recipe

_PAPERNOT_CIFAR10 = Recipe(
    name="papernot_cifar10",
    description="""The distillation paper's CIFAR-10 setting, with an epoch at temperature 1 to start from.

    python -m launch.sweep --recipe=papernot_cifar10. Made for a GPU. Published: about 80 percent accuracy; JSMA success
    from 87.89 percent down to 5.11.""",
    dataset="cifar10",
    network="papernot_cifar10",
    epochs=50,
    batch_size=128,
    optimizer="sgd",
    learning_rate=0.01,
    momentum=0.9,
    decay=0.5,
    decay_epochs=10,
    momentum_decays=True,
    warm_start_epochs=1,
    skip=5000,
    fgsm_epsilon=0.1,
)

_CIFAR10_QUICK = dataclasses.replace(
    _PAPERNOT_CIFAR10,
    name="cifar10_quick",
    description="""The paper's CIFAR-10 network on 10,000 training and 500 test images, 8 epochs of Adam.

    python -m launch.sweep --recipe=cifar10_quick --temperatures=10,100. Under 30 minutes on two CPU cores. Accuracy is
    far below the paper's at this size; the fall of JSMA success with T is the point.""",
    epochs=8,
    optimizer="adam",
    learning_rate=1e-3,
    momentum=0.0,
    warm_start_epochs=0,
    decay=1.0,
    decay_epochs=0,
    num_train=10_000,
    num_test=500,
)

_UNDEFENDED = Recipe(
    name="undefended",
    description="""Madry et al.'s wide residual network on CIFAR-10 (arXiv 1706.06083), without a defense: what the
    broken defenses of CIFAR-10 were built on.

    python -m launch.train --recipe=undefended. Made for a GPU. Published: 95.2 percent accuracy. Their 80,000 steps
    are 205 epochs; the rate falls after 100 and 200 epochs, theirs after 102 and 154.""",
    dataset="cifar10",
    network="madry_cifar10",
    epochs=205,
    batch_size=128,
    optimizer="sgd",
    learning_rate=0.1,
    momentum=0.9,
    decay=0.1,
    decay_epochs=100,
    weight_decay=2e-4,
    augmentation="shifts_and_flips",
    fgsm_epsilon=8 / 255,
)

_UNDEFENDED_QUICK = Recipe(
    name="undefended_quick",
    description="""A small network on 10,000 training and 1,000 test images of CIFAR-10: the undefended one beside which
    the broken defenses stand.

    python -m launch.train --recipe=undefended_quick. A few minutes on two CPU cores. The other recipes whose names end
    in `_quick` and that belong to it are its variations.""",
    dataset="cifar10",
    network="small_cifar10",
    epochs=15,
    batch_size=128,
    optimizer="adam",
    learning_rate=1e-3,
    augmentation="shifts_and_flips",
    num_train=10_000,
    num_test=1_000,
    fgsm_epsilon=0.031,
    adversary_epsilon=0.031,
)

# Name to what it changes of the undefended recipe, and how it is trained.
_DEFENDED: dict[str, tuple[dict[str, Any], str]] = {
    "adversarial": ({"adversary": "pgd"}, "by adversarial training, seven steps of PGD"),
    "thermometer": ({"thermometer_levels": 16}, "on thermometer codes of 16 levels"),
    "thermometer_adversarial": (
        {"thermometer_levels": 16, "adversary": "ls_pga"},
        "on thermometer codes by adversarial training, seven steps of LS-PGA",
    ),
    "total_variation": ({"transform": "total_variation"}, "on images after total variation minimization"),
    "quilting": ({"transform": "quilting"}, "on quilted images"),
    "crops": ({"augmentation": "crops"}, "on random crops of three quarters of the side"),
}


def _defended(undefended: Recipe) -> list[Recipe]:
    """The same network trained for each defense that trains its network."""
    found = []
    ending = undefended.name.removeprefix("undefended")
    for name, (changes, how) in _DEFENDED.items():
        if ending and "adversary" in changes:
            changes = changes | {"epochs": 6, "warm_start_epochs": 5}
        description = f"""The network of `{undefended.name}` {how}.

    python -m launch.train --recipe={name}{ending}. For `launch.obfuscated{" --quick" if ending else ""}`."""
        found.append(dataclasses.replace(undefended, name=f"{name}{ending}", description=description, **changes))
    return found


RECIPES = (
    _PAPERNOT_CIFAR10,
    _CIFAR10_QUICK,
    _UNDEFENDED,
    _UNDEFENDED_QUICK,
    *_defended(_UNDEFENDED),
    *_defended(_UNDEFENDED_QUICK),
)
