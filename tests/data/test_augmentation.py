import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from ddjax.data import augmentation

KEYS = jax.random.split(jax.random.key(0), 2000)
SIZE = 21
IMAGES = np.random.default_rng(1).random((4, SIZE, SIZE, 3), np.float32)
# Compiled, because that takes less time than operation by operation.
jitter = jax.jit(augmentation._jitter)
photographs = jax.jit(augmentation.photographs)


@pytest.fixture(scope="module")
def sources():
    """Where each place of the result comes from, for many draws: `[N, 2, H, W]`, from the center of the image."""
    rows, columns = jax.jit(jax.vmap(lambda key: augmentation._sources(SIZE, SIZE, key)))(KEYS)
    return np.stack([rows, columns], 1) - (SIZE - 1) / 2


def test_geometry_is_a_flip_a_rotation_and_a_crop_in_their_ranges(sources):
    # An affine map: read off its linear part.
    down = sources[:, :, 1, 0] - sources[:, :, 0, 0]
    right = sources[:, :, 0, 1] - sources[:, :, 0, 0]
    np.testing.assert_allclose(
        sources[:, :, -1, -1], sources[:, :, 0, 0] + (SIZE - 1) * (down + right), rtol=1e-4, atol=1e-4
    )
    flipped = np.linalg.det(np.stack([down, right], -1)) < 0
    assert abs(flipped.mean() - 0.5) < 0.04
    height, width = np.linalg.norm(down, axis=1), np.linalg.norm(right, axis=1)
    np.testing.assert_allclose((down * right).sum(1), 0, atol=1e-5)
    assert height.max() <= 1 + 1e-5
    assert width.max() <= 1 + 1e-5
    assert 0.7 * 0.75 <= (height * width).min() < 0.75
    assert np.log(width / height).max() <= np.log(4 / 3) + 1e-5
    assert np.log(width / height).min() >= -np.log(4 / 3) - 1e-5
    angle = np.degrees(np.arctan2(np.where(flipped, -down[:, 1], down[:, 1]), down[:, 0]))
    assert np.abs(angle).max() <= 45
    assert np.percentile(np.abs(angle), 50) == pytest.approx(22.5, abs=2)
    # The crop lies inside of the rotated image: turned back, its corners lie inside of the image.
    mirrored = sources * np.where(flipped, -1, 1)[:, None, None, None] ** np.array([0, 1])[:, None, None]
    turn = np.radians(-angle)
    back = np.stack([np.stack([np.cos(turn), np.sin(turn)], -1), np.stack([-np.sin(turn), np.cos(turn)], -1)], -2)
    corners = np.einsum("nij,njc->nic", np.swapaxes(back, 1, 2), mirrored[:, :, [0, 0, -1, -1], [0, -1, 0, -1]])
    assert np.abs(corners).max() <= SIZE / 2
    assert np.abs(corners).max() > SIZE / 2 - 1


def test_resampling_is_scipys():
    @jax.jit
    def drawn(key):
        color, geometry = jax.random.split(key)
        return augmentation._sources(SIZE, SIZE, geometry), jax.random.uniform(color, (4,))

    (rows, columns), colors = jax.tree.map(np.asarray, drawn(KEYS[3]))
    got = np.asarray(photographs(IMAGES, KEYS[3:7]))[0]
    jittered = np.asarray(jitter(IMAGES[0], colors))
    for channel in range(3):
        expected = ndimage.map_coordinates(jittered[..., channel], [rows, columns], order=1, mode="grid-constant")
        inside = (rows >= 0) & (rows <= SIZE - 1) & (columns >= 0) & (columns <= SIZE - 1)
        np.testing.assert_allclose(got[..., channel][inside], expected[inside], atol=1e-5)


def test_colors_change_in_their_ranges_and_not_at_the_middle():
    full = lambda shape, value: np.full(shape, value, np.float32)
    np.testing.assert_allclose(jitter(IMAGES[0], full(4, 0.5)), IMAGES[0], atol=1e-5)
    gray = full((3, 3, 3), 0.5)
    # A flat gray image has brightness alone.
    for draw, factor in ((0.0, 0.7), (1.0, 1.3)):
        np.testing.assert_allclose(jitter(gray, full(4, draw)), gray * factor, atol=1e-5)
    for extreme in (0.0, 1.0):
        assert np.isfinite(jitter(full((3, 3, 3), extreme), full(4, 1.0))).all()
    red = full((3, 3, 3), [1.0, 0.0, 0.0])
    turned = np.asarray(jitter(red, np.array([0.5, 0.5, 0.5, 1.0], np.float32)))
    # 0.2 of the circle from red, 72 degrees: yellow and a fifth of the way on to green.
    np.testing.assert_allclose(turned[0, 0], [0.8, 1.0, 0.0], atol=1e-5)


def test_each_image_has_its_own_draw_and_an_equal_key_the_same():
    same = np.broadcast_to(IMAGES[:1], IMAGES.shape)
    varied = np.asarray(photographs(same, KEYS[:4]))
    assert varied.shape == IMAGES.shape
    assert float(varied.min()) >= 0
    assert float(varied.max()) <= 1
    for other in range(1, 4):
        assert np.abs(varied[0] - varied[other]).max() > 0.1
    np.testing.assert_array_equal(photographs(same, KEYS[:4]), varied)


def test_gray_images_are_refused():
    with pytest.raises(ValueError, match="three channels, got 1"):
        augmentation.photographs(jnp.asarray(IMAGES[..., :1]), KEYS[:4])


def test_shifts_and_flips_are_all_there_and_move_whole_pixels():
    # A picture without equal pixels, in which each shift and flip can be recognized.
    picture = np.arange(1, 8 * 8 + 1, dtype=np.float32).reshape(1, 8, 8, 1) / 64
    keys = jax.random.split(jax.random.key(0), 400)
    found = np.asarray(jax.jit(augmentation.shifts_and_flips)(np.tile(picture, (400, 1, 1, 1)), keys))[..., 0]
    padded = np.pad(picture[0, :, :, 0], 1)
    expected = [padded[row : row + 8, column : column + 8] for row in range(3) for column in range(3)]
    expected += [shift[:, ::-1] for shift in expected]
    matches = np.array([[np.array_equal(one, other) for other in expected] for one in found])
    np.testing.assert_array_equal(matches.sum(1), 1)
    assert matches.sum(0).min() > 5


def test_crops_enlarge_a_part():
    # Of a slope, a crop is a slope of three quarters of the steepness.
    slope = np.broadcast_to(np.linspace(0, 1, 32, dtype=np.float32)[None, None, :, None], (20, 32, 32, 1))
    found = np.asarray(jax.jit(augmentation.crops)(slope, KEYS[:20]))[:, 16, :, 0]
    steps = np.median(np.abs(np.diff(found, axis=1)), axis=1)
    np.testing.assert_allclose(steps, 0.75 / 31, rtol=1e-3)
    assert len(np.unique(found[:, 16])) > 5
