"""Mistakes that people make with their models: each is one sentence that names the remedy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from jax.tree_util import Partial

import ddjax
from tests.binding import frameworks

INPUTS = jax.random.uniform(jax.random.key(0), (3, *frameworks.SHAPE))
WEIGHTS = frameworks.make_weights(0)
VARIABLES = frameworks.linen_variables(WEIGHTS)
LABELS = jnp.zeros(3, jnp.int32)


class Unnamed(nn.Module):
    """Its switch has a name that nobody knows."""

    @nn.compact
    def __call__(self, x, in_training):
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not in_training)(x.reshape(len(x), -1)))


UNNAMED = Unnamed().init(jax.random.key(0), INPUTS, False)


def linear(x):
    return x.reshape(len(x), -1)[:, :3]


BIND = {
    "no value for an unknown switch": (lambda: ddjax.bind(Unnamed(), UNNAMED), "needs the argument 'in_training'"),
    "a misspelled argument": (
        lambda: ddjax.bind(frameworks.Linen(), VARIABLES, trian=False),
        "Linen has no argument 'trian'; known: train",
    ),
    "a static argument that is an array": (
        lambda: ddjax.bind(Unnamed(), UNNAMED, in_training=jnp.zeros(())),
        "in_training of Unnamed is part of the program and must be hashable",
    ),
    "params without their collection": (
        lambda: ddjax.bind(frameworks.Linen(), VARIABLES["params"]),
        'needs the variables as {"params": ...}, as module.init returns them, got conv',
    ),
    "params and batch statistics as two": (
        lambda: ddjax.bind(frameworks.Linen(), VARIABLES["params"], VARIABLES["batch_stats"]),
        "as one dictionary",
    ),
    "no variables": (lambda: ddjax.bind(frameworks.Linen()), "needs the variables of Linen"),
    "a class": (lambda: ddjax.bind(frameworks.Linen, VARIABLES), r"not its class: bind\(Linen\(...\), ...\)"),
    "an attribute that cannot be hashed": (
        lambda: ddjax.bind(nn.Sequential([nn.Sequential([nn.Dense(3)])]), {"params": {}}),
        "the attribute layers of Sequential cannot be hashed, .*; use tuples in the place of lists",
    ),
    "an nnx module with variables": (
        lambda: ddjax.bind(frameworks.nnx_module(WEIGHTS), VARIABLES),
        "keeps its own state",
    ),
    "a graph of nnx alone": (
        lambda: ddjax.bind(nnx.split(frameworks.nnx_module(WEIGHTS))[0]),
        r"bind\(graphdef, state\)",
    ),
    "a number": (lambda: ddjax.bind(3), "needs a model of one of equinox, flax.linen, .* or a function, got a int"),
    "an unknown layout": (
        lambda: ddjax.bind(linear, layout="NCHW"),
        "unknown layout 'NCHW'; known: channels_last, channels_first",
    ),
    "unknown outputs": (lambda: ddjax.bind(linear, outputs="probs"), "unknown outputs 'probs'"),
    "a string among the weights": (
        lambda: ddjax.bind_function(lambda w, x: x, {"a": "b"}),
        "needs pytrees of arrays, got a leaf of type str",
    ),
    "probabilities": (
        lambda: ddjax.bind(lambda x: jax.nn.softmax(linear(x)), example=INPUTS),
        'outputs="probabilities"',
    ),
    "classes": (lambda: ddjax.bind(lambda x: linear(x).argmax(1), example=INPUTS), "before softmax and argmax"),
    "one class": (lambda: ddjax.bind(lambda x: linear(x)[:, :1], example=INPUTS), "at least two classes"),
    "dropout at work": (
        lambda: ddjax.bind(lambda x: nnx.Dropout(0.5, rngs=nnx.Rngs(0))(x).sum((1, 2))[:, [0, 1, 0]], example=INPUTS),
        "in training mode, or draws at random",
    ),
    "statistics of the batch": (
        lambda: ddjax.bind(lambda x: linear(x) - linear(x).mean(0, keepdims=True), example=INPUTS),
        "in training mode",
    ),
    "not finite": (lambda: ddjax.bind(lambda x: linear(x) / 0, example=INPUTS), "not finite"),
}
CALL = {
    "no batch statistics": (
        lambda: ddjax.bind(frameworks.Linen(), {"params": VARIABLES["params"]}),
        INPUTS,
        'a collection is missing: give all variables that module.init returns, {"params": ..., "batch_stats": ...}',
    ),
    "batch statistics in training": (
        lambda: ddjax.bind(nn.BatchNorm(use_running_average=False), {"params": {}, "batch_stats": {}}),
        INPUTS,
        "BatchNorm cannot take inputs",
    ),
    "dropout in training": (
        lambda: ddjax.bind(Unnamed(), UNNAMED, in_training=True),
        INPUTS,
        "it draws random numbers, as in training",
    ),
    "images of another size": (
        lambda: frameworks.linen(WEIGHTS),
        INPUTS[:, :-1],
        "its parameters are those of another network, or of inputs of another size",
    ),
    "channels first": (
        lambda: frameworks.linen(WEIGHTS),
        jnp.zeros((3, 3, 8, 8)),
        r"\[B, 3, 8, 8\].*look like images with channels first, and ddjax takes \[B, H, W, C\]",
    ),
    "images of another size for nnx": (lambda: frameworks.nnx_(WEIGHTS), INPUTS[:, :-1], "Nnx cannot take inputs"),
    "integer outputs": (lambda: ddjax.bind(lambda x: linear(x).astype(int)), INPUTS, "must return one array of float"),
}


@pytest.mark.parametrize("name", BIND)
def test_bind_refuses_in_one_sentence(name):
    call, wanted = BIND[name]
    with pytest.raises((TypeError, ValueError), match=wanted) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", CALL)
def test_attack_refuses_in_one_sentence_before_any_work(name):
    make, inputs, wanted = CALL[name]
    with pytest.raises(ValueError, match=wanted) as caught:
        ddjax.fgsm(make(), inputs, LABELS, epsilon=0.1)
    assert "\n" not in str(caught.value)


def test_pytorch_module_is_sent_to_its_import():
    module = type("Linear", (), {"__module__": "torch.nn.modules.linear", "__call__": lambda self, x: x})()
    with pytest.raises(ValueError, match=r"ddjax.from_torch\(module, example\)"):
        ddjax.bind(module)


def test_training_state_takes_the_place_of_variables_or_stands_alone():
    module, logits = frameworks.Linen(), frameworks.linen(WEIGHTS)(INPUTS)

    class State(TrainState):
        batch_stats: dict

    made = {"apply_fn": module.apply, "params": VARIABLES["params"], "tx": optax.sgd(0.1)}
    state = State.create(**made, batch_stats=VARIABLES["batch_stats"])
    for bound in (ddjax.bind(module, state), ddjax.bind(state)):
        np.testing.assert_array_equal(bound(INPUTS), logits)
    own = ddjax.TrainState(VARIABLES["params"], {}, 0, None, {"batch_stats": VARIABLES["batch_stats"]}, network=module)
    for bound in (ddjax.bind(module, own), ddjax.bind(own), own.logits_fn):
        np.testing.assert_array_equal(bound(INPUTS), logits)
    with pytest.raises(ValueError, match=r"if it knows its module: bind\(module, state\)"):
        ddjax.bind(state.replace(apply_fn=lambda variables, x: x))


def test_module_of_nnx_in_training_is_bound_in_evaluation_and_stays_as_it_is():
    module = frameworks.nnx_module(WEIGHTS)
    module.train()
    np.testing.assert_allclose(ddjax.bind(module)(INPUTS), frameworks.linen(WEIGHTS)(INPUTS), rtol=1e-4, atol=1e-5)
    assert not module.dropout.deterministic
    assert not module.norm.use_running_average
    bound = ddjax.bind(*nnx.split(module))
    np.testing.assert_array_equal(bound(INPUTS), ddjax.bind(module)(INPUTS))


@pytest.mark.parametrize("switch", ["train", "training", "is_training", "deterministic", "use_running_average"])
def test_switch_of_training_is_found_by_its_name(switch):
    scope = {}
    exec(f"def network(w, x, {switch}): return x.reshape(len(x), -1) @ w * (2 if {switch} else 1)", scope)
    weights = jax.random.normal(jax.random.key(0), (60, 3))
    wanted = INPUTS.reshape(3, -1) @ weights * (2 if switch in ("deterministic", "use_running_average") else 1)
    np.testing.assert_array_equal(ddjax.bind_function(scope["network"], weights)(INPUTS), wanted)
    np.testing.assert_array_equal(
        ddjax.bind_function(scope["network"], weights, **{switch: None})(INPUTS).shape, (3, 3)
    )


def test_probabilities_are_attacked_through_their_logarithm():
    weights = jax.random.normal(jax.random.key(0), (60, 3))
    logits_fn = ddjax.bind(lambda w, x: x.reshape(len(x), -1) @ w, weights)
    of_softmax = lambda w, x: jax.nn.softmax(x.reshape(len(x), -1) @ w)
    bound = ddjax.bind(of_softmax, weights, outputs="probabilities", example=INPUTS)
    np.testing.assert_allclose(bound(INPUTS), jax.nn.log_softmax(logits_fn(INPUTS)), atol=1e-5)
    labels = logits_fn(INPUTS).argmax(1)
    one, other = (
        ddjax.pgd(f, INPUTS, labels, epsilon=0.05, num_steps=3, random_start=False) for f in (bound, logits_fn)
    )
    np.testing.assert_allclose(one.inputs, other.inputs, atol=1e-5)
    assert ddjax.binding.takes_logarithm(ddjax.normalized(bound, 0.5, 0.5))
    assert not ddjax.binding.takes_logarithm(logits_fn)
    # A probability of 0 has a finite logarithm.
    certain = ddjax.from_probabilities(Partial(lambda x: jnp.eye(3)[jnp.zeros(len(x), int)]))
    assert np.isfinite(certain(INPUTS)).all()


def test_layout_and_single_examples_are_adapted():
    weights = jax.random.normal(jax.random.key(0), (60, 3))
    one = lambda w, x: x.ravel() @ w
    first = ddjax.bind(one, weights, layout="channels_first", per_example=True)
    wanted = jnp.moveaxis(INPUTS, -1, 1).reshape(3, -1) @ weights
    np.testing.assert_allclose(first(INPUTS), wanted, rtol=1e-5)
    vectors = INPUTS.reshape(3, -1)
    np.testing.assert_allclose(first(vectors), vectors @ weights, rtol=1e-5)


def test_bound_classifier_is_bound_again_as_it_is():
    bound = frameworks.linen(WEIGHTS)
    assert ddjax.bind(bound) is bound
    with pytest.raises(TypeError, match="give its function and all arrays"):
        ddjax.bind_function(bound, jnp.zeros(3))


def test_evaluate_refuses_probabilities_and_tells_of_their_logarithm():
    softmax = lambda x: jax.nn.softmax(linear(x))
    settings = {"norm": "linf", "epsilon": 0.1, "key": jax.random.key(0), "attacks": ["fgsm"]}
    with pytest.raises(ValueError, match="returns probabilities, and attacks need logits"):
        ddjax.evaluate(softmax, INPUTS, LABELS, **settings)
    report = ddjax.evaluate(ddjax.bind(softmax, outputs="probabilities"), INPUTS, LABELS, **settings)
    assert any("the attacks saw their logarithm" in warning for warning in report.warnings)


def test_sequential_of_a_list_is_bound_and_shares_a_program():
    traces = []

    @jax.jit
    def logits(logits_fn):
        traces.append(1)
        return logits_fn(INPUTS)

    flatten = lambda x: x.reshape(len(x), -1)
    for seed in range(2):
        module = nn.Sequential([flatten, nn.Dense(4), nn.relu, nn.Dense(3)])
        variables = module.init(jax.random.key(seed), INPUTS)
        np.testing.assert_allclose(logits(ddjax.bind(module, variables)), module.apply(variables, INPUTS), atol=1e-5)
    assert len(traces) == 1
