"""Adversaries: attacks that replace the inputs of every training batch, for adversarial training.

Nothing is done to inputs when the network is used, and nothing hides its gradients.
"""

import dataclasses
from collections.abc import Callable

from jaxtyping import Array, Float, Int, Key

from ddjax import attacks
from ddjax.classifier import LogitsFn
from ddjax.registry import Registry


@dataclasses.dataclass(frozen=True)
class DeclaredAdversary:
    """The declaration of an adversary.

    Attributes:
      name: what recipes take.
      function: from the classifier as it is at a step, inputs `[B, ...]` in [0, 1], their true labels `[B]` and keys
        `[B]` to inputs; its settings `epsilon`, the radius in Linf, and `num_steps` are keyword-only.
    """

    name: str
    function: Callable[..., Array]


def pgd_examples(
    logits_fn: LogitsFn,
    images: Float[Array, "B ..."],
    labels: Int[Array, " B"],
    keys: Key[Array, " B"],
    *,
    epsilon: float,
    num_steps: int,
) -> Float[Array, "B ..."]:
    """The results of projected gradient descent in Linf from a random start, in steps of a quarter of the radius.

    For the arguments see `DeclaredAdversary`. For CIFAR-10, `epsilon` is 8/255 and `num_steps` 7 in the paper.

    Raises:
      ValueError: as `attacks.pgd` does.

    Reference:
      Madry, Makelov, Schmidt, Tsipras and Vladu, Towards Deep Learning Models Resistant to Adversarial Attacks, 2018
      (arXiv 1706.06083), section 4.

    Departures from the paper:
      The result is the iterate with the highest loss, misclassified ones first, and not the last iterate.
    """
    # 2/255 of 8/255.
    step = epsilon / 4
    return attacks.pgd(logits_fn, images, labels, key=keys, epsilon=epsilon, step_size=step, num_steps=num_steps).inputs


ADVERSARIES = (DeclaredAdversary("pgd", pgd_examples),)
# Holds those of this package. Others register, or are collected from their package.
REGISTRY: Registry[DeclaredAdversary] = Registry("adversary", "ADVERSARIES")
for _adversary in ADVERSARIES:
    REGISTRY.register(_adversary)
