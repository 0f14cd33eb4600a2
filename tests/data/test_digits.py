from importlib import metadata

import numpy as np
from sklearn.datasets import load_digits

from ddjax import data


def test_digits_split_is_disjoint_and_covers_all():
    train, test = data.load("digits", "train"), data.load("digits", "test")
    assert (len(train), len(test)) == (1347, 450)
    pixels, targets = load_digits(return_X_y=True)
    expected = np.column_stack([np.rint(pixels * 255 / 16), targets])
    rows = [np.column_stack([d.images.reshape(len(d), -1), d.labels]) for d in (train, test)]
    # Equal as multisets: every image is in exactly one of the two splits.
    np.testing.assert_array_equal(
        sorted(map(tuple, np.concatenate(rows).astype(int).tolist())), sorted(map(tuple, expected.astype(int).tolist()))
    )
    shares = np.bincount(targets) * 450 / 1797
    assert np.abs(np.bincount(test.labels) - shares).max() < 1


def test_digits_come_from_the_file_of_scikit_learn_and_without_it_from_its_loader(monkeypatch):
    expected = data.load("digits", "test")
    calls = []
    monkeypatch.setattr("sklearn.datasets.load_digits", lambda **given: calls.append(given) or load_digits(**given))
    data.load("digits", "test")
    assert not calls

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    from_loader = data.load("digits", "test")
    assert calls
    np.testing.assert_array_equal(from_loader.images, expected.images)
    np.testing.assert_array_equal(from_loader.labels, expected.labels)


def test_digits_fields():
    digits = data.load("digits", "train")
    assert digits.images.dtype == np.uint8
    assert digits.labels.dtype == np.int32
    assert digits.indices.dtype == np.int32
    assert digits.image_shape == (8, 8, 1)
    assert digits.num_classes == 10
    assert digits.class_names[3] == "3"
    assert digits.images.max() == 255
    np.testing.assert_array_equal(digits.indices, np.arange(1347))


def test_split_does_not_depend_on_the_seed():
    first, second = data.load("digits", "test", seed=0), data.load("digits", "test", seed=1)
    np.testing.assert_array_equal(first.images, second.images)
