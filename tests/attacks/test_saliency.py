import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddjax import attacks
from ddjax.attacks.saliency import most_salient_feature_pair, most_salient_pair

search = jax.jit(most_salient_pair)
jsma = jax.jit(attacks.jsma, static_argnums=0, static_argnames="score_space")


def oracle_pair(u, v, unused):
    """The first best pair by the whole table, and its score."""
    count = len(u)
    u_sums, v_sums = (values[:, None] + values[None, :] for values in (u, v))
    counts = (u_sums > 0) & (v_sums > 0) & unused[:, None] & unused[None, :] & np.triu(np.ones((count, count), bool), 1)
    if not counts.any():
        return None, -1.0
    scores = np.where(counts, np.float64(u_sums) * np.float64(v_sums), -1.0)
    return divmod(int(scores.argmax()), count), scores.max()


def slopes(kind, rng, shape):
    u, v = rng.normal(size=(2, *shape))
    return {
        "independent": (u, v),
        "opposed": (u, -u + 0.1 * v),
        "opposed, other scale": (u, -1.41 * u + 0.3 * v),
        "equal": (u, u),
        "hopeless": (u, -np.abs(v)),
        "exactly opposed": (u, -u),
        "heavy tails": (u * np.exp(4 * rng.normal(size=shape)), v * np.exp(4 * rng.normal(size=shape))),
        "tiny": (u * 1e-33, v * 1e-30),
        "huge": (u * 1e36, v * 1e37),
        "small integers": (rng.integers(-3, 4, shape), rng.integers(-3, 4, shape)),
        "zeros": (np.zeros(shape), np.zeros(shape)),
    }[kind]


KINDS = ["independent", "opposed", "opposed, other scale", "equal", "hopeless", "exactly opposed", "heavy tails"]
KINDS += ["tiny", "huge", "small integers", "zeros"]


@pytest.mark.parametrize("count", [2, 12, 50])
@pytest.mark.parametrize("kind", KINDS)
def test_pair_search_agrees_with_the_whole_table(kind, count):
    rng = np.random.default_rng(count)
    u, v = (values.astype(np.float32) for values in slopes(kind, rng, (100, count)))
    unused = rng.random((100, count)) < 0.8
    first, second, found = (np.asarray(array) for array in search(u, v, unused))
    for i in range(len(u)):
        pair, score = oracle_pair(u[i], v[i], unused[i])
        assert found[i] == (pair is not None)
        if pair is None:
            continue
        p, q = int(first[i]), int(second[i])
        assert p < q
        assert unused[i, p]
        assert unused[i, q]
        if kind == "small integers":
            assert (p, q) == pair
        reached = np.float64(u[i, p] + u[i, q]) * np.float64(v[i, p] + v[i, q])
        assert reached >= score * (1 - 3e-7)


def test_pair_search_of_one_slope_is_the_general_one():
    rng = np.random.default_rng(0)
    u = rng.integers(-4, 3, (300, 12)).astype(np.float32)
    unused = rng.random(u.shape) < 0.5
    unused[:12] = np.eye(12, dtype=bool)
    special, general = most_salient_feature_pair(jnp.asarray(u), jnp.asarray(unused)), search(u, u, unused)
    np.testing.assert_array_equal(special[2], general[2])
    # A single feature is no pair, whichever it is.
    assert not special[2][:12].any()
    for one, other in zip(special[:2], general[:2], strict=True):
        np.testing.assert_array_equal(one[general[2]], other[general[2]])


def oracle_jsma(jacobian_fn, decide, image, target, theta, gamma, space):
    """One image at a time, K gradients, all pairs: the paper's algorithm, but for what is nearly at the bound."""
    values = np.array(image).ravel()
    unused = values < 0.99 if theta > 0 else values > 0.01
    pairs = 0
    while int(decide(values.reshape(image.shape))) != target and pairs < int(len(values) * gamma / 2 + 1e-6):
        jac = np.asarray(jacobian_fn(values.reshape(image.shape))).reshape(-1, len(values))
        alpha, beta = jac[target], jac.sum(0) - jac[target]
        if space != "logits":
            beta = -alpha
        pair, _ = oracle_pair(np.sign(theta) * alpha, -np.sign(theta) * beta, unused)
        if pair is None:
            break
        for feature in pair:
            values[feature] = np.clip(values[feature] + theta, 0, 1)
            unused[feature] = False
        pairs += 1
    return values.reshape(image.shape), pairs


@pytest.mark.parametrize(
    ("space", "theta"), [("probs", 1.0), ("logits", 1.0), ("tempered", -1.0), ("probs", 0.4), ("logits", -1.0)]
)
def test_jsma_agrees_with_brute_force_oracle_on_twelve_features(space, theta):
    rng = np.random.default_rng(7)
    hidden, output = rng.normal(size=(12, 16)), 4 * rng.normal(size=(16, 3))

    def logits_fn(images):
        flat = images.reshape(images.shape[0], -1)
        return jnp.tanh(flat @ jnp.asarray(hidden, jnp.float32)) @ jnp.asarray(output, jnp.float32)

    images = rng.choice([0.0, 0.005, 0.25, 0.6, 0.995, 1.0], size=(20, 2, 3, 2)).astype(np.float32)
    labels = np.asarray(logits_fn(jnp.asarray(images))).argmax(1).astype(np.int32)
    targets = (labels + 1 + np.arange(20) % 2).astype(np.int32) % 3
    result = jsma(
        logits_fn,
        jnp.asarray(images),
        jnp.asarray(labels),
        targets=jnp.asarray(targets),
        theta=theta,
        gamma=0.85,
        score_space=space,
        temperature=5.0 if space == "tempered" else 1.0,
    )
    assert result.success.any()
    outputs = {
        "probs": lambda x: jax.nn.softmax(logits_fn(x[None])[0]),
        "logits": lambda x: logits_fn(x[None])[0],
        "tempered": lambda x: jax.nn.softmax(logits_fn(x[None])[0] / 5.0),
    }[space]
    jacobian_fn, decide = jax.jit(jax.jacrev(outputs)), jax.jit(lambda x: jnp.argmax(logits_fn(x[None])[0]))
    for i, image in enumerate(images):
        expected, pairs = oracle_jsma(jacobian_fn, decide, image, targets[i], theta, 0.85, space)
        np.testing.assert_allclose(result.inputs[i], expected, atol=1e-6)
        assert int(result.steps[i]) == pairs


def test_budget_of_the_paper_and_each_feature_once():
    weights = np.linspace(1.0, 2.0, 784, dtype=np.float32)
    # The target is out of reach, so that the whole budget is spent.
    logits_fn = lambda x: jnp.stack([1e4 - x.sum((1, 2, 3)), x.reshape(x.shape[0], -1) @ jnp.asarray(weights)], 1)
    images = jnp.zeros((2, 28, 28, 1)).at[1, 0].set(1.0)
    labels = jnp.zeros(2, jnp.int32)
    for gamma in (1 / 7, 112 / 784, 0.1429, 0.145):
        result = jsma(logits_fn, images, labels, targets=labels + 1, gamma=gamma, score_space="logits")
        np.testing.assert_array_equal(result.steps, [56, 56])
        changed = np.asarray(result.inputs != images).reshape(2, -1)
        np.testing.assert_array_equal(changed.sum(1), [112, 112])
        # The 112 heaviest are the last ones, and none twice.
        np.testing.assert_array_equal(np.flatnonzero(changed[0]), np.arange(672, 784))
        assert not changed[1, :28].any()
        assert not result.success.any()


def test_features_that_are_nearly_at_the_bound_are_left_alone():
    # The heaviest feature has hardly any room.
    weights = jnp.array([1.0, 2.0, 3.0, 4.0])
    logits_fn = lambda x: jnp.stack([1e4 - x.sum((1, 2, 3)), x.reshape(x.shape[0], -1) @ weights], 1)
    run = lambda theta, last: jsma(
        logits_fn,
        jnp.zeros((1, 2, 2, 1)).at[0, 1, 1, 0].set(last),
        jnp.zeros(1, jnp.int32),
        targets=jnp.ones(1, jnp.int32),
        theta=theta,
        gamma=0.5,
        score_space="logits",
    ).inputs.ravel()
    np.testing.assert_array_equal(run(1.0, 254 / 255), np.float32([0, 1, 1, 254 / 255]))
    np.testing.assert_array_equal(run(1.0, 252 / 255), np.float32([0, 0, 1, 1]))
    # Unless a step is no longer than the room.
    np.testing.assert_allclose(run(0.003, 254 / 255), [0, 0, 0.003, 254 / 255 + 0.003], rtol=1e-6)
    np.testing.assert_array_equal(run(0.003, 1.0), np.float32([0, 0.003, 0.003, 1.0]))


def test_probabilities_of_a_saturated_network_are_dead_and_tempered_ones_are_not(network, batch):
    images, labels, targets = batch
    saturated = lambda x: network(x) * 1e5
    dead = jsma(saturated, images, labels, targets=targets, gamma=0.5)
    alive = jsma(saturated, images, labels, targets=targets, gamma=0.5, score_space="tempered", temperature=1e5)
    plain = jsma(lambda x: network(x), images, labels, targets=targets, gamma=0.5)
    assert float(dead.success.mean()) < 0.5 * float(alive.success.mean())
    np.testing.assert_array_equal(alive.success, plain.success)


def test_large_inputs_need_no_table_of_pairs():
    # 64 x 3072 x 3072 floats would be 2.4 GB.
    u = jax.random.normal(jax.random.key(0), (64, 3072))
    v = 0.5 * u + jax.random.normal(jax.random.key(1), (64, 3072))
    compiled = search.lower(u, v, jnp.ones(u.shape, bool)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 64 * u.nbytes
    first, second, _ = compiled(u, v, jnp.ones(u.shape, bool))
    for i in (0, 63):
        assert oracle_pair(np.asarray(u[i]), np.asarray(v[i]), np.ones(3072, bool))[0] == (
            int(first[i]),
            int(second[i]),
        )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"theta": 0.0}, "theta must not be 0"),
        ({"theta": np.float32(0)}, "theta must not be 0"),
        ({"theta": float("nan")}, "theta must be a finite number, got nan"),
        ({"gamma": 1.5}, "gamma must be a finite number at least 0 and at most 1, got 1.5"),
        ({"gamma": np.float32(14.5)}, "gamma must be a finite number at least 0 and at most 1, got 14.5"),
        ({"gamma": jnp.float32(14.5)}, "gamma must be a finite number at least 0 and at most 1, got 14.5"),
        ({"gamma": 0.0}, "gamma=0 of 36 features is less than the one pair"),
        ({"gamma": np.float32(0.05)}, "gamma must be at least 0.0556"),
        ({"gamma": float("nan")}, "gamma must be a finite number"),
        ({"temperature": 0.0}, "temperature must be a finite number above 0"),
        ({"score_space": "softmax"}, "unknown score space 'softmax'; known: probs, logits, tempered"),
        ({"temperature": 5.0}, "the score space 'probs' has no temperature"),
        ({"temperature": np.float32(100)}, "the score space 'probs' has no temperature"),
        ({"temperature": jnp.float32(100), "score_space": "logits"}, "the score space 'logits' has no temperature"),
        ({"targets": None}, "jsma needs targets"),
        ({"targets": jnp.full(24, 4)}, "targets must be classes from 0 to 3"),
    ],
)
def test_bad_settings_are_refused(as_a_user, network, batch, settings, message):
    images, labels, targets = batch
    with pytest.raises(ValueError, match=message):
        attacks.jsma(network, images, labels, **({"targets": targets} | settings))
