import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddjax import rounding

BYTES = np.arange(256, dtype=np.uint8)
# Every byte divided by 255 and rounded once.
QUOTIENTS = (np.arange(256) / 255).astype(np.float32)


@pytest.mark.parametrize("compiled", [False, True])
def test_bytes_become_nearest_floats_in_numpy_and_jax(compiled):
    to_float = jax.jit(rounding.to_float) if compiled else rounding.to_float
    np.testing.assert_array_equal(rounding.to_float(BYTES), QUOTIENTS)
    found = to_float(jnp.asarray(BYTES))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, QUOTIENTS)


def test_to_float_keeps_floats_and_numpy_arrays():
    scaled = rounding.to_float(BYTES.reshape(4, 8, 8, 1))
    assert isinstance(scaled, np.ndarray)
    assert rounding.to_float(scaled) is scaled
    narrow = jnp.zeros(3, jnp.bfloat16)
    assert rounding.to_float(narrow) is narrow
    with pytest.raises(ValueError, match="must be uint8 or floats, got int32"):
        rounding.to_float(BYTES.astype(np.int32))


@pytest.mark.parametrize("compiled", [False, True])
def test_image_rounded_to_8_bits_equals_its_file(compiled):
    """All levels, and values around all of them, up to just before the middle between two."""
    offsets = np.array([-0.499, -0.3, -1e-5, 0, 1e-5, 0.3, 0.499])
    images = ((np.arange(256)[:, None] + offsets) / 255).astype(np.float32)
    round_to_8_bits, to_uint8, to_float = (
        jax.jit(function) if compiled else function
        for function in (rounding.round_to_8_bits, rounding.to_uint8, rounding.to_float)
    )
    rounded, stored = round_to_8_bits(jnp.asarray(images)), to_uint8(jnp.asarray(images))
    np.testing.assert_array_equal(stored, np.repeat(BYTES[:, None], len(offsets), 1))
    np.testing.assert_array_equal(rounded, to_float(stored))
    np.testing.assert_array_equal(rounded, QUOTIENTS[stored])
    np.testing.assert_array_equal(rounding.round_to_8_bits(images), rounded)
    np.testing.assert_array_equal(rounding.to_uint8(images), stored)
    np.testing.assert_array_equal(round_to_8_bits(rounded), rounded)


def test_rounding_to_8_bits_is_the_same_inside_of_a_larger_program():
    images = jax.random.uniform(jax.random.key(0), (50, 8, 8, 1))
    program = jax.jit(lambda x: rounding.round_to_8_bits(0.5 * x + 0.25) - rounding.to_float(rounding.to_uint8(x)))
    expected = rounding.round_to_8_bits(0.5 * np.asarray(images) + np.float32(0.25)) - rounding.round_to_8_bits(
        np.asarray(images)
    )
    np.testing.assert_array_equal(program(images), expected)


def test_to_uint8_clips_and_keeps_bytes():
    np.testing.assert_array_equal(rounding.to_uint8(np.array([-3.0, 0.5, 7.0])), [0, 128, 255])
    assert rounding.to_uint8(BYTES) is BYTES


@pytest.mark.parametrize("levels", [2, 3, 8, 256, 2**16])
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.0, 255.0), (-0.5, 0.5), (-3.0, 10.0)])
def test_levels_are_nearest_floats_and_fixed_points(levels, low, high):
    exact = np.linspace(low, high, levels)
    for dtype in (np.float32, np.float64):
        rounded = rounding.round_to_levels(exact.astype(dtype), levels, low, high)
        assert rounded.dtype == dtype
        np.testing.assert_allclose(rounded, exact, rtol=np.finfo(dtype).eps, atol=abs(low) * np.finfo(dtype).eps)
        assert (rounded[0], rounded[-1]) == (low, high)
        np.testing.assert_array_equal(rounding.round_to_levels(rounded, levels, low, high), rounded)
    compiled = jax.jit(lambda x: rounding.round_to_levels(x, levels, low, high))(jnp.asarray(exact, jnp.float32))
    np.testing.assert_array_equal(compiled, rounding.round_to_levels(exact.astype(np.float32), levels, low, high))


def test_levels_of_bytes_in_0_to_255_are_whole_numbers():
    values = jnp.array([-4.0, 0.4, 0.6, 127.4, 254.6, 300.0])
    np.testing.assert_array_equal(rounding.round_to_levels(values, 256, 0.0, 255.0), [0, 0, 1, 127, 255, 255])


def test_levels_take_a_range_for_each_feature():
    low, high = jnp.array([[0.0, -1.0]]), jnp.array([[2.0, 1.0]])
    inputs = jnp.array([[0.9, -0.6], [1.6, 0.4], [-9.0, 9.0]])
    for round_ in (rounding.round_to_levels, jax.jit(rounding.round_to_levels, static_argnums=1)):
        np.testing.assert_allclose(round_(inputs, 3, low, high), [[1, -1], [2, 0], [0, 1]], atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_inputs_keep_their_type(dtype):
    rounded = rounding.round_to_levels(jnp.array([0.0, 0.24, 0.26, 1.0], dtype), 3)
    assert rounded.dtype == dtype
    np.testing.assert_array_equal(rounded.astype(jnp.float32), [0, 0, 0.5, 1])
    assert jnp.isfinite(rounding.round_to_levels(jnp.ones(2, dtype), 2**16)).all()


@pytest.mark.parametrize("levels", [1, 0])
def test_fewer_than_two_levels_are_refused(levels):
    with pytest.raises(ValueError, match="levels must be a whole number of at least 2"):
        rounding.round_to_levels(np.zeros(3), levels)
