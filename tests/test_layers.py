import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal

from ddjax import layers

# Height, width, channels, filters, padding: several channels, one channel (the patch form), odd sizes, a kernel-sized
# image.
SHAPES = [
    (12, 12, 8, 6, "VALID"),
    (9, 7, 8, 6, "VALID"),
    (9, 7, 8, 6, "SAME"),
    (8, 8, 1, 6, "VALID"),
    (8, 8, 1, 6, "SAME"),
    (3, 3, 4, 2, "VALID"),
    # Many channels: Winograd's form, with whole tiles of four rows and without.
    (6, 5, 64, 64, "VALID"),
    (7, 5, 65, 64, "VALID"),
    (5, 4, 64, 64, "SAME"),
    (3, 3, 64, 64, "VALID"),
]


# As it is outside of these tests.
LEAST_PRODUCTS = layers._LEAST_PRODUCTS


@pytest.fixture(autouse=True, scope="module")
def winograd_at_any_size():
    """Otherwise tests of it would have to be large."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "_LEAST_PRODUCTS", 0)
        yield


def reference(images, kernel, cotangent, padding):
    """Convolution and both gradients in float64 by SciPy, one filter at a time."""
    mode = {"VALID": "valid", "SAME": "same"}[padding]
    batch, _, _, channels = images.shape
    filters = kernel.shape[3]
    outputs = np.zeros(cotangent.shape)
    images_gradient, kernel_gradient = np.zeros(images.shape), np.zeros(kernel.shape)
    pad = 0 if padding == "VALID" else 1
    for b in range(batch):
        for c in range(channels):
            padded = np.pad(images[b, :, :, c], pad)
            for f in range(filters):
                outputs[b, :, :, f] += signal.correlate2d(images[b, :, :, c], kernel[:, :, c, f], mode)
                full = signal.convolve2d(cotangent[b, :, :, f], kernel[:, :, c, f], "full")
                images_gradient[b, :, :, c] += full[pad : pad + images.shape[1], pad : pad + images.shape[2]]
                kernel_gradient[:, :, c, f] += signal.correlate2d(padded, cotangent[b, :, :, f], "valid")
    return outputs, images_gradient, kernel_gradient


def example(height, width, channels, filters, padding):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(3, height, width, channels))
    kernel = rng.normal(size=(3, 3, channels, filters))
    shrink = 2 if padding == "VALID" else 0
    cotangent = rng.normal(size=(3, height - shrink, width - shrink, filters))
    return images, kernel, cotangent


def values_and_gradients(images, kernel, cotangent, padding, lowering):
    outputs, vjp_fn = jax.vjp(lambda x, k: layers.conv(x, k, padding=padding, lowering=lowering), images, kernel)
    return outputs, *vjp_fn(cotangent)


# Compiled, because that takes less time than operation by operation; tests of equal shapes share a program.
compiled = jax.jit(values_and_gradients, static_argnums=(3, 4))


def single(arrays):
    return jax.device_put([array.astype(np.float32) for array in arrays])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("lowering", ["plain", "canonical"])
def test_conv_and_both_gradients_match_float64(shape, lowering):
    arrays = example(*shape)
    expected = reference(*arrays, shape[4])
    got = compiled(*single(arrays), shape[4], lowering)
    for array, wanted in zip(got, expected, strict=True):
        np.testing.assert_allclose(array, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


def test_winograd_is_as_precise_as_the_plain_form():
    rng = np.random.default_rng(3)
    images, kernel = rng.normal(size=(2, 14, 12, 64)), rng.normal(size=(3, 3, 64, 64))
    cotangent = rng.normal(size=(2, 12, 10, 64))
    exact = reference(images, kernel, cotangent, "VALID")
    error = {}
    for lowering in ("plain", "canonical"):
        got = map(np.asarray, compiled(*single((images, kernel, cotangent)), "VALID", lowering))
        error[lowering] = [np.sqrt(np.mean((a - b) ** 2) / np.mean(b**2)) for a, b in zip(got, exact, strict=True)]
    assert max(error["canonical"]) < 3e-6
    assert max(error["plain"]) < 3e-6


def test_winograd_only_where_there_is_work_enough(monkeypatch):
    def convolutions(batch):
        images, kernel = jnp.zeros((batch, 12, 12, 64)), jnp.zeros((3, 3, 64, 64))
        # A lambda each time: jax keeps the trace of a function.
        jaxpr = jax.make_jaxpr(lambda x, k: layers.conv(x, k, lowering="canonical"))(images, kernel)
        return str(jaxpr).count("conv_general_dilated[")

    assert convolutions(1) == 6
    monkeypatch.setattr(layers, "_LEAST_PRODUCTS", LEAST_PRODUCTS)
    assert [convolutions(batch) for batch in (1, 2, 4)] == [1, 1, 6]


@pytest.mark.parametrize("shape", [*SHAPES[:3], SHAPES[7]])
def test_canonical_conv_is_the_same_inside_a_scan_and_over_a_stack_of_models(shape):
    images, kernel, cotangent = single(example(*shape))
    alone = jax.tree.map(np.asarray, compiled(images, kernel, cotangent, shape[4], "canonical"))

    def step(carry, _):
        return carry, values_and_gradients(images, kernel, cotangent, shape[4], "canonical")

    _, scanned = jax.jit(lambda: jax.lax.scan(step, 0, None, length=2))()
    kernels = np.stack([kernel, 2 * np.asarray(kernel)])
    stacked = jax.jit(jax.vmap(lambda k: values_and_gradients(images, k, cotangent, shape[4], "canonical")))(kernels)
    scanned, stacked = jax.tree.map(np.asarray, (scanned, stacked))
    for one, of_scan, of_stack in zip(alone, scanned, stacked, strict=True):
        np.testing.assert_allclose(of_scan[1], one, rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(of_stack[0], one, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(stacked[0][1], 2 * alone[0], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("lowering", ["plain", "canonical"])
@pytest.mark.parametrize("size", [(6, 6), (7, 5)])
def test_max_pool_sends_ties_to_the_first_maximum(size, lowering):
    rng = np.random.default_rng(1)
    # Two values only: nearly every block has a tie.
    images = rng.integers(0, 2, (2, *size, 3)).astype(np.float32)
    height, width = size[0] // 2, size[1] // 2
    cotangent = rng.normal(size=(2, height, width, 3)).astype(np.float32)
    outputs = np.zeros_like(cotangent)
    gradient = np.zeros_like(images)
    for b, i, j, c in np.ndindex(2, height, width, 3):
        block = images[b, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2, c]
        row, column = divmod(int(block.argmax()), 2)
        outputs[b, i, j, c] = block.max()
        gradient[b, 2 * i + row, 2 * j + column, c] += cotangent[b, i, j, c]

    @jax.jit
    def value_and_gradient(images, cotangent):
        pooled, vjp_fn = jax.vjp(lambda x: layers.max_pool(x, lowering=lowering), images)
        return pooled, *vjp_fn(cotangent)

    pooled, found = value_and_gradient(images, cotangent)
    np.testing.assert_array_equal(pooled, outputs)
    np.testing.assert_array_equal(found, gradient)


def test_plain_lowering_has_forward_mode():
    images, kernel, _ = single(example(8, 8, 4, 3, "VALID"))
    conv = jax.jit(lambda x: layers.max_pool(layers.conv(x, kernel, lowering="plain"), lowering="plain"))
    _, tangent = jax.jit(lambda x: jax.jvp(conv, (x,), (jnp.ones_like(x),)))(images)
    difference = np.subtract(conv(np.asarray(images) + 1e-2), conv(images)) / 1e-2
    np.testing.assert_allclose(tangent, difference, rtol=0.05, atol=0.5)


def test_conv_module_has_the_parameters_of_flax():
    images = np.ones((2, 6, 6, 2), np.float32)
    variables = jax.jit(layers.Conv(4).init)(jax.random.key(0), images)
    apply = jax.jit(layers.Conv(4).apply)
    assert jax.tree.map(jnp.shape, variables) == {"params": {"kernel": (3, 3, 2, 4), "bias": (4,)}}
    shifted = {"params": variables["params"] | {"bias": np.ones(4, np.float32)}}
    np.testing.assert_allclose(apply(shifted, images), np.asarray(apply(variables, images)) + 1, 1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x, k: layers.conv(x, k, padding="FULL"), "unknown padding 'FULL'; known: VALID, SAME"),
        (lambda x, k: layers.conv(x, k, lowering="fast"), "unknown lowering 'fast'; known: auto, plain, canonical"),
        # Without the shape checks of the test run, as a user calls it.
        (lambda x, k: inspect.unwrap(layers.conv)(x[..., :1], k), "the kernel takes 4 channels, the input has 1"),
        (lambda x, _: layers.max_pool(x, lowering="fast"), "unknown lowering 'fast'"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.zeros((1, 5, 5, 4)), jnp.zeros((3, 3, 4, 2)))


# One channel: a patch matrix.
@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("batch", [16, 37, 150])
def test_kernel_gradient_summed_over_parts_of_the_batch(batch, channels):
    rng = np.random.default_rng(2)
    shapes = (batch, 7, 6, channels), (3, 3, channels, 5), (batch, 5, 4, 5)
    arrays = single([rng.normal(size=shape) for shape in shapes])
    plain = compiled(*arrays, "VALID", "plain")
    canonical = compiled(*arrays, "VALID", "canonical")
    for got, wanted in zip(canonical, plain, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-3)


def test_convolutions_without_rows_of_zeros_are_the_same():
    images, kernel, cotangent = single(example(12, 12, 8, 24, "VALID"))

    def unpadded(*arrays):
        with layers.unpadded():
            return values_and_gradients(*arrays, "VALID", "canonical")

    exact = jax.jit(unpadded, compiler_options=layers.COMPILER_OPTIONS)
    padded = compiled(images, kernel, cotangent, "VALID", "canonical")
    pairs = zip(exact(images, kernel, cotangent), padded, strict=True)
    for got, wanted in pairs:
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(
    ("count", "shape", "size"),
    [
        (128, (28, 28, 1), 32),
        (100, (32, 32, 3), 25),
        (128, (8, 8, 1), 128),
        (1, (28, 28, 1), 1),
        # No equal parts of a useful size.
        (127, (28, 28, 1), 127),
        (16, (224, 224, 3), 8),
    ],
)
def test_parts_that_stay_in_the_cache(count, shape, size):
    assert layers.images_at_once(count, shape) == size


def test_parts_that_need_not_be_equal():
    counts = (512, 128, 101, 64, 42, 41, 3)
    sizes = [layers.images_at_once(count, (28, 28, 1), equal=False) for count in counts]
    assert sizes == [32, 32, 25, 16, 16, 41, 3]


def lowered(platform, function, *arguments):
    # A new function each time: JAX keeps what it lowered.
    return jax.jit(lambda *inner: function(*inner)).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


def layer_gradients(images, kernel):
    def total(images, kernel):
        return jnp.sum(jnp.sin(layers.max_pool(layers.conv(images, kernel))))

    return jax.value_and_grad(total, argnums=(0, 1))(images, kernel)


def in_a_scan(images, kernel):
    return jax.lax.scan(lambda total, _: (total + layer_gradients(images, kernel)[1][0], None), images, length=2)


def over_a_stack(images, kernel):
    return jax.vmap(layer_gradients, (None, 0))(images, jnp.stack([kernel, 2 * kernel]))


def in_a_while_loop(images, kernel):
    return jax.lax.while_loop(
        lambda state: state.sum() < 10, lambda state: state + layer_gradients(images, kernel)[1][0] ** 2, images
    )


@pytest.mark.parametrize("program", [layer_gradients, in_a_scan, over_a_stack, in_a_while_loop])
# A patch matrix, the canonical form, Winograd's form.
@pytest.mark.parametrize("channels", [1, 6, 64])
def test_auto_follows_the_platform_of_the_lowering(program, channels):
    filters = 64 if channels == 64 else 5
    images, kernel = jnp.zeros((2, 8, 8, channels)), jnp.zeros((3, 3, channels, filters))
    cpu, cuda, tpu = (lowered(platform, program, images, kernel) for platform in ("cpu", "cuda", "tpu"))
    # Only the plain pooling is a windowed maximum, whose gradient selects and scatters.
    for text in (cuda, tpu):
        assert "reduce_window" in text
        assert "select_and_scatter" in text
        assert "optimization_barrier" not in text
    assert "reduce_window" not in cpu
    assert "select_and_scatter" not in cpu
    # Both gradients of a convolution rearrange their operands behind barriers; a patch matrix is a product.
    assert "optimization_barrier" in cpu or (channels == 1 and "stablehlo.dot_general" in cpu)
    assert ("stablehlo.convolution" in cpu) == (channels > 1)


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_auto_lowers_the_same_operations_as_the_chosen_form(platform):
    images, kernel, cotangent = (jnp.asarray(array, jnp.float32) for array in example(12, 12, 8, 6, "VALID"))
    form = {"cpu": "canonical", "cuda": "plain"}[platform]
    counts = []
    for lowering in ("auto", form):
        text = lowered(
            platform,
            lambda *a, lowering=lowering: values_and_gradients(*a, "VALID", lowering),
            images,
            kernel,
            cotangent,
        )
        counts.append([text.count(f"stablehlo.{name}") for name in ("convolution", "transpose", "reverse")])
    assert counts[0] == counts[1]


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[3], SHAPES[6]])
def test_auto_has_the_values_and_gradients_of_the_canonical_form(shape):
    arrays = single(example(*shape))
    wanted = compiled(*arrays, shape[4], "canonical")
    for run in (compiled, values_and_gradients):
        for got, expected in zip(run(*arrays, shape[4], "auto"), wanted, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)


def test_a_convolution_traced_again_keeps_the_gradients_of_each_use():
    # A kernel that needs no gradient, then one that does, then again one that does not, with the same kept trace.
    images, kernel, _ = single(example(8, 8, 6, 5, "VALID"))
    loss = lambda x, k, lowering: jnp.sum(jnp.sin(layers.conv(x, k, lowering=lowering)))
    for argnums in (0, (0, 1), 1, 0, (0, 1)):
        found, wanted = (
            jax.jit(jax.grad(lambda x, k, name=name: loss(x, k, name), argnums))(images, kernel)
            for name in ("auto", "plain")
        )
        for got, expected in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_unpadded_convolutions_are_not_taken_from_a_kept_trace():
    images, kernel = jnp.zeros((2, 12, 12, 8)), jnp.zeros((3, 3, 8, 6))

    def unpadded(images, kernel):
        with layers.unpadded():
            return layers.conv(images, kernel)

    padded = lambda images, kernel: layers.conv(images, kernel)
    # The row of zeros is a padding of the convolution.
    for function, zeros in ((padded, True), (unpadded, False), (padded, True)):
        assert ("pad = [[0, 3], [0, 0]]" in lowered("cpu", function, images, kernel)) == zeros


def test_batches_go_in_parts_on_cpu_alone():
    images = jnp.arange(64.0 * 28 * 28).reshape(64, 28, 28, 1)
    total = lambda images: {"sum": jnp.sin(images).sum((1, 2, 3))}
    run = lambda images: layers.in_parts(total, images)
    assert "stablehlo.while" in lowered("cpu", run, images)
    assert "stablehlo.while" not in lowered("cuda", run, images)
    for function in (run, jax.jit(run)):
        np.testing.assert_allclose(function(images)["sum"], total(images)["sum"], rtol=1e-5, atol=1e-3)


def test_second_derivatives_of_canonical_convolutions():
    rng = np.random.default_rng(5)
    inputs, kernel = single([rng.normal(size=shape) for shape in ((3, 5, 6, 4), (3, 3, 4, 7))])
    found = []
    for lowering in ("plain", "canonical"):
        value = lambda x, k, lowering=lowering: jnp.sum(jnp.sin(layers.conv(x, k, padding="SAME", lowering=lowering)))
        of_gradients = lambda x, k, value=value: sum(
            jnp.sum(jnp.cos(leaf)) for leaf in jax.grad(value, argnums=(0, 1))(x, k)
        )
        found.append(jax.jit(jax.grad(of_gradients, argnums=(0, 1)))(inputs, kernel))
    for wanted, got in zip(*found, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-3 * np.abs(wanted).max())
