"""Robustness by proof: a radius within which no image changes the decision, where attacks only find how far one does.

A network is a tuple of layers, `layers_of(logits_fn)` for those of `ddjax.models`. Every value in it is enclosed, while
the image moves in a ball, first by interval arithmetic and then by linear bounds carried backwards to the pixels:

* a ReLU between `lower < 0 < upper` lies under its chord and above one of the lines 0 and z, whichever is closer;
* a maximum lies above any of its inputs and under `_pool_upper`'s plane;
* the margin of the label over another class is one linear function of the last hidden layer, and bounded as one.

Cost: bounds of all neurons of a layer are one backward pass for each neuron. Without padding a neuron of a convolution
sees a small patch of the image, and its pass is run on that patch alone: two seconds on two CPU cores for one radius of
one image and the papers' MNIST network. With padding each pass runs on the whole image, which is for small images.
Nothing here calls `jit`; compile `largest_radius` with the strings and `num_bisections` static.

References:
  Zhang et al., Efficient Neural Network Robustness Certification with General Activation Functions (CROWN), 2018
  (arXiv 1811.00866); Weng et al., Towards Fast Computation of Certified Robustness for ReLU Networks (Fast-Lin), 2018
  (arXiv 1804.09699); Boopathy et al., CNN-Cert: An Efficient Framework for Certifying Robustness of Convolutional
  Neural Networks, 2019 (arXiv 1811.12395); Gowal et al., On the Effectiveness of Interval Bound Propagation, 2018
  (arXiv 1810.12715); Zhang et al., Towards Stable and Efficient Training of Verifiably Robust Neural Networks
  (CROWN-IBP), 2020 (arXiv 1906.06316).
"""

from ddjax.certify.network import Conv, Dense, Layer, MaxPool, Network, Relu, Shift, apply, layers_of
from ddjax.certify.propagation import Interval
from ddjax.certify.radius import METHODS, NORMS, largest_radius, layer_bounds, margin_bounds

__all__ = [
    "METHODS",
    "NORMS",
    "Conv",
    "Dense",
    "Interval",
    "Layer",
    "MaxPool",
    "Network",
    "Relu",
    "Shift",
    "apply",
    "largest_radius",
    "layer_bounds",
    "layers_of",
    "margin_bounds",
]
