"""The contract of attacks as checks of one declaration, for those of the package and for those of users.

Each check is a function of a declaration. One compiled program for each attack serves most of them: network, inputs,
labels, targets, mask and bounds are its arguments.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddjax import registry
from ddjax.attacks import Attack

BATCH, SHAPE, CLASSES = 12, (3, 3, 2), 4
KEY = jax.random.key(3)
# Names of settings that are in units of the inputs, and which power of the range they have.
_POWERS = {"epsilon": 1, "theta": 1, "initial_norm": 1, "learning_rate": 1, "initial_const": 2, "largest_const": 2}
_VALUES = {"epsilon": 0.2, "theta": 1.0, "initial_norm": 1.0, "learning_rate": 0.05, "initial_const": 0.1}
_VALUES |= {"largest_const": 100.0}


def _logits(parameters, inputs):
    """A smooth network of inputs in any units; `alive` 0 stops its gradient without another program."""
    flat = (inputs - parameters["low"]) / parameters["width"]
    flat = flat.reshape(inputs.shape[0], -1).astype(jnp.float32) - 0.5
    hidden = jax.nn.softplus(4 * (flat @ parameters["first"])) / 4
    logits = hidden @ parameters["second"]
    logits = parameters["alive"] * (logits - jax.lax.stop_gradient(logits)) + jax.lax.stop_gradient(logits)
    return jnp.where(jnp.isnan(parameters["fixed"]), logits, parameters["fixed"]) + parameters["shift"]


def network(low=0.0, width=1.0, **changed):
    """The network for inputs with some bounds; `fixed` sets logits that are not NaN, `shift` is added to all."""
    rng = np.random.default_rng(0)
    parameters = {
        "first": 0.5 * rng.normal(size=(18, 16)),
        "second": rng.normal(size=(16, CLASSES)),
        "alive": 1.0,
        "fixed": np.full((1, CLASSES), np.nan),
        "shift": np.zeros((1, CLASSES)),
        "low": np.broadcast_to(low, (1, *SHAPE)),
        "width": np.broadcast_to(width, (1, *SHAPE)),
    }
    return jax.tree_util.Partial(
        _logits, jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), parameters | changed)
    )


def _with(**classes):
    """The logits of some classes, `of_3=...`; NaN for the others, which stay as they are."""
    values = np.full((1, CLASSES), np.nan)
    for name, value in classes.items():
        values[0, int(name[-1])] = value
    return values


INPUTS = jnp.asarray(np.random.default_rng(1).uniform(0, 1, (BATCH, *SHAPE)), jnp.float32)
# Decisions and targets among the first three classes.
LABELS = jnp.argmax(network()(INPUTS)[:, :3], axis=1).astype(jnp.int32)
TARGETS = (LABELS + 1) % 3


def call(attack, logits_fn, inputs=INPUTS, labels=LABELS, *, targets=None, key=KEY, **settings):
    """The attack with the settings of its declaration; those that need targets get some."""
    if targets is None and attack.targets == "required":
        targets = TARGETS
    return attack.function(logits_fn, inputs, labels, key=key, targets=targets, **{**attack.example, **settings})


def few(attack):
    """Settings with few steps, for what is run operation by operation."""
    settings = {"num_steps": 2, "search_steps": 2} | ({"largest_const": 2e-3} if attack.name.endswith("l0") else {})
    return {name: value for name, value in settings.items() if name in registry.settings_of(attack.function)}


@functools.cache
def _program(attack, targeted):
    traces = []

    def run(logits_fn, inputs, labels, targets, mask, bounds):
        traces.append(1)
        return call(attack, logits_fn, inputs, labels, targets=targets if targeted else None, mask=mask, bounds=bounds)

    return jax.jit(run), traces


def run(
    attack, logits_fn=None, inputs=INPUTS, labels=LABELS, targets=TARGETS, mask=True, low=0.0, high=1.0, targeted=None
):
    """The one program of an attack."""
    logits_fn = network() if logits_fn is None else logits_fn
    targeted = attack.targets == "required" if targeted is None else targeted
    mask = jnp.broadcast_to(jnp.asarray(mask), INPUTS.shape)
    bounds = tuple(jnp.broadcast_to(jnp.asarray(bound, jnp.float32), SHAPE) for bound in (low, high))
    found = _program(attack, targeted)[0](logits_fn, inputs, labels, targets, mask, bounds)
    return jax.tree.map(np.asarray, found)


def check_result(attack: Attack):
    result = run(attack)
    assert result.success.any()
    assert result.inputs.dtype == np.float32
    assert ((result.inputs >= 0) & (result.inputs <= 1)).all()
    logits = np.asarray(network()(result.inputs))
    np.testing.assert_allclose(result.logits, logits, atol=1e-5)
    wanted = logits.argmax(1) == TARGETS if attack.targets == "required" else logits.argmax(1) != LABELS
    np.testing.assert_array_equal(result.success, wanted)
    for count in (result.steps, result.gradients, result.queries, result.zero_gradients):
        assert count.dtype == np.int32
        assert (count >= 0).all()
    assert (result.queries >= 1).all()
    assert (result.zero_gradients <= result.gradients).all()
    assert isinstance(result.info, dict)


def check_classes_that_are_switched_off_cost_nothing(attack: Attack):
    # Far below all others, but in reach of rounding: what the two others must equal.
    plain = run(attack, network(fixed=_with(of_3=-60.0)))
    assert plain.success.any()
    for value in (-1e9, -np.inf):
        result = run(attack, network(fixed=_with(of_3=value)))
        np.testing.assert_array_equal(result.success, plain.success)
        np.testing.assert_allclose(result.inputs, plain.inputs, atol=1e-4)
    if attack.targets != "required":
        # Another class that has won already: nothing is to be done.
        assert run(attack, network(fixed=_with(of_3=1e9))).success.all()


def check_logits_that_are_no_decision_are_failures(attack: Attack):
    for value in (np.nan, np.inf):
        result = run(attack, network(shift=np.where(np.arange(CLASSES) == 1, value, 0.0)[None]))
        assert not result.success.any()
        assert np.isfinite(result.inputs).all()


def check_bad_rows_in_a_trace_come_back_unchanged_as_failures(attack: Attack):
    for targeted in {attack.targets != "no", attack.targets == "required"}:
        plain = run(attack, targeted=targeted)
        inputs = INPUTS.at[0].multiply(255).at[1, 0, 0, 0].set(jnp.nan).at[2, 0, 0, 0].set(-jnp.inf)
        labels = LABELS.at[3].add(-10).at[4].set(CLASSES)
        targets = TARGETS.at[5].set(LABELS[5]).at[6].set(-1) if targeted else TARGETS
        result = run(attack, inputs=inputs, labels=labels, targets=targets, targeted=targeted)
        bad = np.arange(BATCH) < (7 if targeted else 5)
        np.testing.assert_array_equal(result.inputs[bad], inputs[bad])
        assert not result.success[bad].any()
        assert np.isnan(result.logits[bad]).all()
        for one, other in zip(jax.tree.leaves(result), jax.tree.leaves(plain), strict=True):
            np.testing.assert_array_equal(one[~bad], other[~bad])


def check_mask(attack: Attack):
    """Masked entries never move; nor does a constant one, whose bounds coincide. All entries have their own ranges."""
    places = np.arange(18).reshape(SHAPE)
    mask, constant = places % 3 > 0, places == 4
    low, width = places - 9.0, np.geomspace(0.1, 100, 18, dtype=np.float32).reshape(SHAPE)
    inputs = jnp.asarray(np.where(constant, low, low + np.asarray(INPUTS) * width), jnp.float32)
    labels = jnp.argmax(network(low, width)(inputs)[:, :3], axis=1).astype(jnp.int32)
    high = np.float32(low + np.where(constant, 0.0, width))
    result = run(attack, network(low, width), inputs, labels, (labels + 1) % 3, mask=mask[None], low=low, high=high)
    moved = result.inputs != inputs
    assert not moved[:, ~mask | constant].any()
    assert moved.any()
    assert result.success.any()
    assert ((result.inputs >= low) & (result.inputs <= high)).all()


def check_bounds_are_units(attack: Attack):
    plain = run(attack)
    each = np.linspace(-1, 1, 18, dtype=np.float32).reshape(SHAPE)
    for low, width in ((0.0, 255.0), (-0.5, 1.0), (each, 1.0 + 0 * each)):
        result = run(
            attack,
            network(low, width),
            jnp.asarray(low + np.asarray(INPUTS) * width, jnp.float32),
            low=low,
            high=low + width,
        )
        assert ((result.inputs >= low) & (result.inputs <= np.float32(low + width))).all()
        # The search of some grows differences in the last bit.
        assert abs(result.success.mean() - plain.success.mean()) <= 1 / BATCH
        moved = (result.inputs - (low + np.asarray(INPUTS) * width)) / width
        sizes = [np.linalg.norm(change.reshape(BATCH, -1), axis=1) for change in (moved, plain.inputs - INPUTS)]
        both = result.success & plain.success
        np.testing.assert_allclose(np.median(sizes[0][both]), np.median(sizes[1][both]), rtol=0.05)


def check_one_program_serves_everything(attack: Attack):
    run(attack)
    run(attack, network(width=2.0), high=2.0)
    assert len(_program(attack, attack.targets == "required")[1]) == 1


def check_stopped_gradient_is_counted(attack: Attack):
    if attack.access != "gradient":
        return
    result = run(attack, network(alive=0.0))
    np.testing.assert_array_equal(result.zero_gradients, result.gradients)
    assert (result.gradients > 0).all()
    assert (run(attack).zero_gradients < run(attack).gradients).any()


def check_without_finite_bounds(attack: Attack):
    known = registry.settings_of(attack.function)
    bounds = (-np.inf, np.inf)
    given = {name: value for name, value in _VALUES.items() if name in known and known[name].default is None}
    if given:
        without = {name: value for name, value in attack.example.items() if name not in given}
        targets = TARGETS if attack.targets == "required" else None
        with pytest.raises(ValueError, match=f"^{attack.name} needs .*bounds -inf to inf have no finite range"):
            attack.function(network(), INPUTS, LABELS, key=KEY, targets=targets, bounds=bounds, **without)
    result = jax.jit(lambda x: call(attack, network(), x, bounds=bounds, **given))(INPUTS)
    assert np.isfinite(result.inputs).all()
    assert result.success.any()


def check_shapes_types_and_criterion(attack: Attack):
    """`[B, D]` in float16 with logits in float32, and `[B, T, D]` in float32 with logits in bfloat16; with a mask."""
    for shape, dtype, of_logits in (((18,), jnp.float16, jnp.float32), ((9, 2), jnp.float32, jnp.bfloat16)):
        inputs = INPUTS.reshape(BATCH, *shape).astype(dtype)

        def logits_fn(x, of_logits=of_logits):
            return network()(x.astype(jnp.float32).reshape(BATCH, *SHAPE)).astype(of_logits)

        labels = jnp.argmax(logits_fn(inputs)[:, :3], axis=1)

        def criterion(logits, labels, targets):
            of_label = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
            is_label = jnp.arange(CLASSES)[None, :] == labels[:, None]
            return of_label - jnp.max(jnp.where(is_label, -jnp.inf, logits), axis=1) + 0.01

        mask = jnp.arange(18).reshape(shape) != 5
        settings = {"criterion": criterion, "mask": mask}
        result = jax.jit(
            lambda x, labels, f=logits_fn, more=settings: call(
                attack, f, x, labels, targets=_others(attack, labels), **more
            )
        )(inputs, labels)
        np.testing.assert_array_equal(result.inputs[:, ~mask], inputs[:, ~mask])
        assert result.inputs.dtype == dtype
        assert result.inputs.shape == inputs.shape
        assert result.success.any()
        logits = logits_fn(result.inputs)
        assert result.logits.dtype == logits.dtype
        distance = criterion(logits.astype(jnp.float32), labels, None)
        assert (distance[result.success] < 0.02).all()


def _others(attack, labels):
    return (labels + 1) % 3 if attack.targets == "required" else None


def check_x64(attack: Attack):
    with jax.enable_x64(True):
        for dtype in (np.float32, np.float64):
            inputs, labels = np.asarray(INPUTS, dtype), np.asarray(LABELS, np.int64)
            logits_fn = lambda x: network()(x.astype(jnp.float32)).astype(jnp.float64)
            shaped = jax.eval_shape(
                lambda x, y, f=logits_fn: call(attack, f, x, y, targets=_others(attack, y), **few(attack)),
                inputs,
                labels,
            )
            assert shaped.inputs.dtype == dtype
            assert shaped.logits.dtype == np.float64
    assert shaped.steps.dtype == np.int32


def check_operation_by_operation(attack: Attack):
    """Without `jit`, and with JAX's checks for debugging, which refuse any NaN on the way."""
    # Without the NaN among the parameters, which says that no logit is fixed.
    weights = jax.random.normal(KEY, (18, CLASSES))
    with jax.disable_jit(), jax.debug_nans(True), jax.enable_checks(True):
        result = call(attack, lambda x: x.reshape(BATCH, -1) @ weights, **few(attack))
    assert result.inputs.shape == INPUTS.shape
    assert np.isfinite(result.inputs).all()


def check_numbers_of_any_library(attack: Attack):
    values = {}
    for name, parameter in registry.settings_of(attack.function).items():
        if registry.is_real(parameter):
            value = attack.example.get(name, _VALUES.get(name, parameter.default))
            values[name] = 0.1 if value is None else value
    trace = lambda given: jax.eval_shape(lambda x: call(attack, network(), x, **given), INPUTS)
    for number in (float, np.float32, np.float64, jnp.float32):
        trace({name: number(value) for name, value in values.items()})
    jax.eval_shape(lambda given: call(attack, network(), **given), jax.tree.map(jnp.float32, values))
    for name, value in values.items():
        for bad in ([value], str(value)):
            with pytest.raises(TypeError, match=f"{name} must be a number or an array"):
                trace({name: bad})
        with pytest.raises(ValueError, match=f"{name} must be a finite number"):
            trace({name: np.float32(np.nan)})


def check_bad_calls(attack: Attack):
    plain = network()
    of = lambda f=plain, x=INPUTS, y=LABELS, **more: call(attack, f, x, y, **more)
    for wanted, logits_fn in {
        "got a dict": lambda x: {"logits": plain(x)},
        "got a tuple": lambda x: (plain(x),),
        r"got the shape \(12,\)": lambda x: plain(x)[:, 0],
        r"got the shape \(12, 1\)": lambda x: plain(x)[:, :1],
        "got int32": lambda x: plain(x).astype(jnp.int32),
    }.items():
        with pytest.raises(ValueError, match=f"logits_fn must return one array of float logits.*{wanted}"):
            of(logits_fn)
    for wanted, more in {
        "labels must be an array, got a list": {"y": [int(label) for label in LABELS]},
        "inputs must be an array, got a list": {"x": [[0.5]]},
        "needs a key as jax.random.key makes it, got a int": {"key": 7},
        "bounds must be a pair": {"bounds": 1.0},
    }.items():
        with pytest.raises(TypeError, match=wanted):
            of(**more)
    for wanted, more in {
        "inputs must be finite and inside the bounds 0 to 1, found NaN": {"x": INPUTS.at[0, 0, 0, 0].set(jnp.nan)},
        "inputs must be finite and inside the bounds 0 to 1, found 0": {"x": INPUTS.at[0].set(0).at[1].set(255)},
        "inputs must be floats of shape": {"x": (INPUTS * 255).astype(jnp.uint8)},
        "inputs are empty": {"x": INPUTS[:0], "y": LABELS[:0]},
        "labels must be 12 integers": {"y": LABELS[:3]},
        "labels must be classes from 0 to 3": {"y": LABELS - 10},
        "bounds must be an interval": {"bounds": (1.0, 0.0)},
        "bounds must broadcast against one input": {"bounds": (0.0, np.ones(5))},
        "mask must be of booleans that broadcast": {"mask": jnp.ones((5, 5), bool)},
        "needs one key or 12": {"key": jax.random.split(KEY, 5)},
    }.items():
        with pytest.raises(ValueError, match=wanted):
            of(**more)
    if attack.targets == "no":
        with pytest.raises(ValueError, match="takes no targets"):
            of(targets=TARGETS)
    else:
        with pytest.raises(ValueError, match="a target must differ from the label of its row"):
            of(targets=LABELS)
        with pytest.raises(ValueError, match="targets must be classes from 0 to 3"):
            of(targets=TARGETS + 4)
    if attack.random:
        with pytest.raises(TypeError, match="needs a key as jax.random.key makes it, got none"):
            of(key=None)
    for fourth in (KEY, TARGETS, 0.01):
        with pytest.raises(TypeError, match="by position|positional arguments"):
            attack.function(network(), INPUTS, LABELS, fourth)
    with pytest.raises(TypeError, match=r"images"):
        attack.function(network(), images=INPUTS, labels=LABELS)


def check_values_that_are_only_rounded_are_taken(attack: Attack):
    shape = lambda x, y=LABELS, **more: jax.eval_shape(lambda _: call(attack, network(), x, y, **more), 0)
    mean, std = np.array([0.1307, 0.5]), np.array([0.3081, 0.2])
    inputs = jnp.asarray((np.zeros(INPUTS.shape) - mean) / std, jnp.float32)
    shape(inputs, bounds=((0 - mean) / std, (1 - mean) / std))
    shape(INPUTS.at[0].set(1.0000001))
    shape(INPUTS, LABELS.astype(jnp.uint8))
    with pytest.raises(ValueError, match="inside the bounds"):
        call(attack, network(), INPUTS.at[0].set(1.0001))


CHECKS = [value for name, value in list(globals().items()) if name.startswith("check_")]
