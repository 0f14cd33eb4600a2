import sys
from unittest import mock

import numpy as np
import pytest

from ddjax import data


def test_subset_keeps_identity_and_skips():
    full = data.load("digits", "train")
    subset = data.load("digits", "train", num_examples=100, seed=3, skip=500)
    assert len(subset) == 100
    assert subset.indices.min() >= 500
    assert (np.diff(subset.indices) > 0).all()
    np.testing.assert_array_equal(subset.images, full.images[subset.indices])
    np.testing.assert_array_equal(subset.labels, full.labels[subset.indices])
    again = data.load("digits", "train", num_examples=100, seed=3, skip=500)
    np.testing.assert_array_equal(subset.indices, again.indices)
    other = data.load("digits", "train", num_examples=100, seed=4, skip=500)
    assert not np.array_equal(subset.indices, other.indices)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "tset"}, "'tset'; it has train, test"),
        ({"num_examples": 0}, "num_examples is 0, expected 1..450"),
        ({"num_examples": 451}, "num_examples is 451, expected 1..450"),
        ({"num_examples": 9}, "num_examples is 9, fewer than one for each of 10 classes"),
        ({"num_examples": 448, "skip": 3}, "num_examples is 448, expected 1..447"),
        ({"skip": 450}, "skip is 450, expected 0..449"),
        ({"skip": -1}, "skip is -1"),
    ],
)
def test_load_rejects(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.load(**({"name": "digits", "split": "test"} | arguments))


BLOBS = """
import numpy as np
from ddjax import data

def load_blobs(split, *, noise: float = 0.1, image_size: int | None = None, words: tuple = ()):
    data.check_split("blobs", split, ["train", "test"])
    images = np.full((6, image_size or 4, 4, 1), noise, np.float32)
    return data.from_arrays("anything", split, images, np.arange(6) % 3, ["a", "b", "c"])

DATASETS = (
    data.declare(load_blobs, name="blobs"),
    data.declare(lambda split: [split], name="wrong"),
    data.declare(lambda path, split: data.load("digits", split), name="at", takes_path=True),
)
"""


@pytest.fixture
def blobs(tmp_path, monkeypatch):
    (tmp_path / "their_data.py").write_text(BLOBS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "their_data:blobs"
    sys.modules.pop("their_data", None)


def test_data_set_of_another_package_is_loaded_by_its_import_path(blobs):
    whole = data.load(blobs, "test")
    assert (whole.name, whole.split, whole.class_names) == (blobs, "test", ("a", "b", "c"))
    assert whole.images.shape == (6, 4, 4, 1)
    np.testing.assert_array_equal(whole.images, np.float32(0.1))
    some = data.load(blobs, "train", num_examples=3, skip=1, seed=2)
    assert sorted(some.labels.tolist()) == [0, 1, 2]
    assert some.indices.min() >= 1


def test_data_set_takes_settings_and_options_by_name(blobs):
    changed = data.load(f"{blobs}:noise=1/4", "test", image_size=2, cache_dir="not passed on")
    assert changed.images.shape == (6, 2, 4, 1)
    assert changed.images.max() == 0.25
    with pytest.raises(ValueError, match="has no setting 'image_size'; known: noise=0.1"):
        data.load(f"{blobs}:image_size=3", "test")
    with pytest.raises(ValueError, match="digits has no setting 'depth'; known: none"):
        data.load("digits:depth=3", "test")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("their_data:other", "declares no data set 'other'; it declares: blobs, wrong, at"),
        ("nobodys_data:blobs", "cannot import 'nobodys_data'"),
        ("their_data:wrong", "must be loaded as a ddjax.data.Dataset, got list"),
        ("their_data:at", "'their_data:at' needs a path, as in their_data:at:PATH"),
        ("folder:", "'folder:' needs a path, as in folder:PATH"),
        ("folder", "'folder' needs a path, as in folder:PATH"),
    ],
)
@pytest.mark.usefixtures("blobs")
def test_name_that_cannot_be_loaded_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        data.load(name, "test")


@mock.patch.dict(data.DATASETS)
def test_registered_data_set_is_loaded_by_its_name():
    data.register(data.declare(lambda split: data.load("digits", split), name="alias"))
    assert len(data.load("alias", "test")) == 450
    with pytest.raises(ValueError, match="there already is data set 'digits'"):
        data.register(data.declare(lambda split: None, name="digits"))


def test_augmentations_are_found_by_name_and_by_import_path(tmp_path, monkeypatch):
    assert list(data.AUGMENTATIONS) == ["photographs", "shifts_and_flips", "crops"]
    (tmp_path / "their_augmentation.py").write_text(
        "from ddjax.data import augmentation\n"
        "def flips(images, keys):\n    return images[:, :, ::-1]\n"
        "AUGMENTATIONS = (augmentation.declare(flips),)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    flips = data.AUGMENTATIONS.find("their_augmentation:flips").function
    np.testing.assert_array_equal(flips(np.arange(4).reshape(1, 1, 4, 1), None).ravel(), [3, 2, 1, 0])
    with pytest.raises(ValueError, match="unknown augmentation 'mixup'; known: photographs, shifts_and_flips, crops"):
        data.AUGMENTATIONS.find("mixup")
