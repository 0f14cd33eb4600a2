"""The handwritten digits that scikit-learn brings: 1797 gray images of 8 x 8 pixels."""

import contextlib
import os
from importlib import metadata
from typing import Any

import numpy as np

from ddjax.data.dataset import Dataset, check_split, declare, from_arrays, stratified

_TEST_EXAMPLES = 450


def load_digits(split: str) -> Dataset:
    """Loads a split of the digits; 450 of them, with the shares of the classes, are the test set.

    Args:
      split: "train" or "test".

    Raises:
      ValueError: for another split.
    """
    check_split("digits", split, ["train", "test"])
    pixels, targets = _read()
    test = stratified(targets, _TEST_EXAMPLES, seed=0)
    rows = test if split == "test" else np.setdiff1d(np.arange(len(targets)), test)
    images = np.rint(pixels[rows] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    return from_arrays("digits", split, images, targets[rows], "0123456789")


def _read() -> tuple[np.ndarray, np.ndarray]:
    """Pixels [1797, 64] in 0 to 16 and classes [1797], from the file that scikit-learn brings."""
    # The file is read directly, because importing scikit-learn takes a second.
    with contextlib.suppress(metadata.PackageNotFoundError):
        file = str(metadata.distribution("scikit-learn").locate_file("sklearn/datasets/data/digits.csv.gz"))
        if os.path.exists(file):
            table = np.loadtxt(file, delimiter=",")
            return table[:, :-1], table[:, -1].astype(int)
    from sklearn import datasets  # where it is not installed as a wheel

    found: Any = datasets.load_digits(return_X_y=True)
    return found


DATASETS = (declare(load_digits, name="digits"),)
