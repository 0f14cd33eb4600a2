"""Tables of features in one unit: each column scaled by its training rows; and two tables that scikit-learn brings."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, Num

from ddjax.data.dataset import Dataset, check_split, declare, from_arrays, stratified
from ddjax.data.digits import read_bundled

# Inputs and labels.
_Rows = tuple[np.ndarray, np.ndarray]
# Of a set without a test split of its own.
_TEST_SHARE = 0.25
_OF_NUCLEI = (
    "radius", "texture", "perimeter", "area", "smoothness", "compactness", "concavity", "concave points", "symmetry",
    "fractal dimension",
)  # fmt: skip
_OF_WINES = (
    "alcohol", "malic acid", "ash", "alcalinity of ash", "magnesium", "total phenols", "flavanoids",
    "nonflavanoid phenols", "proanthocyanins", "color intensity", "hue", "OD280/OD315 of diluted wines", "proline",
)  # fmt: skip


def load_breast_cancer(split: str) -> Dataset:
    """Loads a split of the Wisconsin breast cancer set: 569 rows of 30 features in 2 classes; see `split_of_table`.

    Reference:
      Street, Wolberg and Mangasarian, Nuclear Feature Extraction for Breast Tumor Diagnosis, 1993.
    """
    rows, labels = read_bundled("breast_cancer", "breast_cancer.csv", header_lines=1)
    names = [*(f"mean {name}" for name in _OF_NUCLEI), *(f"{name} error" for name in _OF_NUCLEI)]
    names += [f"worst {name}" for name in _OF_NUCLEI]
    return split_of_table("breast_cancer", split, rows, labels, ("malignant", "benign"), feature_names=names)


def load_wine(split: str) -> Dataset:
    """Loads a split of the wine recognition set: 178 rows of 13 features in 3 classes; see `split_of_table`.

    Reference:
      Aeberhard, Coomans and de Vel, Comparative Analysis of Statistical Pattern Recognition Methods in High Dimensional
      Settings, 1994.
    """
    rows, labels = read_bundled("wine", "wine_data.csv", header_lines=1)
    return split_of_table("wine", split, rows, labels, ("class_0", "class_1", "class_2"), feature_names=_OF_WINES)


def split_of_table(
    name: str,
    split: str,
    inputs: Num[np.ndarray, "N ..."],
    labels: Int[np.ndarray, " N"],
    class_names: Sequence[str],
    *,
    test: tuple[Num[np.ndarray, "M ..."], Int[np.ndarray, " M"]] | None = None,
    bounds: tuple[Any, Any] | None = None,
    mask: Bool[np.ndarray, "..."] | None = None,
    feature_names: Sequence[str] = (),
) -> Dataset:
    """A split of a table, whose features are scaled to one unit, so that one radius means the same for all of them.

    Without bounds, the least and the greatest value of a feature among the training rows become 0 and 1. Test rows have
    no part in that, since a scale that knows them tells the network of them. They may then lie outside of [0, 1], and
    are not clipped, which would change what is tested: the bounds of the set reach as far as they do. With bounds,
    these become 0 and 1. A feature that is constant becomes 0, and its two bounds coincide.

    Args:
      name: of the set.
      split: "train" or "test".
      inputs: finite, of the training split, or of both where there is no test split. A feature is what has one place
        along the last axis.
      labels: their classes, each with at least two rows where there is no test split.
      class_names: of all classes.
      test: inputs and labels of the test split. None draws a quarter of the rows, with the shares of the classes.
      bounds: the least and the greatest value of each feature, in the units of the inputs: numbers, or arrays that
        broadcast against one input.
      mask: see `Dataset`.
      feature_names: one for each feature, or none.

    Raises:
      ValueError: for another split, or inputs outside the given bounds.
    """
    train, test = divided(name, split, inputs, labels, test)
    both, over = [np.asarray(part[0], np.float64) for part in (train, test)], tuple(range(inputs.ndim - 1))
    if bounds is None:
        low, high = both[0].min(over), both[0].max(over)
    else:
        low, high = (np.broadcast_to(np.asarray(end, np.float64), inputs.shape[1:]) for end in bounds)
    width = np.where(high > low, high - low, 1.0)
    scaled = [((rows - low) / width).astype(np.float32) for rows in both]
    if bounds is None:
        reached = np.concatenate([rows.reshape(-1, rows.shape[-1]) for rows in scaled])
        least, most = reached.min(0), reached.max(0)
    else:
        outside = sum(int(((rows < low) | (rows > high)).sum()) for rows in both)
        if outside:
            raise ValueError(f"{name}: {outside} values lie outside of their bounds, {low.min():g} to {high.max():g}")
        least, most = np.zeros(low.shape, np.float32), (high > low).astype(np.float32)
    limits = {"bounds": (least, most), "mask": mask, "feature_names": tuple(feature_names)}
    of_split = (scaled[0], train[1]) if split == "train" else (scaled[1], test[1])
    return from_arrays(name, split, *of_split, class_names, **limits)


def divided(
    name: str,
    split: str,
    inputs: Num[np.ndarray, "N ..."],
    labels: Int[np.ndarray, " N"],
    test: tuple[Num[np.ndarray, "M ..."], Int[np.ndarray, " M"]] | None = None,
) -> tuple[_Rows, _Rows]:
    """Inputs and labels of the training and of the test split; arguments and errors are those of `split_of_table`."""
    check_split(name, split, ["train", "test"])
    labels = np.asarray(labels)
    if test is not None:
        return (inputs, labels), test
    counts = np.bincount(labels)
    if counts.min() < 2:
        raise ValueError(f"{name}: class {counts.argmin()} has one row; without a test split at least two are needed")
    held_out = stratified(labels, max(round(_TEST_SHARE * len(labels)), len(counts)), seed=0)
    rest = np.setdiff1d(np.arange(len(labels)), held_out)
    return (inputs[rest], labels[rest]), (inputs[held_out], labels[held_out])


DATASETS = (declare(load_breast_cancer, name="breast_cancer"), declare(load_wine, name="wine"))
