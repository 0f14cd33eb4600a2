"""Contracts of all registered defenses, which a new defense passes without a line here."""

import functools
import inspect
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import ddjax
from ddjax import defenses, layers, models, parallel
from ddjax.defenses import declaration
from ddjax.generative import pixelcnn

SHAPE = (2, 8, 8, 3)
TRANSFORMS = [name for name, each in defenses.DEFENSES.items() if each.kind == "transform"]
WRAPPERS = [name for name, each in defenses.DEFENSES.items() if each.kind == "wrapper"]
# Small enough for a test.
SETTINGS = {
    "crop_ensemble": {"size": 6, "num_crops": 2},
    "defense_gan": {"num_steps": 10, "restarts": 2},
    "non_local_means": {"search": 3, "strength": 60.0},
    "quilting": {"num_patches": 30, "patch": 4, "neighbors": 3},
    "total_variation": {"num_iterations": 10},
}
# They look at one value at a time, so inputs may have any shape.
ELEMENTWISE = ("truncate_bit_depth", "bit_depth", "binary")
KEY = jax.random.key(7)
EVALUATE = parallel.Evaluator(batch_size=64)


@functools.cache
def images():
    return jax.random.uniform(jax.random.key(0), SHAPE, jnp.float32, 0.02, 0.98)


def _make(scale, codes):
    return jax.nn.sigmoid(scale * codes).reshape(-1, *SHAPE[1:])


@functools.cache
def density():
    network = pixelcnn.PixelCNN(channels=3, width=4, blocks=1, levels=1, mixtures=2, dropout=0.0)
    levels = jnp.zeros((1, *SHAPE[1:]))
    return pixelcnn.density(network, jax.jit(network.init)(jax.random.key(1), levels)["params"])


@functools.cache
def prepared(name):
    """A defense with small settings, and with models that are not trained."""
    made = defenses.defense(name, **SETTINGS.get(name, {}))
    if name == "defense_gan":
        return made.with_given(jax.tree_util.Partial(_make, jnp.float32(0.5)), latent=int(np.prod(SHAPE[1:])))
    if name == "pixel_defend":
        return made.with_given(density())
    return made.prepared(images(), jax.random.key(2))


class Network(nn.Module):
    """A classifier of inputs of any shape whose gradients depend on the input."""

    @nn.compact
    def __call__(self, inputs):
        hidden = nn.Dense(8)(inputs.reshape(inputs.shape[0], -1))
        return nn.Dense(3)(layers.ReLU()(hidden) + jnp.sin(hidden))


@functools.cache
def network(shape=SHAPE):
    return ddjax.bind(Network(), jax.jit(Network().init)(jax.random.key(3), jnp.zeros((1, *shape[1:]))))


def keys(count=SHAPE[0]):
    return jax.random.split(KEY, count)


def behind(name):
    """The network behind a defense: a network of codes for a transform that makes codes."""
    defense = prepared(name)
    if not defense.is_transform:
        return network()
    seen = jax.eval_shape(lambda x: defense.transform(x, keys()), images())
    return network(seen.shape)


@functools.cache
def program(name):
    """What a transform shows as deployed and as a defense-aware attack differentiates it, each with its gradient."""
    defense = prepared(name)
    exact = ddjax.transform(defense.declaration.function, **dict(defense.settings))
    seen = defenses.aware(exact)
    drawn = (keys(),) if defense.declaration.random else ()

    @jax.jit
    def run(inputs, weights):
        def of(function):
            def loss(x):
                shown = function(x, *drawn, *defense.given)
                return jnp.sum(weights * shown.astype(jnp.float32)), shown

            gradient, shown = jax.grad(loss, has_aux=True)(inputs)
            return shown, gradient

        deployed = of(exact)
        return deployed, deployed if seen is exact else of(seen)

    return run


def weights_of(name):
    defense = prepared(name)
    shown = jax.eval_shape(lambda x: defense.transform(x, keys()), images())
    return jax.random.normal(jax.random.key(4), shown.shape, jnp.float32)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_gradient_is_as_declared(name):
    declared = defenses.DEFENSES[name].gradient
    weights = weights_of(name)
    (shown, own), (seen, gradient) = jax.tree.map(np.asarray, program(name)(images(), weights))
    np.testing.assert_array_equal(seen, shown)
    # An attack has a gradient for every example.
    assert np.isfinite(gradient).all()
    assert (np.abs(gradient).max((1, 2, 3)) > 1e-3).all()
    if declared != "own":
        # A gradient of its own must be declared.
        np.testing.assert_array_equal(own, 0)
        return
    np.testing.assert_array_equal(own, gradient)
    direction = np.asarray(jax.random.normal(jax.random.key(5), SHAPE))
    step = 2e-4
    ends = [
        np.asarray(program(name)(images() + sign * step * direction, weights)[0][0], np.float64) for sign in (1, -1)
    ]
    difference = float(((ends[0] - ends[1]) * np.asarray(weights)).sum()) / (2 * step)
    slope = float((gradient.astype(np.float64) * direction).sum())
    scale = float(np.abs(gradient * direction).sum())
    assert abs(difference - slope) < 0.02 * scale


@pytest.mark.parametrize("name", [*TRANSFORMS, *WRAPPERS])
def test_aware_attack_has_a_gradient_for_every_example(name):
    seen = prepared(name).aware(behind(name), jax.random.key(6), 2)
    loss = lambda x: jnp.sum(jax.nn.log_softmax(seen(x))[:, 0])
    gradient = np.asarray(jax.jit(jax.grad(loss))(images()))
    assert np.isfinite(gradient).all()
    assert (np.abs(gradient).max((1, 2, 3)) > 0).all()


@pytest.mark.parametrize("name", [*TRANSFORMS, *WRAPPERS])
def test_deployed_classifier_is_random_as_declared_and_naive_is_one_draw(name):
    defense, logits_fn = prepared(name), behind(name)
    deployed = defense.deployed(logits_fn)
    naive = defense.naive(logits_fn, KEY)
    if isinstance(deployed, ddjax.Randomized):
        assert defense.declaration.random or defense.declaration.kind == "wrapper"
        both = jax.jit(lambda inputs, keys: (naive(inputs), deployed(inputs, keys)))
        np.testing.assert_allclose(*both(images(), jnp.stack([KEY] * 2)), atol=1e-5)
        one, other = both(images(), keys())
        assert np.abs(np.asarray(other - one)).max() > 0
        return
    assert not defense.declaration.random
    # Classifiers that are equal share a program.
    run = jax.jit(lambda logits_fn, inputs: logits_fn(inputs))
    np.testing.assert_array_equal(*(run(jax.tree_util.Partial(each), images()) for each in (naive, deployed)))


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_outputs_have_the_dtype_of_the_inputs(name, dtype):
    weights = weights_of(name)
    expected = np.asarray(program(name)(images(), weights)[0][0], np.float64)
    with jax.enable_x64(dtype == "float64"):
        inputs = jnp.asarray(np.asarray(images())).astype(dtype)
        (shown, _), (seen, gradient) = program(name)(inputs, weights)
        for found in (shown, seen):
            assert found.dtype == dtype
            assert found.shape == expected.shape
            assert np.isfinite(np.asarray(found, np.float64)).all()
        assert gradient.dtype == dtype
        assert np.isfinite(np.asarray(gradient, np.float64)).all()
        if dtype == "float64" and not defenses.DEFENSES[name].random:
            # The same defense in either precision, but for values on the border of two levels.
            assert np.mean(np.abs(np.asarray(found) - expected) < 1e-3) > 0.98


@pytest.mark.parametrize("name", TRANSFORMS)
def test_other_shapes_pass_or_are_refused_in_a_sentence(name, monkeypatch):
    inputs = jax.random.uniform(jax.random.key(8), (2, 6))
    defense = prepared(name)
    # Without the type hints that tests have and users do not.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    if name in ELEMENTWISE:
        assert defense.transform(inputs, keys()).shape == inputs.shape
        return
    with pytest.raises(ValueError, match=r"\[B, H, W, C\], got inputs of the shape \(2, 6\)"):
        defense.transform(inputs, keys())


@pytest.mark.parametrize("name", list(defenses.DEFENSES))
def test_settings_are_read_from_a_flag(name):
    declared = defenses.DEFENSES[name]
    for setting, parameter in declared.parameters.items():
        if parameter.default is not inspect.Parameter.empty and parameter.default is not None:
            read = defenses.parse(f"{name}:{setting}={parameter.default}")
            assert dict(read.settings)[setting] == pytest.approx(parameter.default)
    with pytest.raises(ValueError, match=f"{name} has no setting 'mood'; known: "):
        defenses.parse(f"{name}:mood=1")
    with pytest.raises(ValueError, match=f"{name} has no setting 'mood'; known: "):
        defenses.defense(name, mood=1)


def test_prepared_defense_is_a_pytree_of_what_was_given():
    traces = []

    @jax.jit
    def show(defense, inputs):
        traces.append(1)
        return defense.transform(inputs, keys())

    quilting = prepared("quilting")
    first = show(quilting, images())
    second = show(jax.tree.map(lambda leaf: leaf / 2, quilting), images())
    assert len(traces) == 1
    assert float(second.max()) <= 0.5 < float(first.max())
    with pytest.raises(ValueError, match="quilting needs preparation"):
        defenses.defense("quilting").deployed(network())


def _thirds(inputs):
    return jnp.round(3 * inputs) / 3


@mock.patch.dict(defenses.DEFENSES)
def test_undeclared_transform_is_refused_by_aware_attacks():
    rounding = ddjax.transform(_thirds)
    with pytest.raises(ValueError, match=r"_thirds does not declare its gradient: register it with ddjax\.defenses"):
        defenses.aware(rounding)
    # BPDA says what the gradient is.
    assert defenses.aware(ddjax.bpda(rounding)) == ddjax.bpda(rounding)
    defenses.register(defenses.declare(_thirds, gradient="straight-through"))
    weights = jax.random.normal(jax.random.key(9), (2, 5))
    inputs = jax.random.uniform(jax.random.key(10), (2, 5))
    found = jax.grad(lambda x: jnp.sum(weights * defenses.aware(rounding)(x)))(inputs)
    np.testing.assert_array_equal(found, weights)
    assert defenses.parse("_thirds").deployed(lambda x: x)(inputs).shape == (2, 5)
    with pytest.raises(ValueError, match="already is defense '_thirds'"):
        defenses.register(defenses.declare(_thirds, gradient="own"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "must declare its gradient"),
        ({"gradient": "none"}, "unknown gradient 'none'; known: own, straight-through, substitute"),
        ({"gradient": "substitute"}, "go together"),
        ({"gradient": "own", "substitute": _thirds}, "go together"),
        ({"gradient": "own", "kind": "filter"}, "unknown kind of a defense 'filter'"),
        ({"gradient": "own", "kind": "detector"}, "no gradient to declare"),
        ({"gradient": "straight-through", "kind": "wrapper"}, "a wrapper has no straight-through gradient"),
    ],
)
def test_bad_declarations_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        declaration.declare(_thirds, **settings)


def test_wrapper_may_declare_a_substitute():
    hard = lambda logits_fn: lambda inputs: logits_fn(_thirds(inputs))
    soft = lambda logits_fn: lambda inputs: logits_fn(inputs)
    declared = declaration.declare(hard, name="hard", kind="wrapper", gradient="substitute", substitute=soft)
    defense = declaration.with_settings(declared, "hard", {})
    gradient = lambda f: np.asarray(jax.grad(lambda x: jnp.sum(f(x)[:, 0]))(images()))
    assert not gradient(defense.naive(network(), KEY)).any()
    np.testing.assert_array_equal(gradient(defense.aware(network(), KEY)), gradient(network()))


def test_network_that_does_not_take_what_a_transform_gives_is_refused():
    codes = defenses.defense("thermometer", levels=4)
    with pytest.raises(ValueError, match=r"\(8, 8, 3\) into ones of the shape \(8, 8, 12\), which this network"):
        codes.check_fits(network(), SHAPE[1:])
    codes.check_fits(network((1, 8, 8, 12)), SHAPE[1:])
    with pytest.raises(ValueError, match="size must be from 1 to 8, got 9"):
        defenses.defense("crop_ensemble", size=9).check_fits(network(), SHAPE[1:])


class TestDetectors:
    def test_squeezing_refuses_data_sets_without_published_squeezers(self):
        with pytest.raises(ValueError, match="needs squeezers, as in squeezers=VALUE; nothing is published for digits"):
            defenses.parse("squeezing", "digits")
        assert dict(defenses.parse("squeezing", "mnist").settings)["squeezers"] == "bit_depth_1+median_2_2"
        assert dict(defenses.parse("squeezing:squeezers=median_3_3", "mnist").settings)["squeezers"] == "median_3_3"
        with pytest.raises(ValueError, match="either fixed or calibrated"):
            defenses.parse("squeezing:threshold=1,false_positive_rate=0.1", "mnist")
        with pytest.raises(ValueError, match="threshold must be a finite number at least 0 and below 2"):
            defenses.parse("squeezing:threshold=2", "mnist")

    def test_squeezing_is_calibrated_on_clean_images(self):
        clean = np.asarray(jax.random.uniform(jax.random.key(11), (40, *SHAPE[1:])))
        defense = defenses.parse("squeezing:squeezers=bit_depth_3+median_2_2,false_positive_rate=0.1")
        found = defense.detector(network(), clean, None, key=KEY, evaluate=EVALUATE)
        assert found.flags(clean).sum() == 4
        np.testing.assert_array_equal(found.flags(clean), found.scores(clean) > np.float32(found.threshold))
        fixed = defenses.parse("squeezing:squeezers=median_2_2,threshold=0.7")
        assert fixed.detector(network(), clean, None, key=KEY, evaluate=EVALUATE).threshold == 0.7
        np.testing.assert_allclose(defense.view(jnp.asarray(clean), KEY), np.round(7 * clean) / 7, rtol=1e-6)

    def test_squeezing_that_detects_nothing_is_refused(self):
        """Squeezers that change every decision, as MNIST's do on images of 8 x 8 pixels."""
        steep = lambda x: 1e4 * jnp.stack([x[:, 0, 0, 0] - 0.5, 0.5 - x[:, 0, 0, 0]], axis=1)
        clean = np.full((20, *SHAPE[1:]), 0.4, np.float32)
        clean[:, 0, 0] = 0.6
        defense = defenses.parse("squeezing:squeezers=resample_8")
        with pytest.raises(ValueError, match="no threshold detects anything"):
            defense.detector(steep, clean, None, key=KEY, evaluate=EVALUATE)

    def test_lid_is_fitted_and_calibrated(self):
        module = models.ConvNet(num_classes=3, stages=(), dense=(16,), dropout=(0.0,))
        shape = (8, 8, 1)
        logits_fn = ddjax.bind(module, jax.jit(module.init)(jax.random.key(12), jnp.zeros((1, *shape))))
        clean = np.asarray(jax.random.uniform(jax.random.key(13), (320, *shape)))
        labels = np.asarray(jnp.argmax(jax.jit(logits_fn)(clean), axis=1), np.int32)
        defense = defenses.parse("lid:false_positive_rate=0.1")
        found = defense.detector(logits_fn, clean, labels, key=KEY, evaluate=EVALUATE)
        # Calibrated on the second half, which the network classifies correctly.
        assert found.flags(clean[160:]).sum() == 16
        assert ((found.scores(clean) >= 0) & (found.scores(clean) <= 1)).all()
        with pytest.raises(ValueError, match="needs 5 or more images that the network classifies correctly"):
            defense.detector(logits_fn, clean, (labels + 1) % 3, key=KEY, evaluate=EVALUATE)
        with pytest.raises(ValueError, match="median is no detector"):
            defenses.parse("median").detector(logits_fn, clean, labels, key=KEY, evaluate=EVALUATE)
