"""Recipes of classifiers: of distillation, of the networks of the defenses that were broken, and of photographs."""

import dataclasses
from typing import Any

from .base import Recipe

_DIGITS = Recipe(
    name="digits",
    description="""The embedded default: scikit-learn's 8 x 8 handwritten digits and a small network.

    python -m launch.sweep. About a minute on two CPU cores for nine temperatures. JSMA succeeds on most pairs
    without distillation and on almost none at T = 100, where the tempered attack succeeds again. The budget of 12 of 64
    features is the share that shows the same picture on these small images as 112 of 784 on MNIST.""",
    dataset="digits", network="digits", epochs=40, batch_size=64, optimizer="adam", learning_rate=1e-2,
    jsma_features=12, fgsm_epsilon=0.3,
)  # fmt: skip

_BREAST_CANCER = Recipe(
    name="breast_cancer",
    description="""Distillation on a table: scikit-learn's breast cancer set, 30 features of 569 rows in 2 classes.

    python -m launch.sweep --recipe=breast_cancer. Under a minute on two CPU cores for nine temperatures. Each feature
    is scaled by its training rows. JSMA may change 12 of the 30 features.""",
    dataset="breast_cancer", network="mlp", epochs=40, batch_size=32, optimizer="adam", learning_rate=3e-3,
    jsma_features=12, fgsm_epsilon=0.1,
)  # fmt: skip

_WINE = dataclasses.replace(
    _BREAST_CANCER,
    name="wine",
    description="""Distillation on a table: scikit-learn's wine set, 13 features of 178 rows in 3 classes.

    python -m launch.sweep --recipe=wine. Under a minute on two CPU cores for nine temperatures. Each feature is scaled
    by its training rows. JSMA may change 6 of the 13 features.""",
    dataset="wine", epochs=80, jsma_features=6,
)  # fmt: skip

_PAPERNOT_MNIST = Recipe(
    name="papernot_mnist",
    description="""The distillation paper's MNIST setting, with one addition: an epoch at temperature 1 to start from.

    python -m launch.sweep --recipe=papernot_mnist. Made for a GPU. Published: JSMA success
    from 95.89 percent down to 0.45.""",
    dataset="mnist", network="papernot_mnist", epochs=50, batch_size=128, optimizer="sgd", learning_rate=0.1,
    momentum=0.5, warm_start_epochs=1, skip=5000,
)  # fmt: skip

_CARLINI_MNIST = Recipe(
    name="carlini_mnist",
    description="""Carlini and Wagner's MNIST setting (arXiv 1608.04644): their optimizer, dropout, and warm start.

    python -m launch.sweep --recipe=carlini_mnist --temperatures=100. Made for a GPU. Published: 99.5 percent accuracy;
    mean absolute logit 5.8 undistilled and 482 at T = 100. Teacher and student start from an epoch at T = 1.""",
    dataset="mnist", network="carlini_mnist", epochs=50, batch_size=128, optimizer="sgd", learning_rate=0.01,
    momentum=0.9, nesterov=True, inverse_decay=1e-6, warm_start_epochs=1, skip=5000,
)  # fmt: skip

_SMALL_MNIST = Recipe(
    name="small_mnist",
    description="""The small MNIST network of a public Keras re-implementation, trained as there but distilled
    correctly.

    python -m launch.sweep --recipe=small_mnist --temperatures=40. Reported there: 98.4 percent teacher, 97.1 percent
    student, with soft labels from a softmax of a softmax at T = 40; here teacher and student train at T.""",
    dataset="mnist", network="small_mnist", epochs=25, batch_size=64, optimizer="adam", learning_rate=1e-3,
    fgsm_epsilon=0.1,
)  # fmt: skip

_MNIST_QUICK = dataclasses.replace(
    _PAPERNOT_MNIST,
    name="mnist_quick",
    description="""The paper's MNIST network on 10,000 training and 1,000 test images, 12 epochs of Adam.

    python -m launch.sweep --recipe=mnist_quick --temperatures=1,10,40,100. Under 30 minutes on two CPU cores;
    undistilled accuracy about 0.99, JSMA success near zero from T = 40 on.""",
    epochs=12, optimizer="adam", learning_rate=1e-3, momentum=0.0, warm_start_epochs=0, num_train=10_000,
    num_test=1_000,
)  # fmt: skip

_PAPERNOT_CIFAR10 = Recipe(
    name="papernot_cifar10",
    description="""The distillation paper's CIFAR-10 setting, with an epoch at temperature 1 to start from.

    python -m launch.sweep --recipe=papernot_cifar10. Made for a GPU. Published: about 80 percent accuracy; JSMA success
    from 87.89 percent down to 5.11.""",
    dataset="cifar10", network="papernot_cifar10", epochs=50, batch_size=128, optimizer="sgd", learning_rate=0.01,
    momentum=0.9, decay=0.5, decay_epochs=10, momentum_decays=True, warm_start_epochs=1, skip=5000, fgsm_epsilon=0.1,
)  # fmt: skip

_CIFAR10_QUICK = dataclasses.replace(
    _PAPERNOT_CIFAR10,
    name="cifar10_quick",
    description="""The paper's CIFAR-10 network on 10,000 training and 500 test images, 8 epochs of Adam.

    python -m launch.sweep --recipe=cifar10_quick --temperatures=10,100. Under 30 minutes on two CPU cores. Accuracy is
    far below the paper's at this size; the fall of JSMA success with T is the point.""",
    epochs=8, optimizer="adam", learning_rate=1e-3, momentum=0.0, warm_start_epochs=0, decay=1.0, decay_epochs=0,
    num_train=10_000, num_test=500,
)  # fmt: skip

_UNDEFENDED = Recipe(
    name="undefended",
    description="""Madry et al.'s wide residual network on CIFAR-10 (arXiv 1706.06083), without a defense: what the
    broken defenses of CIFAR-10 were built on.

    python -m launch.train --recipe=undefended. Made for a GPU. Published: 95.2 percent accuracy. Their 80,000 steps
    are 205 epochs; the rate falls after 100 and 200 epochs, theirs after 102 and 154.""",
    dataset="cifar10", network="madry_cifar10", epochs=205, batch_size=128, optimizer="sgd", learning_rate=0.1,
    momentum=0.9, decay=0.1, decay_epochs=100, weight_decay=2e-4, augmentation="shifts_and_flips",
    fgsm_epsilon=8 / 255,
)  # fmt: skip

_UNDEFENDED_QUICK = Recipe(
    name="undefended_quick",
    description="""A small network on 10,000 training and 1,000 test images of CIFAR-10: the undefended one beside which
    the broken defenses stand.

    python -m launch.train --recipe=undefended_quick. A few minutes on two CPU cores. The other recipes whose names end
    in `_quick` and that belong to it are its variations.""",
    dataset="cifar10", network="small_cifar10", epochs=15, batch_size=128, optimizer="adam", learning_rate=1e-3,
    augmentation="shifts_and_flips", num_train=10_000, num_test=1_000, fgsm_epsilon=0.031, adversary_epsilon=0.031,
)  # fmt: skip

_ANIMALS10 = Recipe(
    name="animals10",
    description="""Animals-10, photographs in a folder for each class, and a VGG network with batch normalization.

    python -m launch.train --recipe=animals10 --dataset=folder:PATH. Made for a GPU. The settings of a public project on
    the robustness of classifiers, with what it meant to do and did not: its augmentation runs, and its class weights go
    to their own classes. Nothing was published about it.""",
    dataset="folder:animals10", network="vgg10", epochs=15, batch_size=32, optimizer="adam", learning_rate=1e-4,
    decay=0.1, decay_epochs=10, augmentation="photographs", class_weights=True, image_size=224, fgsm_epsilon=8 / 255,
)  # fmt: skip

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
    *(
        _DIGITS,
        _BREAST_CANCER,
        _WINE,
        _PAPERNOT_MNIST,
        _CARLINI_MNIST,
        _SMALL_MNIST,
        _MNIST_QUICK,
        _PAPERNOT_CIFAR10,
        _CIFAR10_QUICK,
    ),
    *(_UNDEFENDED, _UNDEFENDED_QUICK, *_defended(_UNDEFENDED), *_defended(_UNDEFENDED_QUICK), _ANIMALS10),
)
