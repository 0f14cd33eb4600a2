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
    pixels, targets = read_bundled("digits", "digits.csv.gz")
    test = stratified(targets, _TEST_EXAMPLES, seed=0)
    rows = test if split == "test" else np.setdiff1d(np.arange(len(targets)), test)
    images = np.rint(pixels[rows] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    return from_arrays("digits", split, images, targets[rows], "0123456789")


def read_bundled(name: str, file: str, header_lines: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features `[N, D]` and classes `[N]` of a set that scikit-learn brings, from its file or by `load_NAME`."""
    # The file is read directly, because importing scikit-learn takes a second.
    with contextlib.suppress(metadata.PackageNotFoundError):
        path = str(metadata.distribution("scikit-learn").locate_file(f"sklearn/datasets/data/{file}"))
        if os.path.exists(path):
            table = np.loadtxt(path, delimiter=",", skiprows=header_lines)
            return table[:, :-1], table[:, -1].astype(int)
    from sklearn import datasets  # where it is not installed as a wheel

    found: Any = getattr(datasets, f"load_{name}")(return_X_y=True)
    return found


DATASETS = (declare(load_digits, name="digits"),)
