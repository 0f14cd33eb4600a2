"""Adversarial training: the network learns, of every batch, what an attack on it makes of the images.

Nothing is done to images when the network is used, and nothing hides its gradients.

Reference:
  Madry, Makelov, Schmidt, Tsipras and Vladu, Towards Deep Learning Models Resistant to Adversarial Attacks, 2018
  (arXiv 1706.06083).
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from jaxtyping import Array, Float, Int, Key

from ddjax import attacks
from ddjax.classifier import LogitsFn
from ddjax.defenses import thermometer

# Of the radius: 2/255 of 8/255.
_STEP = 0.25


def pgd_examples(
    logits_fn: LogitsFn,
    images: Float[Array, "B H W C"],
    labels: Int[Array, " B"],
    keys: Key[Array, " B"],
    *,
    epsilon: float,
    num_steps: int,
) -> Float[Array, "B H W C"]:
    """What projected gradient descent in Linf from a random start makes of the images, in steps of a quarter radius.

    Args:
      logits_fn: the network as it is at this step.
      images: within [0, 1].
      labels: the true classes.
      keys: one for each image.
      epsilon: the radius, 8/255 for CIFAR-10 in the paper.
      num_steps: 7 for CIFAR-10 in the paper.

    Returns:
      The strongest iterates.

    Raises:
      ValueError: as `attacks.pgd` does.

    Reference:
      Madry et al., 2018 (arXiv 1706.06083), section 4.

    Departures from the paper:
      Of the iterates the one with the highest loss counts, misclassified ones first, not the last.
    """
    step = _STEP * epsilon
    return attacks.pgd(logits_fn, images, labels, key=keys, epsilon=epsilon, step_size=step, num_steps=num_steps).inputs


def ls_pga_examples(
    logits_fn: LogitsFn,
    images: Float[Array, "B H W C"],
    labels: Int[Array, " B"],
    keys: Key[Array, " B"],
    *,
    epsilon: float,
    num_steps: int,
    levels: int,
) -> Float[Array, "B H W C"]:
    """The same by LS-PGA, for networks of thermometer codes with so many levels; see `thermometer.ls_pga`."""
    settings = {"epsilon": epsilon, "num_steps": num_steps, "levels": levels}
    return thermometer.ls_pga(logits_fn, images, labels, key=keys, **settings).inputs


# By the name that recipes use.
ADVERSARIES: Mapping[str, Callable[..., Array]] = MappingProxyType({"pgd": pgd_examples, "ls_pga": ls_pga_examples})
