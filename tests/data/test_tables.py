import numpy as np
import pytest
from sklearn import datasets

from ddjax import data


@pytest.mark.parametrize(("name", "sizes", "features"), [("breast_cancer", (427, 142), 30), ("wine", (134, 44), 13)])
def test_embedded_tables_are_those_of_scikit_learn_scaled_by_their_training_rows(name, sizes, features):
    train, test = data.load(name, "train"), data.load(name, "test")
    known = getattr(datasets, f"load_{name}")()
    assert (len(train), len(test)) == sizes
    assert train.image_shape == test.image_shape == (features,)
    assert train.class_names == tuple(known.target_names)
    if name == "breast_cancer":
        assert train.feature_names == tuple(known.feature_names)
    assert len(train.feature_names) == features
    # The training rows fill [0, 1] in each feature, and one map takes both splits back to what scikit-learn has.
    np.testing.assert_array_equal(train.images.min(0), 0)
    np.testing.assert_array_equal(train.images.max(0), 1)
    both, labels = np.concatenate([train.images, test.images]), np.concatenate([train.labels, test.labels])
    width = known.data.std(0) / both.std(0)
    back = np.column_stack([both * width + (known.data.mean(0) - both.mean(0) * width), labels])
    whole = np.column_stack([known.data, known.target])
    for form in (lambda rows: rows, lambda rows: rows.sum(1)):
        np.testing.assert_allclose(np.sort(form(back), axis=0), np.sort(form(whole), axis=0), rtol=1e-4, atol=1e-4)
    # Test rows keep their values, and the bounds reach as far as they do.
    np.testing.assert_array_equal(both.min(0), train.bounds[0])
    np.testing.assert_array_equal(both.max(0), train.bounds[1])
    assert (test.images < 0).any()
    np.testing.assert_array_equal(test.bounds, train.bounds)
    shares = np.bincount(known.target) * sizes[1] / sum(sizes)
    assert np.abs(np.bincount(test.labels) - shares).max() < 1


@pytest.fixture
def write(tmp_path):
    """Writes arrays to a file, by default a table of 3 features in 2 classes, and returns its name for `data.load`."""

    def to_file(without=(), **changed):
        rng = np.random.default_rng(0)
        arrays = {"inputs": rng.normal(10, [1, 100, 0.01], (20, 3)), "labels": np.arange(20) % 2} | changed
        np.savez(tmp_path / "set.npz", **{name: array for name, array in arrays.items() if name not in without})
        return f"npz:{tmp_path / 'set.npz'}"

    return to_file


def test_file_of_arrays_is_a_data_set(write):
    inputs = np.random.default_rng(1).normal(10, [1, 100, 0.01], (20, 3))
    inputs[:, 2] = 7
    name = write(inputs=inputs, mask=np.array([True, False, True]), feature_names=["age", "sex", "constant"])
    train, test = data.load(name, "train"), data.load(name, "test")
    assert (train.name, train.class_names, train.feature_names) == (name, ("0", "1"), ("age", "sex", "constant"))
    assert (len(train), len(test), train.images.dtype) == (15, 5, np.float32)
    np.testing.assert_array_equal(train.images.max(0), [1, 1, 0])
    np.testing.assert_array_equal(np.stack(train.bounds)[:, 2], 0)
    np.testing.assert_array_equal(train.limits["mask"], [True, False, True])
    assert data.load(name, "test[:2]").indices.tolist() == [0, 1]


def test_file_with_a_test_split_and_bounds(write):
    inputs, more = np.array([[0, -5], [10, 0], [5, 5]]), np.array([[2.5, -5]])
    name = write(
        inputs=inputs, labels=[0, 1, 1], test_inputs=more.astype(int), test_labels=[1], bounds=[[0, -5], [10, 5]]
    )
    train, test = data.load(name, "train"), data.load(name, "test")
    np.testing.assert_allclose(train.images, [[0, 0], [1, 0.5], [0.5, 1]])
    np.testing.assert_allclose(test.images, [[0.2, 0]])
    np.testing.assert_array_equal(np.stack(test.bounds), [[0, 0], [1, 1]])


def test_images_in_a_file_stay_as_they_are(write):
    images = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 1), dtype=np.uint8)
    whole = data.load(write(inputs=images, labels=np.arange(8) % 2), "train")
    assert whole.images.dtype == np.uint8
    assert whole.limits == {}
    floats = data.load(write(inputs=images / 255, labels=np.arange(8) % 2), "train")
    np.testing.assert_allclose(floats.images, data.to_float(whole.images), atol=1e-6)


def test_features_of_sequences_are_along_the_last_axis(write):
    inputs = np.random.default_rng(0).normal(0, [1, 100], (10, 5, 2))
    train = data.load(write(inputs=inputs, labels=np.arange(10) % 2), "train")
    np.testing.assert_allclose(train.images.reshape(-1, 2).max(0), [1, 1])
    assert train.bounds[0].shape == (2,)


NAN = np.where(np.arange(20)[:, None] == 3, np.nan, np.ones((20, 3)))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"without": ["labels"]}, "has no labels; it takes inputs, labels, test_inputs"),
        ({"features": [1]}, "has unknown arrays: features; it takes inputs, labels"),
        ({"inputs": NAN}, "inputs must be finite, but 1 rows hold NaN or infinity"),
        ({"inputs": np.ones(20)}, r"inputs must be numbers of shape \[N, ...\], got float64 of shape \(20,\)"),
        ({"inputs": np.full((20, 3), "a")}, r"inputs must be numbers of shape .*, got <U1"),
        ({"inputs": np.full((20, 3), None)}, "holds objects; its arrays must be of numbers, booleans or strings"),
        ({"labels": np.arange(20) % 2 - 1}, "labels must be classes from 0, got -1"),
        ({"labels": np.zeros(20, int)}, "labels must be classes from 0 to K - 1, at least two .* got 0"),
        ({"labels": 1 + np.arange(20) % 2}, "each of them at least once, got 1, 2"),
        ({"labels": np.arange(20) / 2}, "labels must be 20 integers, one for each input, got float64"),
        ({"labels": np.arange(19) % 2}, r"labels must be 20 integers, .* shape \(19,\)"),
        ({"labels": np.arange(20) // 19}, "class 1 has one row; without a test split at least two are needed"),
        ({"test_inputs": np.ones((2, 3))}, "test_inputs and test_labels go together"),
        ({"test_inputs": np.ones((2, 4)), "test_labels": [0, 1]}, r"test_inputs must be float64 of shape \[M, 3\] as"),
        ({"bounds": [0.0, 1.0]}, "values lie outside of their bounds, 0 to 1"),
        ({"bounds": [[1.0], [0.0]]}, "bounds must be finite, and the least value below the greatest"),
        ({"bounds": np.zeros((3, 3))}, r"bounds must be the least and the greatest value, \[2, ...\]"),
        ({"mask": np.ones(3)}, "mask must be booleans that broadcast against one input, got float64"),
        ({"mask": np.ones(4, bool)}, r"mask must be booleans .* of shape \(4,\)"),
        ({"feature_names": ["one"]}, "feature_names must be 3 strings"),
        ({"class_names": [0, 1]}, "class_names must be 2 strings, got int64"),
        ({"inputs": np.full((20, 2, 2, 1), 3.0)}, "lie outside of their bounds, 0 to 1"),
        ({"inputs": np.ones((20, 3), np.uint8), "bounds": [0, 1]}, "bytes go from 0 to 255 and take no bounds"),
    ],
)
def test_bad_arrays_are_refused_in_a_sentence(write, changed, message):
    with pytest.raises(ValueError, match=message):
        data.load(write(**changed), "train")


def test_file_that_cannot_be_read_is_refused(tmp_path):
    np.save(tmp_path / "one.npy", np.ones(3))
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04 and no more")
    for path, message in {
        "none.npz": "No such file",
        "one.npy": "is no .npz file",
        "cut.npz": "is no .npz file",
    }.items():
        with pytest.raises(data.DatasetUnavailableError, match=message):
            data.load(f"npz:{tmp_path / path}", "train")
    with pytest.raises(ValueError, match="needs a path, as in npz:PATH"):
        data.load("npz", "train")


@pytest.mark.parametrize(
    ("split", "rows"),
    [("test[90%:]", (405, 450)), ("test[:7]", (0, 7)), ("test[-10%:-3]", (405, 447)), ("test[:]", (0, 450))],
)
def test_slices_of_a_split(split, rows):
    whole, part = data.load("digits", "test"), data.load("digits", split)
    np.testing.assert_array_equal(part.indices, np.arange(*rows))
    np.testing.assert_array_equal(part.images, whole.images[slice(*rows)])
    assert part.split == split


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("test[5]", r"a slice of a split is SPLIT\[FIRST:END\]"),
        ("test[9:2]", r"test\[9:2\] holds no row"),
        ("no[:3]", "no split 'no'"),
    ],
)
def test_bad_slices_are_refused(split, message):
    with pytest.raises(ValueError, match=message):
        data.load("digits", split)


def test_as_many_as_there_are():
    assert len(data.load("wine", "test", num_examples=100, at_most=True)) == 44
    assert len(data.load("wine", "test", num_examples=20, at_most=True)) == 20
