"""The two lowerings against each other: `lax` itself is the reference of the one for CPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddjax import windows

# Height, width, channels of the input; height, width, inputs and outputs of the kernel; settings.
CONVOLUTIONS = {
    "stride that divides": ((8, 10, 3), (4, 4, 3, 5), {"strides": (2, 2), "padding": ((1, 1), (1, 1))}),
    "stride that does not divide": ((9, 8, 8), (3, 5, 8, 4), {"strides": (2, 3), "padding": ((1, 1), (2, 2))}),
    "filter smaller than stride": ((7, 9, 8), (1, 2, 8, 4), {"strides": (2, 3)}),
    "rows that no window reaches": ((10, 11, 8), (3, 3, 8, 4), {"strides": (4, 4)}),
    "dilation": ((9, 9, 8), (3, 2, 8, 4), {"dilation": (2, 3), "padding": ((2, 2), (0, 1))}),
    "much padding": ((4, 4, 8), (2, 2, 8, 4), {"padding": ((3, 0), (2, 4))}),
    "groups": ((6, 6, 8), (3, 3, 4, 6), {"groups": 2, "padding": ((1, 1), (1, 1)), "strides": (2, 1)}),
    "depthwise": ((7, 6, 4), (3, 2, 1, 8), {"groups": 4, "padding": ((1, 2), (0, 1)), "strides": (2, 1)}),
    "depthwise with dilation": ((8, 8, 4), (3, 3, 1, 4), {"groups": 4, "dilation": (2, 2)}),
}
POOLINGS = {
    "overlapping": ((7, 8, 3), (3, 3), {"strides": (2, 2), "padding": ((1, 1), (1, 1))}),
    "not square": ((9, 7, 2), (4, 2), {"padding": ((2, 0), (1, 1))}),
    "gaps": ((9, 9, 2), (2, 2), {"strides": (3, 4)}),
    "blocks": ((5, 4, 2), (2, 2), {}),
}


def values_and_gradients(function, arrays, lowering):
    outputs, pull = jax.vjp(functools.partial(function, lowering=lowering), *arrays)
    # A different number for each output.
    cotangent = jnp.cos(jnp.arange(outputs.size, dtype=jnp.float32)).reshape(outputs.shape)
    return outputs, *pull(cotangent)


def both(function, *arrays):
    run = lambda *arrays: [values_and_gradients(function, arrays, lowering) for lowering in ("plain", "canonical")]
    return [list(map(np.asarray, found)) for found in jax.jit(run)(*arrays)]


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_and_their_gradients(name):
    shape, kernel_shape, settings = CONVOLUTIONS[name]
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=size).astype(np.float32) for size in ((2, *shape), kernel_shape)]
    plain, canonical = both(functools.partial(windows.conv, **settings), *arrays)
    for wanted, got in zip(plain, canonical, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("name", POOLINGS)
def test_poolings_and_their_gradients(name):
    shape, window, settings = POOLINGS[name]
    # Three values only: windows have ties, and padding must lose against negative ones.
    inputs = np.random.default_rng(1).integers(-3, 0, (2, *shape)).astype(np.float32)
    plain, canonical = both(functools.partial(windows.max_pool, window=window, **settings), inputs)
    for wanted, got in zip(plain, canonical, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-6)
    strides = settings.get("strides", window)
    summed = functools.partial(windows.sum_pool, window=window, **{**settings, "strides": strides})
    for wanted, got in zip(*both(summed, inputs), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_convolution_in_a_loop_has_no_windows_with_gaps():
    """XLA:CPU runs convolutions with dilated operands as naive loops."""
    images, kernel = jnp.zeros((2, 9, 9, 8)), jnp.zeros((3, 3, 8, 8))
    total = lambda images: jnp.sum(windows.conv(images, kernel, strides=(2, 2), lowering="canonical") ** 2)
    step = lambda images: jax.lax.fori_loop(0, 2, lambda _, images: images - jax.grad(total)(images), images)
    text = jax.jit(step).lower(images).compile().as_text()
    lines = [line for line in text.splitlines() if " convolution(" in line]
    assert lines
    assert not [line for line in lines if "stride=" in line or "lhs_dilate" in line or "rhs_dilate" in line]


def test_refuses_wrong_channels():
    with pytest.raises(ValueError, match="the kernel takes 6 channels, the input has 4"):
        windows.conv(jnp.zeros((1, 4, 4, 4)), jnp.zeros((2, 2, 3, 4)), groups=2)
    with pytest.raises(ValueError, match="unknown lowering 'fast'"):
        windows.max_pool(jnp.zeros((1, 4, 4, 4)), (3, 3), lowering="fast")
