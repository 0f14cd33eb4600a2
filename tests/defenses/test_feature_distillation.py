import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft

from ddjax.defenses import feature_distillation as fd

# One program for each shape and setting, which the tests share.
distill = jax.jit(fd.distill_features, static_argnames="table")
random_grid = jax.jit(fd.random_grid, static_argnames=("limit", "cells", "flips"))
random_jitter = jax.jit(fd.random_jitter, static_argnames="limit")


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).uniform(size=(2, 19, 13, 3)).astype(np.float32)


def oracle(images, table):
    """Block by block, by SciPy's transform."""
    table = np.asarray(table)
    block = len(table)
    images = np.asarray(images, np.float64)
    rows, columns = images.shape[1:3]
    pads = [((-side % block) // 2, -side % block - (-side % block) // 2) for side in (rows, columns)]
    padded = 255 * np.pad(images, ((0, 0), *pads, (0, 0)), mode="reflect")
    for image in padded:
        for i in range(0, padded.shape[1], block):
            for j in range(0, padded.shape[2], block):
                for channel in range(images.shape[3]):
                    part = image[i : i + block, j : j + block, channel]
                    part[:] = scipy.fft.idctn(np.rint(scipy.fft.dctn(part, norm="ortho") / table) * table, norm="ortho")
    top, left = pads[0][0], pads[1][0]
    return np.clip(padded[:, top : top + rows, left : left + columns] / 255, 0, 1)


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_cosine_matrix_is_scipys_and_orthonormal(size):
    np.testing.assert_allclose(fd.cosine_matrix(size), scipy.fft.dct(np.eye(size), axis=0, norm="ortho"), atol=1e-12)
    np.testing.assert_allclose(fd.cosine_matrix(size) @ fd.cosine_matrix(size).T, np.eye(size), atol=1e-12)


@pytest.mark.parametrize(
    "table", [fd.TABLE, ((20.0,) * 4,) * 4, tuple(tuple(5.0 + i + j for j in range(5)) for i in range(5))]
)
def test_is_the_oracles(images, table):
    np.testing.assert_allclose(distill(images, table=table), oracle(images, table), atol=1e-6)


def test_is_idempotent_where_nothing_was_clipped(images):
    mild = np.float32(0.3) + np.float32(0.4) * images[:, :16, :8]
    once = np.asarray(distill(mild))
    assert once.min() > 0
    assert once.max() < 1
    np.testing.assert_allclose(distill(once), once, atol=1e-6)
    assert np.abs(once - mild).max() > 0.01


def test_fine_steps_change_nothing_and_means_move_by_half_a_step(images):
    fine = ((1e-3,) * 8,) * 8
    np.testing.assert_allclose(distill(images, table=fine), images, atol=1e-5)
    mild = np.float32(0.3) + np.float32(0.4) * images[:, :16, :8]
    means = lambda x: np.asarray(x).reshape(2, 2, 8, 1, 8, 3).mean((2, 4))
    # The first coefficient is 8 times the mean of the block.
    assert np.abs(means(distill(mild)) - means(mild)).max() <= 25 / 2 / 8 / 255 + 1e-6


@pytest.mark.parametrize("table", [((1.0, 2.0),), ((0.0,),), ((float("nan"),),)])
def test_tables_that_are_none(images, table):
    with pytest.raises(ValueError, match="a square of positive numbers"):
        fd.distill_features(jnp.asarray(images), table=table)


def keys(seed, count=2):
    return jax.random.split(jax.random.key(seed), count)


def expected_places(key, side, limit, cells):
    """The positions of a side, by the description; the draws are those of the function."""
    length = max(side // cells, 1)
    starts = list(range(0, side, length))
    steps = np.asarray(jax.random.uniform(jax.random.split(key)[0], (len(starts),), minval=1 - limit, maxval=1 + limit))
    places, before = np.zeros(side), 0.0
    for start, step in zip(starts, steps, strict=True):
        end = min(start + length, side)
        after = side if start + length > side else before + length * step
        places[start:end] = np.linspace(before, after, end - start)
        before = after
    return np.clip(np.rint(places), 0, side - 1).astype(int)


def test_grid_is_the_description(images):
    found = random_grid(images, keys(1), limit=0.3, cells=4)
    for image, key, result in zip(images, keys(1), found, strict=True):
        of_rows, of_columns = jax.random.split(key)
        rows, columns = expected_places(of_rows, 19, 0.3, 4), expected_places(of_columns, 13, 0.3, 4)
        np.testing.assert_array_equal(result, image[rows][:, columns])


@pytest.mark.parametrize("distort", [fd.random_grid, fd.random_jitter, fd.distill_and_distort])
def test_an_image_has_its_own_draw_whatever_its_batch(images, distort):
    distort = jax.jit(distort)
    together = np.asarray(distort(images, keys(2)))
    np.testing.assert_array_equal(distort(images[1:], keys(2)[1:])[0], together[1])
    same = np.asarray(distort(np.stack([images[0], images[0]]), keys(2)))
    assert np.abs(same[0] - same[1]).max() > 0.1
    assert together.shape == images.shape
    assert together.min() >= 0
    assert together.max() <= 1


def test_no_limit_shows_what_was_there_and_gradients_pass(images):
    # Whole cells, but for the ends of a cell, both of which are shown.
    np.testing.assert_array_equal(random_grid(images, keys(3), limit=0.0, cells=100), images)
    np.testing.assert_allclose(random_jitter(images, keys(3), limit=0.0), images, atol=1e-6)
    gradient = lambda distort: np.asarray(jax.jit(jax.grad(lambda x, k: distort(x, k).sum()))(images, keys(3)))
    assert gradient(fd.random_grid).sum() == pytest.approx(images.size)
    assert gradient(fd.random_jitter).sum() == pytest.approx(images.size, rel=1e-5)


def test_flips_run_half_of_the_sides_from_the_other_end():
    ramp = np.broadcast_to(np.arange(20, dtype=np.float32)[:, None, None] / np.float32(20), (200, 20, 20, 1))
    found = np.asarray(random_grid(ramp, keys(4, 200), limit=0.2, flips=True))
    # From its own end a side starts with what is there.
    first, last = found[:, 0, 0, 0] == 0, found[:, -1, 0, 0] == np.float32(19 / 20)
    assert 60 < (first & ~last).sum() + (first & last).sum() / 2 < 140
    assert (first | last).all()


def test_jitter_mixes_neighbours():
    ramp = np.broadcast_to(np.arange(30, dtype=np.float32)[:, None] / np.float32(30), (1, 5, 30, 1))
    found = np.asarray(random_jitter(ramp, keys(5, 1), limit=0.1))[0, :, :, 0]
    share = found[0] / np.maximum(ramp[0, 0, :, 0], 1e-9)
    assert (np.abs(share[1:-3] - 1) <= 0.1 + 1e-5).all()
    assert np.std(share[1:-3]) > 0.02
    np.testing.assert_allclose(found, np.broadcast_to(found[0], found.shape), atol=1e-6)


@pytest.mark.parametrize(
    ("function", "settings", "message"),
    [
        (fd.random_grid, {"limit": 1.0}, "a limit in"),
        (fd.random_grid, {"cells": 0}, "at least one cell, got 0.25 and 0"),
        (fd.random_jitter, {"limit": -0.1}, "got -0.1"),
        (fd.distill_and_distort, {"grid": "spiral"}, "unknown grid 'spiral'; known: jitter, cells"),
    ],
)
def test_refuses(images, function, settings, message):
    with pytest.raises(ValueError, match=message):
        function(jnp.asarray(images), keys(0), **settings)
