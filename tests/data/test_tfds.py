import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from ddjax import data
from ddjax.data import tfds as tfds_sets


def stub_builder(monkeypatch, images, labels, *, shape=(None, None, 1), extra=None, splits=("train", "test")):
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
    info = SimpleNamespace(features=tfds.features.FeaturesDict(features | (extra or {})), splits=dict.fromkeys(splits))
    builder = SimpleNamespace(
        info=info, is_prepared=lambda: True, as_data_source=lambda split, decoders: Source(), data_dir="SOMEWHERE"
    )
    monkeypatch.setattr(tfds_sets, "_builder", lambda name, root: builder)


@pytest.fixture(scope="module")
def mnist_train(tfds_data_dir):
    return data.load("mnist", "train", data_dir=tfds_data_dir)


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
    with pytest.raises(
        ValueError,
        match=r"unknown data set 'mnits'; known: digits, folder, npz, .* close matches: mnist, .*package.module:name",
    ) as info:
        data.load("mnits", "train", data_dir=str(tmp_path))
    assert len(str(info.value)) < 350


def test_unknown_configuration_or_version_is_told_in_the_words_of_tfds(tmp_path):
    for name in ("mnist/nonsense", "mnist:9.9.9"):
        with pytest.raises(ValueError, match="mnist"):
            data.load(name, "train", data_dir=str(tmp_path))


def test_no_image_classification(tmp_path):
    with pytest.raises(ValueError, match=r"no image classification .* segmentation_mask \(Image\)"):
        data.load("oxford_iiit_pet", "train", data_dir=str(tmp_path))


def test_unprepared_without_tensorflow(tmp_path, monkeypatch):
    find_spec = tfds_sets.importlib.util.find_spec
    monkeypatch.setattr(
        tfds_sets.importlib.util, "find_spec", lambda name: None if name == "tensorflow" else find_spec(name)
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

    monkeypatch.setattr(tfds_sets, "_obstacle", lambda homepage: None)
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

    monkeypatch.setattr(tfds_sets, "_obstacle", lambda homepage: None)
    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", succeed)
    tfds_sets._prepare("mnist", str(tmp_path / "new"), tfds.builder("mnist", data_dir=str(tmp_path)))
    files = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()]
    assert files == ["new/mnist/3.0.1/dataset_info.json"]


def test_dead_network_is_an_obstacle(monkeypatch):
    def refuse(url, timeout):
        raise tfds_sets.urllib.error.URLError("no route")

    monkeypatch.setattr(tfds_sets.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(tfds_sets.urllib.request, "urlopen", refuse)
    assert tfds_sets._obstacle("https://example.org") == "the network cannot be reached"


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


def test_images_of_varying_sizes_are_resized(monkeypatch):
    images = [np.full((4, 4), 7, np.uint8), np.full((4, 5), 9, np.uint8)]
    stub_builder(monkeypatch, images, [0, 1])
    loaded = data.load("any", "train", image_size=4)
    assert loaded.image_shape == (4, 4, 1)
    np.testing.assert_array_equal(loaded.images.reshape(2, -1), np.repeat([[7], [9]], 16, axis=1))
    stub_builder(monkeypatch, images[:1], [0], shape=(4, 4, 1), splits=("train", "test"))
    assert data.load("any", "train", image_size=2).image_shape == (4, 4, 1)
    with pytest.raises(ValueError, match="the image size must be at least 1, got 0"):
        data.load("any", "train", image_size=0)


def test_set_with_one_split_is_divided(monkeypatch):
    images = np.arange(20, dtype=np.uint8)[:, None, None] * np.ones((1, 2, 2), np.uint8)
    stub_builder(monkeypatch, images, np.arange(20) % 2, splits=("train",))
    train, test, whole = (data.load("any", split) for split in ("train", "test", "train[:]"))
    assert (len(train), len(test), len(whole)) == (16, 4, 20)
    assert sorted([*train.indices.tolist(), *test.indices.tolist()]) == list(range(20))
    for part in (train, test):
        np.testing.assert_array_equal(part.images[:, 0, 0, 0], part.indices)
        np.testing.assert_array_equal(part.labels, part.indices % 2)
    some = data.load("any", "train[50%:]", num_examples=4, skip=2)
    assert some.indices.min() >= 12
    np.testing.assert_array_equal(some.images[:, 0, 0, 0], some.indices)


def test_validation_split_serves_where_there_is_no_test_split(monkeypatch):
    stub_builder(monkeypatch, np.zeros((2, 4, 4), np.uint8), [0, 1], splits=("train", "validation"))
    assert len(data.load("any", "test")) == len(data.load("any", "validation")) == 2
    with pytest.raises(ValueError, match="any has no split 'other'; it has train, validation"):
        data.load("any", "other")


@pytest.fixture
def damage(tfds_data_dir, tmp_path):
    """Makes a prepared MNIST of which one file has another content."""
    (source,) = Path(tfds_data_dir, "mnist").iterdir()
    target = tmp_path / "mnist" / source.name
    target.mkdir(parents=True)
    for path in source.iterdir():
        (target / path.name).symlink_to(path)

    def damage(name, content):
        (target / name).unlink()
        (target / name).write_bytes(content((source / name).read_bytes()))
        return str(target)

    return damage


def check_refused(tmp_path, target, reason):
    with pytest.raises(data.DatasetUnavailableError, match="is damaged or cannot be read") as info:
        data.load("mnist", "test", data_dir=str(tmp_path))
    first, second, command = str(info.value).split("\n")
    assert target in first
    assert reason in first
    assert second.startswith("Remove that directory")
    assert "tfds.builder('mnist'" in command


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"name": "mnist", ', b"\xff\xfe"])
def test_damaged_description_is_named_with_its_remedy(damage, tmp_path, content):
    check_refused(tmp_path, damage("dataset_info.json", lambda _: content), "Error: ")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (lambda whole: whole[: len(whole) // 2], "RuntimeError"),
        (lambda whole: b"", "at least 64KB"),
        (lambda whole: whole[:2000000] + bytes(100000) + whole[2100000:], "Corrupted"),
    ],
)
def test_damaged_shard_is_named_with_its_remedy(damage, tmp_path, content, reason):
    check_refused(tmp_path, damage("mnist-test.array_record-00000-of-00001", content), reason)


def test_damaged_image_is_named_with_its_remedy(monkeypatch, tmp_path):
    stub_builder(monkeypatch, np.zeros((2, 4, 4), np.uint8), [0, 1])
    monkeypatch.setattr(tfds_sets.Image, "open", lambda file: Image.core.nothing)
    with pytest.raises(data.DatasetUnavailableError, match="any in SOMEWHERE is damaged .*AttributeError"):
        data.load("any", "train")


def test_missing_home_is_told(monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    with pytest.raises(data.DatasetUnavailableError, match="no home directory .* set data_dir or TFDS_DATA_DIR"):
        data.load("mnist", "train")
    with pytest.raises(data.DatasetUnavailableError, match="no home directory for ~/sets"):
        data.load("mnist", "train", data_dir="~/sets")


def test_remote_directories_are_refused():
    with pytest.raises(ValueError, match="data_dir must be a directory of this machine, got gs://bucket"):
        data.load("mnist", "train", data_dir="gs://bucket")
