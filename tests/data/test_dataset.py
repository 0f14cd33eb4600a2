import numpy as np
import pytest

from ddjax import data


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


def small(num_examples=5, **replaced):
    arguments = {
        "images": np.arange(num_examples * 4, dtype=np.uint8).reshape(num_examples, 2, 2, 1),
        "labels": np.arange(num_examples) % 2,
        "class_names": ["cat", "dog"],
    }
    return data.from_arrays("small", "test", **(arguments | replaced))


def test_from_arrays_makes_a_whole_split():
    whole = small()
    assert (whole.name, whole.split, whole.class_names) == ("small", "test", ("cat", "dog"))
    assert (whole.image_shape, whole.num_classes, len(whole), whole.on_disk) == ((2, 2, 1), 2, 5, False)
    assert whole.labels.dtype == whole.indices.dtype == np.int32
    np.testing.assert_array_equal(whole.indices, np.arange(5))


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"labels": np.array([0, 1, 2, 0, 1])}, "must have labels from 0 to 1, got 0 to 2"),
        ({"labels": np.array([0, -1, 1, 0, 1])}, "must have labels from 0 to 1, got -1 to 1"),
    ],
)
def test_columns_that_do_not_fit_are_refused(replaced, message):
    with pytest.raises(ValueError, match=message):
        small(**replaced)


def test_columns_of_different_lengths_are_refused():
    whole = small()
    # Without the checks of shapes that tests alone have.
    object.__setattr__(whole, "labels", np.zeros(4, np.int32))
    with pytest.raises(ValueError, match="'test' of small has 5 images, 4 labels and 5 indices"):
        whole.__post_init__()


def test_rows_keep_their_identity():
    whole = small()
    for rows in (slice(1, 4), np.array([1, 2, 3])):
        some = data.rows_of(whole, rows)
        np.testing.assert_array_equal(some.images, whole.images[1:4])
        np.testing.assert_array_equal(some.labels, [1, 0, 1])
        np.testing.assert_array_equal(some.indices, [1, 2, 3])
        assert some.class_names == whole.class_names


def test_first_takes_no_more_than_there_are():
    np.testing.assert_array_equal(data.first(small(), 2).indices, [0, 1])
    for count in (0, 6):
        with pytest.raises(ValueError, match=rf"num_examples must be from 1 to 5, .* small \(test\) .* got {count}"):
            data.first(small(), count)


def test_images_that_do_not_fit_a_network_are_refused():
    data.check_fits(small(), (2, 2, 1), 2, network="it")
    for shape, classes in (((2, 2, 3), 2), ((2, 2, 1), 10)):
        with pytest.raises(ValueError, match=r"it takes inputs of shape .*; small has \(2, 2, 1\) in 2"):
            data.check_fits(small(), shape, classes, network="it")
