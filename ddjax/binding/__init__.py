"""Classifiers from anyone's model: flax linen and nnx, Equinox, Haiku, Keras, exported functions, plain functions.

None of these packages is imported unless the model comes from it.
"""

from ddjax.binding.functions import bind_function
from ddjax.binding.models import bind, trainable
from ddjax.binding.outputs import LOGARITHM, OUTPUTS, check_classifier, from_probabilities, takes_logarithm

__all__ = [
    "LOGARITHM",
    "OUTPUTS",
    "bind",
    "bind_function",
    "check_classifier",
    "from_probabilities",
    "takes_logarithm",
    "trainable",
]
