import io
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from ddjax import data


@pytest.fixture(scope="module")
def mnist_train(tfds_data_dir):
    return data.load("mnist", "train", data_dir=tfds_data_dir)


def stub_builder(monkeypatch, images, labels, *, shape=(None, None, 1), extra=None):
    """Stands for a prepared set that holds the given arrays as PNG."""
    import tensorflow_datasets as tfds

    rows = []
    for image, label in zip(images, labels, strict=True):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "PNG")
        rows.append({"image": buffer.getvalue(), "label": label})

    class Source:
        def __len__(self):
            return len(rows)

        def __getitems__(self, keys):
            return [rows[key] for key in keys]

    features = {"image": tfds.features.Image(shape=shape), "label": tfds.features.ClassLabel(names=["cat", "dog"])}
    info = SimpleNamespace(features=tfds.features.FeaturesDict(features | (extra or {})), splits={"train": None})
    builder = SimpleNamespace(info=info, is_prepared=lambda: True, as_data_source=lambda split, decoders: Source())
    monkeypatch.setattr(data, "_builder", lambda name, root: builder)


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


def test_split_does_not_depend_on_the_seed():
    first, second = data.load("digits", "test", seed=0), data.load("digits", "test", seed=1)
    np.testing.assert_array_equal(first.images, second.images)


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


def test_stratified_largest_remainder():
    labels = np.repeat([0, 1, 2], [50, 30, 21])
    chosen = data.stratified(labels, 10, seed=0)
    # Exact shares 4.95, 2.97, 2.08: the remainders .95 and .97 win the two places left by rounding down.
    np.testing.assert_array_equal(np.bincount(labels[chosen]), [5, 3, 2])
    assert len(set(chosen.tolist())) == 10
    np.testing.assert_array_equal(data.stratified(labels, 101, seed=5), np.arange(101))


def test_stratified_keeps_rare_classes():
    labels = np.repeat([0, 1, 2], [980, 10, 10])
    np.testing.assert_array_equal(np.bincount(labels[data.stratified(labels, 10, seed=0)]), [8, 1, 1])


def test_stratified_is_pinned():
    """The draw itself, so that no platform or NumPy release moves published subsets unnoticed."""
    chosen = data.stratified(np.arange(40) % 4, 8, seed=7)
    np.testing.assert_array_equal(chosen, [5, 9, 11, 12, 14, 18, 24, 31])


def test_mnist_train(mnist_train):
    # The order of the prepared set, which shuffles the original 5, 0, 4, 1, ...
    assert mnist_train.labels[:8].tolist() == [4, 1, 0, 7, 8, 1, 2, 7]
    assert mnist_train.images.shape == (60000, 28, 28, 1)
    assert data.to_float(mnist_train.images[:30000]).mean() == pytest.approx(0.1307, abs=5e-4)
    assert mnist_train.images.mean() / 255 == pytest.approx(0.13066, abs=1e-5)
    assert np.bincount(mnist_train.labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]


def test_mnist_subset_is_the_same_rows(mnist_train, tfds_data_dir):
    subset = data.load("mnist", "train", data_dir=tfds_data_dir, num_examples=200, seed=1, skip=5000)
    assert subset.indices.min() >= 5000
    np.testing.assert_array_equal(subset.images, mnist_train.images[subset.indices])
    np.testing.assert_array_equal(subset.labels, mnist_train.labels[subset.indices])
    shares = np.bincount(mnist_train.labels[5000:]) * 200 / 55000
    assert np.abs(np.bincount(subset.labels) - shares).max() < 1


@pytest.mark.usefixtures("tfds_data_dir")
def test_mnist_test_through_the_environment():
    test = data.load("mnist", "test", num_examples=50)
    assert test.image_shape == (28, 28, 1)
    assert np.bincount(test.labels, minlength=10).min() >= 4
    with pytest.raises(ValueError, match="no split 'validation'; it has train, test"):
        data.load("mnist", "validation")


def test_unknown_name(tmp_path):
    with pytest.raises(ValueError, match=r"unknown data set 'mnits'; use 'digits' .* close matches: mnist") as info:
        data.load("mnits", "train", data_dir=str(tmp_path))
    assert len(str(info.value)) < 300


def test_no_image_classification(tmp_path):
    with pytest.raises(ValueError, match=r"no image classification .* segmentation_mask \(Image\)"):
        data.load("oxford_iiit_pet", "train", data_dir=str(tmp_path))


def test_unprepared_without_tensorflow(tmp_path, monkeypatch):
    find_spec = data.importlib.util.find_spec
    monkeypatch.setattr(
        data.importlib.util, "find_spec", lambda name: None if name == "tensorflow" else find_spec(name)
    )
    with pytest.raises(data.DatasetUnavailableError, match="tensorflow is not installed") as info:
        data.load("mnist", "train", data_dir=str(tmp_path / "new"))
    folder = tmp_path / "new"
    assert (
        "pip install -e '.[prepare]' && python -c \"import tensorflow_datasets as tfds; tfds.builder('mnist',"
        f" data_dir='{folder}', file_format='array_record').download_and_prepare()\"" in str(info.value)
    )
    assert list(tmp_path.iterdir()) == []


def test_failed_preparation_leaves_nothing(tmp_path, monkeypatch, capsys):
    import tensorflow_datasets as tfds

    def fail(self, *, download_dir, **_):
        print("downloading")
        Path(download_dir).mkdir(parents=True)
        Path(download_dir, "half.png").write_bytes(b"half")
        raise OSError("connection lost")

    monkeypatch.setattr(data, "_obstacle", lambda homepage: None)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(data.DatasetUnavailableError, match="OSError: connection lost"):
        data.load("mnist", "train", data_dir=str(tmp_path / "new"))
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_successful_preparation_is_moved_whole(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def succeed(self, **_):
        Path(self.data_dir).mkdir(parents=True)
        Path(self.data_dir, "dataset_info.json").write_text("{}")

    monkeypatch.setattr(data, "_obstacle", lambda homepage: None)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", succeed)
    data._prepare("mnist", str(tmp_path / "new"), tfds.builder("mnist", data_dir=str(tmp_path)))
    files = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    assert files == ["new/mnist/3.0.1/dataset_info.json"]


def test_dead_network_is_an_obstacle(monkeypatch):
    def refuse(url, timeout):
        raise data.urllib.error.URLError("no route")

    monkeypatch.setattr(data.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(data.urllib.request, "urlopen", refuse)
    assert data._obstacle("https://example.org") == "the network cannot be reached"


def test_stored_images_come_back_exactly(monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (6, 5, 4), np.uint8)
    stub_builder(monkeypatch, images, [0, 1, 0, 1, 0, 1])
    loaded = data.load("any", "train")
    np.testing.assert_array_equal(loaded.images[..., 0], images)
    assert loaded.class_names == ("cat", "dog")
    assert loaded.labels.tolist() == [0, 1, 0, 1, 0, 1]


def test_varying_sizes(monkeypatch):
    stub_builder(monkeypatch, [np.zeros((4, 4), np.uint8), np.zeros((4, 5), np.uint8)], [0, 1])
    with pytest.raises(ValueError, match=r"varying sizes.*\(4, 4, 1\) at row 0, \(4, 5, 1\) at row 1"):
        data.load("any", "train")


def test_unlabeled_split(monkeypatch):
    stub_builder(monkeypatch, np.zeros((2, 4, 4), np.uint8), [0, -1])
    with pytest.raises(ValueError, match="1 examples of split 'train' have no label"):
        data.load("any", "train")
