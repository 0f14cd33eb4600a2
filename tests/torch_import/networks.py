"""What several tests here use: published networks and real images."""

import os
import pathlib

import numpy as np
import pytest
from sklearn import datasets

from ddjax.weights import load_state_dict

# For each file, the layers and the share of MNIST's test images that the network classifies correctly.
WONG_KOLTER = [*[("conv", {"stride": 2, "padding": 1}), "relu"] * 2, "flatten", "linear", "relu", "linear"]
SMALL_CNN = [
    *["conv", "relu", "conv", "relu", ("max_pool", {"kernel_size": 2})] * 2,
    *["flatten", "linear", "relu", "linear", "relu", "linear"],
]  # fmt: skip
PUBLISHED = {
    "trades_mnist_smallcnn.pth": (SMALL_CNN, 0.9948),
    "kw_mnist.pth": (WONG_KOLTER, 0.9820),
    "mnist_cnn_a_adv.pth": (WONG_KOLTER, 0.9633),
}


def path_of(name):
    """Where a published network is, or a skip that says how to provide it."""
    path = os.environ.get("DDJAX_WEIGHTS_DIR")
    if not path or not pathlib.Path(path, name).exists():
        pytest.skip(f"needs the published networks: set DDJAX_WEIGHTS_DIR to a directory that holds {name}")
    return pathlib.Path(path, name)


def published(name):
    """The state dict of a published network."""
    return load_state_dict(path_of(name))


def digits(count):
    """The first of scikit-learn's digits, `[B, 8, 8, 1]` in [0, 1]."""
    return (datasets.load_digits().images[:count, :, :, None] / 16).astype(np.float32)
