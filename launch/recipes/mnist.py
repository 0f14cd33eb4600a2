"""Recipes for MNIST."""

import dataclasses

from .base import Recipe

_PAPERNOT_MNIST = Recipe(
    name="papernot_mnist",
    description="""The distillation paper's MNIST setting, with one addition: an epoch at temperature 1 to start from.

    python -m launch.sweep --recipe=papernot_mnist. Made for a GPU. Published: JSMA success
    from 95.89 percent down to 0.45.""",
    dataset="mnist",
    network="papernot_mnist",
    epochs=50,
    batch_size=128,
    optimizer="sgd",
    learning_rate=0.1,
    momentum=0.5,
    warm_start_epochs=1,
    skip=5000,
)

_CARLINI_MNIST = Recipe(
    name="carlini_mnist",
    description="""Carlini and Wagner's MNIST setting (arXiv 1608.04644): their optimizer, dropout, and warm start.

    python -m launch.sweep --recipe=carlini_mnist --temperatures=100. Made for a GPU. Published: 99.5 percent accuracy;
    mean absolute logit 5.8 undistilled and 482 at T = 100. Teacher and student start from an epoch at T = 1.""",
    dataset="mnist",
    network="carlini_mnist",
    epochs=50,
    batch_size=128,
    optimizer="sgd",
    learning_rate=0.01,
    momentum=0.9,
    nesterov=True,
    inverse_decay=1e-6,
    warm_start_epochs=1,
    skip=5000,
)

_SMALL_MNIST = Recipe(
    name="small_mnist",
    description="""The small MNIST network of a public Keras re-implementation, trained as there but distilled
    correctly.

    python -m launch.sweep --recipe=small_mnist --temperatures=40. Reported there: 98.4 percent teacher, 97.1 percent
    student, with soft labels from a softmax of a softmax at T = 40; here teacher and student train at T.""",
    dataset="mnist",
    network="small_mnist",
    epochs=25,
    batch_size=64,
    optimizer="adam",
    learning_rate=1e-3,
    fgsm_epsilon=0.1,
)

_MNIST_QUICK = dataclasses.replace(
    _PAPERNOT_MNIST,
    name="mnist_quick",
    description="""The paper's MNIST network on 10,000 training and 1,000 test images, 12 epochs of Adam.

    python -m launch.sweep --recipe=mnist_quick --temperatures=1,10,40,100. Under 30 minutes on two CPU cores;
    undistilled accuracy about 0.99, JSMA success near zero from T = 40 on.""",
    epochs=12,
    optimizer="adam",
    learning_rate=1e-3,
    momentum=0.0,
    warm_start_epochs=0,
    num_train=10_000,
    num_test=1_000,
)

RECIPES = (_PAPERNOT_MNIST, _CARLINI_MNIST, _SMALL_MNIST, _MNIST_QUICK)
