import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddjax import attacks
from ddjax.attacks import loops
from ddjax.attacks.carlini_wagner import carlini_wagner_l0, carlini_wagner_l2, carlini_wagner_linf
from ddjax.attacks.decoupled import ddn
from ddjax.attacks.gradient_sign import fgsm
from ddjax.attacks.linearized import deepfool
from ddjax.attacks.projected_gradient import mim, pgd
from ddjax.attacks.saliency import jsma
from ddjax.classifier import at_temperature

BATCH, SHAPE, CLASSES = 24, (3, 3, 2), 4


@dataclasses.dataclass(frozen=True)
class Call:
    """An attack with settings under which it is fast and often, but not always, succeeds.

    Attributes:
      attack: the function.
      norm: what is measured of it.
      static: settings that are compiled in.
      real: settings that are traced; the first is what vmap sweeps.
      targeted: whether it gets the targets.
      minimum: whether it returns the clean image where it fails.
      chaotic: whether differences in the last bit grow until results are comparable only as a whole.
      large: settings with which it must succeed wherever a solution exists; None where no settings warrant that.
      scaling: for each real setting, to which power of the inputs' range it is proportional.
    """

    attack: Callable
    norm: str
    static: dict[str, Any] = dataclasses.field(default_factory=dict)
    real: dict[str, float] = dataclasses.field(default_factory=dict)
    targeted: bool = False
    minimum: bool = False
    chaotic: bool = False
    large: dict[str, float] | None = None
    scaling: dict[str, int] = dataclasses.field(default_factory=dict)

    def __call__(self, logits_fn, batch, keys, real=None, **more):
        images, labels, targets = batch
        real = self.real if real is None else real
        targets = targets if self.targeted else None
        return self.attack(logits_fn, images, labels, key=keys, targets=targets, **self.static, **real, **more)


_RADII = {"linf": (0.2, 1.0), "l2": (0.6, 4.5), "l1": (1.5, 18.0)}


def _pgd(norm, targeted=False):
    usual, large = _RADII[norm]
    static = {"norm": norm, "num_steps": 40 if norm == "l1" else 10}
    return Call(pgd, norm, static, {"epsilon": usual}, targeted, large={"epsilon": large}, scaling={"epsilon": 1})


_FREE = {"minimum": True, "large": {}}
_CHAOTIC = _FREE | {"chaotic": True}
# One of each kind, targeted or not: what holds for it holds for its relatives, which run the same code, and of which
# `checks` has the other form.
CALLS = {
    "fgsm": Call(fgsm, "linf", real={"epsilon": 0.2}, scaling={"epsilon": 1}),
    "jsma": Call(jsma, "l0", {}, {"gamma": 0.5, "theta": 1.0}, True, scaling={"theta": 1}),
    "jsma logits": Call(
        jsma, "l0", {"score_space": "logits"}, {"gamma": 0.5, "theta": 1.0}, True, scaling={"theta": 1}
    ),
    "pgd linf": _pgd("linf"),
    "pgd l2 targeted": _pgd("l2", True),
    "pgd l1": _pgd("l1"),
    "mim targeted": Call(
        mim, "linf", {"num_steps": 10}, {"epsilon": 0.2}, True, large={"epsilon": 1.0}, scaling={"epsilon": 1}
    ),
    # Where its last step ends at the boundary, rounding decides whether there is one more.
    "deepfool linf": Call(deepfool, "linf", {"norm": "linf"}, {"overshoot": 0.02}, **_CHAOTIC),
    "ddn targeted": Call(
        ddn, "l2", {"num_steps": 30}, {"initial_norm": 1.0}, True, scaling={"initial_norm": 1}, **_FREE
    ),
    "carlini_wagner_l2 targeted": Call(
        carlini_wagner_l2,
        "l2",
        {"search_steps": 4, "num_steps": 60},
        {"confidence": 0.0, "learning_rate": 0.1, "initial_const": 0.1},
        True,
        scaling={"initial_const": 2},
        **_CHAOTIC,
    ),
    "carlini_wagner_l0": Call(
        carlini_wagner_l0,
        "l0",
        {"num_steps": 40},
        {"confidence": 0.01, "learning_rate": 0.1, "initial_const": 0.1, "largest_const": 100.0, "const_factor": 5.0},
        scaling={"initial_const": 2, "largest_const": 2},
        **_CHAOTIC,
    ),
    "carlini_wagner_linf": Call(
        carlini_wagner_linf,
        "linf",
        {"num_steps": 60},
        {"confidence": 0.0, "learning_rate": 0.05, "initial_const": 0.01, "const_factor": 4.0},
        **_CHAOTIC,
    ),
}
# The other norms of PGD and its momentum are in the same loop, and so is JSMA on probabilities.
LOOPS = [name for name in CALLS if name not in ("jsma", "pgd linf", "pgd l2 targeted", "mim targeted")]
every_call = pytest.mark.parametrize("name", CALLS)
every_loop = pytest.mark.parametrize("name", LOOPS)


def _logits(parameters, images):
    flat = images.reshape(images.shape[0], -1) / parameters["width"] - parameters["middle"]
    hidden = jax.nn.softplus(4 * (flat @ parameters["first"])) / 4
    return hidden @ parameters["second"] * parameters["scale"] + parameters["shift"]


def make(scale=1.0, shift=0.0, width=1.0, middle=0.5):
    """A smooth network whose logits, and images, are scaled and shifted without another program."""
    rng = np.random.default_rng(0)
    parameters = {
        "first": 0.5 * rng.normal(size=(np.prod(SHAPE), 16)),
        "second": rng.normal(size=(16, CLASSES)),
        "scale": scale,
        "shift": np.broadcast_to(shift, (1, CLASSES)),
        "width": width,
        "middle": np.tile(middle, np.prod(SHAPE) // np.size(middle))[None],
    }
    return jax.tree_util.Partial(_logits, jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), parameters))


NETWORK = make()


def with_labels(images):
    images = jnp.asarray(images, jnp.float32)
    labels = jnp.argmax(NETWORK(images), axis=1).astype(jnp.int32)
    return images, labels, (labels + 1 + jnp.arange(len(labels)) % (CLASSES - 1)) % CLASSES


def grid_images():
    """On the grid of 256 levels, and many at the ends."""
    images = np.random.default_rng(1).uniform(-0.25, 1.25, (BATCH, *SHAPE))
    return np.round(255 * np.clip(images, 0, 1)).astype(np.float32) / 255


IMAGES = with_labels(grid_images())
KEYS = jax.random.split(jax.random.key(7), BATCH)
TRACES = dict.fromkeys(CALLS, 0)


@functools.cache
def compiled(name):
    """One program for each call: networks, settings, keys and bounds are its arguments."""

    def call(logits_fn, batch, keys, real, bounds):
        TRACES[name] += 1
        return CALLS[name](logits_fn, batch, keys, real, bounds=bounds)

    return jax.jit(call)


def run(name, network=NETWORK, batch=IMAGES, keys=KEYS, bounds=(0.0, 1.0), **real):
    real = jax.tree.map(jnp.float32, {**CALLS[name].real, **real})
    bounds = tuple(jnp.broadcast_to(jnp.float32(bound), SHAPE[-1:]) for bound in bounds)
    return jax.tree.map(np.asarray, compiled(name)(network, batch, keys, real, bounds))


def wanted(name, logits, batch):
    """How far each example is on the wanted side, by NumPy."""
    _, labels, targets = map(np.asarray, batch)
    classes = targets if CALLS[name].targeted else labels
    own = np.take_along_axis(logits, classes[:, None], axis=1)[:, 0]
    others = np.where(np.arange(CLASSES)[None] == classes[:, None], -np.inf, logits).max(1)
    return own - others if CALLS[name].targeted else others - own


def assert_sound(name, network, batch, result):
    """What must hold whatever the network."""
    images = np.asarray(batch[0])
    assert np.isfinite(result.inputs).all()
    assert (result.inputs >= 0).all()
    assert (result.inputs <= 1).all()
    logits = np.asarray(network(result.inputs))
    # At equality of two logits the first is the decision, and rounding differs between two programs.
    slack = 3e-7 * np.abs(logits).max()
    assert (wanted(name, logits, batch)[result.success] >= -slack).all()
    assert not (wanted(name, logits, batch)[~result.success] > slack).any()
    if CALLS[name].minimum:
        np.testing.assert_array_equal(result.inputs[~result.success], images[~result.success])


def distances(name, result, batch=IMAGES):
    change = (np.asarray(result.inputs, np.float64) - np.asarray(batch[0], np.float64)).reshape(len(result.inputs), -1)
    return np.linalg.norm(change, {"l0": 0, "l1": 1, "l2": 2, "linf": np.inf}[CALLS[name].norm], axis=1)


def assert_as_good(name, got, expected, scale=1.0):
    """The same success, and distances of the same size as a whole."""
    np.testing.assert_array_equal(got.success, expected.success)
    if got.success.any():
        one, two = (np.median(distances(name, result)[got.success]) for result in (got, expected))
        np.testing.assert_allclose(one, scale * two, rtol=0.01)


def assert_same(name, got, expected, rows=slice(None)):
    expected = jax.tree.map(lambda leaf: leaf[rows], expected)
    if CALLS[name].chaotic:
        assert_as_good(name, got, expected)
    else:
        np.testing.assert_allclose(got.inputs, expected.inputs, atol=1e-6)
        np.testing.assert_array_equal(got.success, expected.success)
        np.testing.assert_array_equal(got.steps, expected.steps)
        np.testing.assert_array_equal(got.gradients, expected.gradients)


@every_call
def test_result_is_in_the_box_and_success_is_judged_on_it(name):
    result = run(name)
    assert_sound(name, NETWORK, IMAGES, result)
    assert result.success.mean() > 0.25
    np.testing.assert_allclose(result.logits, NETWORK(result.inputs), atol=1e-5)
    for count in (result.steps, result.gradients):
        assert np.issubdtype(count.dtype, np.integer)
        assert (count >= 0).all()
    assert (result.gradients >= result.steps).all()


@every_call
def test_dead_gradients_and_constants_give_neither_nan_nor_false_success(name):
    for network in (make(scale=1e3), make(scale=1e6)):
        assert_sound(name, network, IMAGES, run(name, network))
    constant = make(scale=0.0, shift=[1.0, 0, 0, 0])
    zeros = jnp.zeros_like(IMAGES[1])
    batch = (IMAGES[0], zeros, zeros + 2)
    result = run(name, constant, batch)
    assert not result.success.any()
    assert_sound(name, constant, batch, result)
    if not name.startswith("pgd"):
        # A random start moves all the same.
        np.testing.assert_array_equal(result.inputs, IMAGES[0])


@every_call
def test_logits_that_are_not_finite_are_never_success(name):
    for broken in (make(scale=np.nan), make(shift=np.inf), make(shift=[0.0, np.nan, 0, 0])):
        result = run(name, broken)
        assert not result.success.any()
        assert np.isfinite(result.inputs).all()


@every_call
def test_adding_a_number_to_all_logits_changes_nothing(name):
    plain = run(name)
    for shift in (64.0, -100.0):
        assert_as_good(name, run(name, make(shift=shift)), plain)
    far = make(shift=1e5)
    assert_sound(name, far, IMAGES, run(name, far))


@every_call
def test_black_and_white_images_are_attacked(name):
    ends = np.repeat([np.zeros(SHAPE), np.ones(SHAPE)], BATCH // 2, axis=0)
    batch = with_labels(ends)
    large = CALLS[name].large
    result = run(name, batch=batch, **(large or {}))
    assert_sound(name, NETWORK, batch, result)
    if large is not None:
        # The attacks of a fixed radius have no second try where the loss leads them astray.
        assert result.success.mean() >= (1.0 if CALLS[name].minimum else 0.9)


@every_call
def test_parameters_and_real_settings_are_arguments_not_constants(name):
    run(name)
    before = TRACES[name]
    run(name, make(scale=2.0), **{setting: 0.9 * value for setting, value in CALLS[name].real.items()})
    assert TRACES[name] == before


@pytest.mark.parametrize("name", ["fgsm", "pgd linf", "deepfool linf"])
def test_eager_is_as_compiled(as_a_user, name):
    # Also without `jit` in the loops.
    with jax.disable_jit(name == "pgd linf"):
        result = CALLS[name](NETWORK, IMAGES, KEYS)
    assert_same(name, jax.tree.map(np.asarray, result), run(name))


@every_loop
def test_vmap_sweeps_a_setting(name):
    setting, value = next(iter(CALLS[name].real.items()))
    values = jnp.array([value, 0.7 * value + 0.005], jnp.float32)
    sweep = jax.vmap(lambda value: CALLS[name](NETWORK, IMAGES, KEYS, {**CALLS[name].real, setting: value}))
    swept = jax.tree.map(np.asarray, jax.jit(sweep)(values))
    for row, value in enumerate(values):
        assert_same(name, jax.tree.map(lambda leaf, row=row: leaf[row], swept), run(name, **{setting: value}))


@every_loop
def test_shard_map_is_as_on_one_device(name):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec
    sharded = jax.shard_map(
        CALLS[name],
        mesh=mesh,
        in_specs=(spec(), spec("data"), spec("data")),
        out_specs=spec("data"),
        check_vma=False,
    )
    assert_same(name, jax.tree.map(np.asarray, jax.jit(sharded)(NETWORK, IMAGES, KEYS)), run(name))


@every_call
def test_an_example_does_not_depend_on_its_batch(name):
    # In a batch of the same size, to the bit; `shard_map` has others.
    whole = run(name)
    others = jnp.concatenate([jnp.arange(12), jnp.arange(12)[::-1]])
    mixed = run(name, batch=jax.tree.map(lambda leaf: leaf[others], IMAGES), keys=KEYS[others])
    for leaf, expected in zip(jax.tree.leaves(mixed), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(leaf[:12], expected[:12])


@pytest.mark.parametrize("name", [name for name in CALLS if name != "pgd l1"])
def test_other_bounds_are_a_change_of_units(name):
    # Not for L1, whose steps go to one value of several that are equal but for rounding.
    call = CALLS[name]
    width = 255.0
    # Of two channels, one about zero and one from zero.
    origin = np.array([0.5, 0.0], np.float32)
    low, high = (np.float32(width) * (end - origin) for end in (0, 1))
    images = (np.asarray(IMAGES[0]) - origin) * np.float32(width)
    real = {setting: value * width ** call.scaling.get(setting, 0) for setting, value in call.real.items()}
    result = run(name, make(width=width, middle=0.5 - origin), (images, *IMAGES[1:]), bounds=(low, high), **real)
    assert (result.inputs >= low).all()
    assert (result.inputs <= high).all()
    result = dataclasses.replace(result, inputs=np.clip(result.inputs / width + origin, 0, 1))
    if call.norm == "l0":
        # Back in the old units, a value that has not moved may differ in the last bit.
        still = np.abs(result.inputs - IMAGES[0]) < 1e-6
        result = dataclasses.replace(result, inputs=np.where(still, IMAGES[0], result.inputs))
    assert_as_good(name, result, run(name))


def test_temperature_revives_the_attacks_that_need_probabilities():
    # Certain by so much that the softmax is exactly one and zero, as a distilled network at temperature 1.
    saturated = make(scale=200.0)
    certain = np.sort(np.asarray(saturated(IMAGES[0])), axis=1)
    certain = certain[:, -1] - certain[:, -2] > 110
    assert certain.sum() > BATCH / 4
    jsma_of = lambda f: jsma(f, *IMAGES[:2], targets=IMAGES[2], gamma=0.5, score_space="probs")
    deepfool_of = lambda f: deepfool(f, *IMAGES[:2], score_space="probs")
    for attack in (jsma_of, deepfool_of):
        tempered = jax.jit(lambda f, t, attack=attack: attack(at_temperature(f, t)))
        dead, revived = (tempered(saturated, jnp.float32(temperature)) for temperature in (1, 200))
        np.testing.assert_array_equal(dead.inputs[certain], IMAGES[0][certain])
        assert not dead.success[certain].any()
        assert revived.success[certain].mean() > 0.5


@pytest.mark.parametrize("name", [name for name in LOOPS if attacks.ATTACKS[CALLS[name].attack.__name__].refills])
def test_an_example_does_not_depend_on_those_it_waits_for(name, monkeypatch):
    monkeypatch.setattr(loops, "lanes", lambda inputs: 7)
    waited = jax.jit(lambda *given: CALLS[name](*given))(NETWORK, IMAGES, KEYS, CALLS[name].real)
    assert_same(name, jax.tree.map(np.asarray, waited), run(name))
