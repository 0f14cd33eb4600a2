"""How costs grow: with examples, steps, features, classes and temperatures; and what batches that shrink save.

The sizes of a curve are the sides of one comparison and take turns, so that what a machine does meanwhile meets all of
them. A side has the fields `curve`, which names the curve, `size`, and `order`, the growth that is expected: `"1"`,
`"n"` or `"n log n"`, of the time for all units of a call.
"""

import functools
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ddjax import attacks, jacobian, layers, metrics, models, parallel, training
from ddjax.attacks import loops
from ddjax.attacks.saliency import most_salient_feature_pair, most_salient_pair
from ddjax.classifier import bind, in_bfloat16

from .. import common, recipes
from . import measure
from .measure import Context, Side

Sides = dict[str, Side | Callable[[], Side]]
_BATCH = 128
_EXAMPLES = (100, 200, 500, 1000)
_STEPS = (10, 20, 40, 80, 160)
_FEATURES = (196, 784, 3072, 12288)
_CLASSES = (2, 10, 100)
_TEMPERATURES = (1, 3, 9)
# The Jacobian of a hundred classes is a hundred backward passes.
_CLASSES_BATCH = 32
_JSMA_STEPS = 5
_TRAINING_STEPS = 5
_QUICK_SIZES = 2
_DRAWS = 4


def _compare(context: Context, where: Mapping[str, Any], sides: Sides, unit: str = "example") -> None:
    """Compares the sizes with the smallest, which comes first."""
    where = {**where, "network": context.network}
    measure.compare(context.run, where, sides, base=next(iter(sides)), unit=unit, repetitions=context.repetitions)


def _sizes(context: Context, sizes: Sequence[int]) -> Sequence[int]:
    """All; the first few for `--quick`."""
    return sizes[:_QUICK_SIZES] if context.quick else sizes


def _pgd(shared: Any, images: jax.Array, labels: jax.Array, targets: jax.Array) -> attacks.AttackResult:
    logits_fn, key = shared
    return attacks.pgd(logits_fn, images, labels, key=key, epsilon=0.3, step_size=0.3 / 16, num_steps=40)


def _carlini_wagner(shared: Any, images: jax.Array, labels: jax.Array, targets: jax.Array) -> attacks.AttackResult:
    settings = {"search_steps": 3, "num_steps": 30, "learning_rate": 0.05, "initial_const": 0.1}
    return attacks.carlini_wagner_l2(shared[0], images, labels, targets=targets, **settings)


def _examples(context: Context) -> None:
    """Attacks of ever more examples, as launchers evaluate them: the time for each must not change."""
    columns = (context.images, context.labels, context.targets)
    shared = (context.logits_fn, jax.random.key(context.seed))
    for name, attack in (("pgd", _pgd), ("carlini_wagner_l2", _carlini_wagner)):
        sides: Sides = {}
        for size in _sizes(context, _EXAMPLES):
            # Again from the first, where there are not so many.
            some = [column[np.arange(size) % len(column)] for column in columns]
            call = functools.partial(common.evaluate, attack, shared, *some, batch_size=_BATCH)
            fields = {"curve": name, "size": size, "order": "n"}
            sides[f"{size} examples"] = Side(call, size, functools.partial(_judge, fields))
        _compare(context, {"work": "growth_examples", "attack": name, "batch": _BATCH}, sides)


def _judge(fields: Mapping[str, Any], result: attacks.AttackResult) -> dict[str, Any]:
    return {**fields, "success": float(np.mean(result.success)), "gradients": float(np.mean(result.gradients))}


def _steps(context: Context) -> None:
    """PGD with ever more steps."""
    batch = min(_BATCH, len(context.images))
    images, labels = jnp.asarray(context.images[:batch]), jnp.asarray(context.labels[:batch])
    key = jax.random.key(context.seed)

    def side(steps: int) -> Side:
        attack = functools.partial(attacks.pgd, epsilon=0.3, step_size=0.01, num_steps=steps)
        compiled = layers.jit(attack).lower(context.logits_fn, images, labels, key=key).compile()
        call = lambda: jax.block_until_ready(compiled(context.logits_fn, images, labels, key=key))
        return Side(call, batch, {"curve": "pgd", "size": steps, "order": "n"})

    sides: Sides = {f"{steps} steps": functools.partial(side, steps) for steps in _sizes(context, _STEPS)}
    _compare(context, {"work": "growth_steps", "attack": "pgd", "batch": batch}, sides)


def _random_slopes(features: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Like those of a network: some features matter far more than others, and the two slopes go together."""
    rng = np.random.default_rng(seed)
    scale = np.exp(rng.normal(size=(_BATCH, features)))
    first, second = rng.normal(size=(2, _BATCH, features))
    return (scale * first).astype(np.float32), (scale * (0.6 * first + 0.8 * second)).astype(np.float32)


def _trained_slopes(context: Context, draw: int) -> tuple[np.ndarray, np.ndarray]:
    """The slopes of the target's logit and of the others', of the trained network."""

    def slopes(logits_fn: Any, images: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits, vjp_fn = jax.vjp(logits_fn, images)
        is_target = jax.nn.one_hot(targets, logits.shape[1])
        target, others = jacobian.pull_back(vjp_fn, jnp.stack([is_target, 1 - is_target]))
        return target.reshape(len(images), -1), -others.reshape(len(images), -1)

    rows = (draw * _BATCH + np.arange(_BATCH)) % len(context.images)
    u, v = layers.jit(slopes)(context.logits_fn, context.images[rows], context.targets[rows])
    return np.asarray(u), np.asarray(v)


def _features(context: Context) -> None:
    """The search for the most salient pair of features alone, of a batch: what JSMA adds to its gradients."""
    searches = {
        "logits": most_salient_pair,
        "probabilities": lambda u, _, unused: most_salient_feature_pair(u, unused),
    }
    for space, search in searches.items():

        def side(draws: Sequence[tuple[np.ndarray, np.ndarray]], curve: str, search: Any = search) -> Side:
            batches = [(jnp.asarray(u), jnp.asarray(v), jnp.ones(u.shape, bool)) for u, v in draws]
            compiled = layers.jit(search).lower(*batches[0]).compile()
            fields = {"curve": curve, "size": draws[0][0].shape[1], "order": "n log n"}
            call = lambda: jax.block_until_ready([compiled(*batch) for batch in batches])
            return Side(call, len(batches), fields)

        sides: Sides = {}
        for size in _sizes(context, _FEATURES):
            # Several, since a batch takes as long as the hardest of its examples.
            draws = [_random_slopes(size, context.seed + i) for i in range(_DRAWS)]
            sides[f"{size} features"] = functools.partial(side, draws, "random slopes")
        trained = [_trained_slopes(context, i) for i in range(_DRAWS)]
        name = f"{trained[0][0].shape[1]} features, trained"
        sides[name] = functools.partial(side, trained, "trained network")
        _compare(context, {"work": "growth_features", "space": space, "batch": _BATCH}, sides, unit="search of a batch")


def _classes(context: Context) -> None:
    """A network with ever more classes: JSMA takes two backward passes whatever their number, a Jacobian takes all."""
    batch = min(_CLASSES_BATCH, len(context.images))
    images = jnp.asarray(context.images[:batch])
    # Below the fewest classes.
    labels, targets = jnp.zeros(batch, jnp.int32), jnp.ones(batch, jnp.int32)

    def steps(logits_fn: Any, images: jax.Array) -> attacks.AttackResult:
        # The target is put out of reach, so that every example takes every step.
        out_of_reach = lambda x: (z := logits_fn(x)) - 1e3 * jax.nn.one_hot(targets, z.shape[1])
        gamma = 2 * _JSMA_STEPS / images[0].size
        return attacks.jsma(out_of_reach, images, labels, targets=targets, gamma=gamma, score_space="logits")

    def side(function: Any, classes: int, name: str, order: str) -> Side:
        module = models.build(context.network, classes)
        logits_fn = bind(module, module.init(jax.random.key(context.seed), images[:1]))
        compiled = layers.jit(function).lower(logits_fn, images).compile()
        fields = {"curve": name, "size": classes, "order": order}
        return Side(lambda: jax.block_until_ready(compiled(logits_fn, images)), batch, fields)

    for name, function, order in (("jacobian", jacobian.jacobian, "n"), ("jsma", steps, "1")):
        sides: Sides = {
            f"{classes} classes": functools.partial(side, function, classes, name, order)
            for classes in _sizes(context, _CLASSES)
        }
        _compare(context, {"work": "growth_classes", "attack": name, "batch": batch}, sides)


def _temperatures(context: Context) -> None:
    """Training at ever more temperatures: one program, traced as often as for a single one."""
    batch = min(context.recipe.batch_size, len(context.train))
    images = jnp.asarray(context.train.images[:batch])
    targets = jax.nn.one_hot(context.train.labels[:batch], context.num_classes)
    optimizer = recipes.make_optimizer(context.recipe, len(context.train) // batch)
    module = models.build(context.network, context.num_classes)
    mesh = jax.sharding.Mesh(np.array(jax.local_devices()[:1]), ("sweep",))

    def side(count: int) -> Side:
        traces = 0

        def member(shared: Any, member: Any) -> Any:
            images, targets = shared
            state, temperature = member

            def one(state: training.TrainState, _: None) -> Any:
                nonlocal traces
                traces += 1
                return training.train_step(state, (images, targets), temperature)

            return lax.scan(one, state, length=_TRAINING_STEPS)

        keys = jax.random.split(jax.random.key(context.seed), count)
        states = [training.create_state(module, optimizer, context.train.image_shape, key) for key in keys]
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        arguments = ((images, targets), (stacked, jnp.linspace(1.0, 100.0, count)))
        compiled = layers.jit(parallel.over_members(member, mesh)).lower(*arguments).compile()
        fields = {"curve": "training", "size": count, "order": "n", "traces": traces}
        call = lambda: jax.block_until_ready(compiled(*arguments))
        return Side(call, count * _TRAINING_STEPS, fields)

    sides: Sides = {f"{count} temperatures": functools.partial(side, count) for count in _sizes(context, _TEMPERATURES)}
    _compare(context, {"work": "growth_temperatures", "batch": batch}, sides, unit="step of a network")


def _compaction(context: Context) -> None:
    """Carlini and Wagner's L2 attack and JSMA, with batches that examples leave when they end and without."""
    count = min(_BATCH, len(context.images))
    columns = [jnp.asarray(array[:count]) for array in (context.images, context.labels, context.targets)]
    shared = (context.logits_fn, jax.random.key(context.seed))
    for name, attack in (("carlini_wagner_l2", _carlini_wagner), ("jsma", functools.partial(_jsma, context))):

        def side(compacts: bool, attack: Any = attack, norm: str = "l2" if name != "jsma" else "l0_values") -> Side:
            loop = loops.while_live
            whole = lambda *given, **settings: loop(*given, **settings | {"lanes": None, "smallest": 10**9})
            with mock.patch.object(loops, "while_live", loop if compacts else whole):
                # A function of its own, or the trace of the other side would be taken.
                compiled = layers.jit(lambda *arguments: attack(*arguments)).lower(shared, *columns).compile()

            def describe(result: attacks.AttackResult) -> dict[str, Any]:
                success = np.asarray(result.success)
                distances = np.asarray(getattr(metrics.distances(columns[0], result.inputs), norm))[success]
                fields = {"success": float(success.mean()), "gradients": float(np.mean(result.gradients))}
                return fields | {"norm": norm, "mean_distance": float(distances.mean()) if len(distances) else None}

            return Side(lambda: jax.block_until_ready(compiled(shared, *columns)), count, describe)

        sides: Sides = {
            "ddjax": functools.partial(side, True),
            "batches that stay whole": functools.partial(side, False),
        }
        where = {"work": "compaction", "attack": name, "network": context.network, "batch": count}
        measure.compare(context.run, where, sides, repetitions=context.repetitions)


def _jsma(context: Context, shared: Any, images: jax.Array, labels: jax.Array, targets: jax.Array) -> Any:
    gamma = context.recipe.jsma_features / images[0].size
    return attacks.jsma(shared[0], images, labels, targets=targets, gamma=gamma)


def _precision(context: Context) -> None:
    """PGD on the network as it is and with its products in bfloat16, both judged by the network as it is."""
    for batch in context.batches:
        columns = [jnp.asarray(array[:batch]) for array in (context.images, context.labels)]
        key = jax.random.key(context.seed)

        def side(wrap: Callable[[Any], Any], columns: Sequence[jax.Array] = columns, key: jax.Array = key) -> Side:
            attack = lambda logits_fn, images, labels, key: attacks.pgd(
                wrap(logits_fn), images, labels, key=key, epsilon=0.3, step_size=0.3 / 16, num_steps=40
            )
            compiled = layers.jit(attack).lower(context.logits_fn, *columns, key).compile()

            def describe(result: attacks.AttackResult) -> dict[str, Any]:
                decisions = np.asarray(context.logits_fn(result.inputs)).argmax(1)
                fields = {"success": float(np.mean(decisions != np.asarray(columns[1])))}
                return fields | {"success_in_its_own": float(np.mean(result.success))}

            call = lambda: jax.block_until_ready(compiled(context.logits_fn, *columns, key))
            return Side(call, len(columns[0]), describe)

        sides: Sides = {
            "ddjax": functools.partial(side, lambda logits_fn: logits_fn),
            "bfloat16": functools.partial(side, in_bfloat16),
        }
        where = {"work": "precision", "attack": "pgd", "network": context.network, "batch": batch}
        measure.compare(context.run, where, sides, repetitions=context.repetitions)


WORK: Mapping[str, measure.Work] = types.MappingProxyType(
    {
        "growth_examples": _examples,
        "growth_steps": _steps,
        "growth_features": _features,
        "growth_classes": _classes,
        "growth_temperatures": _temperatures,
        "compaction": _compaction,
        "precision": _precision,
    }
)
