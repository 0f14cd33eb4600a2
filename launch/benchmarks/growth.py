"""How costs grow: with examples, steps, features, classes and temperatures; and what batches that shrink save.

The sizes of a curve are the sides of one comparison and take turns, so that what a machine does meanwhile meets all of
them. A side has the fields `curve`, which names the curve, `size`, and `order`, the growth that is expected: `"1"`,
`"n"` or `"n log n"`, of the time for all units of a call.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from ddjax import attacks, evaluation, jacobian, layers, metrics, models
from ddjax.attacks import loops
from ddjax.attacks.saliency import most_salient_feature_pair, most_salient_pair
from ddjax.binding import bind
from ddjax.classifier import in_bfloat16

from .. import common
from . import measure, training
from .attacks import jsma_without_success
from .measure import Context, Maker, Side

_BATCH = 128
_EXAMPLES = (100, 200, 500, 1000)
_STEPS = (10, 20, 40, 80, 160)
_FEATURES = (196, 784, 3072, 12288)
_CLASSES = (2, 10, 100)
_TEMPERATURES = (1, 3, 9)
# The Jacobian of a hundred classes is a hundred backward passes.
_CLASSES_BATCH = 32
_JSMA_STEPS = 5
_QUICK_SIZES = 2
# Batches, since one takes as long as the hardest of its examples.
_DRAWS = 4


def _grow(context: Context, axis: str, sides: Mapping[int, Maker], **where: Any) -> None:
    """Compares sides of ever larger sizes with the smallest; the first few for `--quick`."""
    sizes = list(sides)[:_QUICK_SIZES] if context.quick else list(sides)
    named = {f"{size} {axis}": sides[size] for size in sizes}
    measure.compare(context, f"growth_{axis}", named, **where)


def _point(curve: str, size: int, order: str = "n") -> dict[str, Any]:
    return {"curve": curve, "size": size, "order": order}


def _means(result: attacks.AttackResult) -> dict[str, Any]:
    return {"success": float(np.mean(result.success)), "gradients": float(np.mean(result.gradients))}


def _pgd(
    shared: Any, images: jax.Array, labels: jax.Array, _: jax.Array, step_size: float = 0.3 / 16, num_steps: int = 40
) -> attacks.AttackResult:
    logits_fn, key = shared
    return attacks.pgd(logits_fn, images, labels, key=key, epsilon=0.3, step_size=step_size, num_steps=num_steps)


def _carlini_wagner(shared: Any, images: jax.Array, labels: jax.Array, targets: jax.Array) -> attacks.AttackResult:
    settings = {"search_steps": 3, "num_steps": 30, "learning_rate": 0.05, "initial_const": 0.1}
    return attacks.carlini_wagner_l2(shared[0], images, labels, targets=targets, **settings)


def _examples(context: Context) -> None:
    """Attacks of ever more examples, as launchers evaluate them: the time for each must not change."""
    shared = (context.state.logits_fn, jax.random.key(context.seed))

    def side(name: str, attack: Any, size: int) -> Side:
        # Again from the first, where there are not so many.
        columns = (context.images, context.labels, context.targets)
        some = [column[np.arange(size) % len(column)] for column in columns]
        call = functools.partial(common.evaluate, attack, shared, *some, batch_size=_BATCH)
        return Side(call, size, lambda result: _point(name, size) | _means(result))

    for name, attack in (("pgd", _pgd), ("carlini_wagner_l2", _carlini_wagner)):
        sides = {size: functools.partial(side, name, attack, size) for size in _EXAMPLES}
        _grow(context, "examples", sides, attack=name, batch=_BATCH)


def _steps(context: Context) -> None:
    """PGD with ever more steps."""
    arguments = ((context.state.logits_fn, jax.random.key(context.seed)), *context.first(_BATCH))
    batch = len(arguments[1])

    sides = {}
    for steps in _STEPS:
        attack = functools.partial(_pgd, step_size=0.01, num_steps=steps)
        sides[steps] = measure.program(attack, *arguments, units=batch, fields=_point("pgd", steps))
    _grow(context, "steps", sides, attack="pgd", batch=batch)


def _random_slopes(features: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Like those of a network: some features matter far more than others, and the two slopes go together."""
    rng = np.random.default_rng(seed)
    scale = np.exp(rng.normal(size=(_BATCH, features)))
    first, second = rng.normal(size=(2, _BATCH, features))
    return (scale * first).astype(np.float32), (scale * (0.6 * first + 0.8 * second)).astype(np.float32)


def _trained_slopes(context: Context, draw: int) -> tuple[np.ndarray, np.ndarray]:
    """The slopes of the target's logit and of the others', of the trained network."""
    rows = (draw * _BATCH + np.arange(_BATCH)) % len(context.images)
    slopes = np.asarray(layers.jit(jacobian.jacobian)(context.state.logits_fn, context.images[rows]))
    slopes = slopes.reshape(*slopes.shape[:2], -1)
    target = slopes[np.arange(_BATCH), context.targets[rows]]
    return target, target - slopes.sum(1)


def _features(context: Context) -> None:
    """The search for the most salient pair of features alone, of a batch: what JSMA adds to its gradients."""
    searches = {
        "logits": most_salient_pair,
        "probabilities": lambda u, _, unused: most_salient_feature_pair(u, unused),
    }

    def side(search: Any, draws: Sequence[tuple[Any, Any]], curve: str) -> Side:
        batches = [(jnp.asarray(u), jnp.asarray(v), jnp.ones(u.shape, bool)) for u, v in draws]
        compiled = layers.jit(search).lower(*batches[0]).compile()
        call = lambda: jax.block_until_ready([compiled(*batch) for batch in batches])
        return Side(call, len(batches), _point(curve, draws[0][0].shape[1], "n log n"))

    sizes = _FEATURES[:_QUICK_SIZES] if context.quick else _FEATURES
    random = {f"{size} features": [_random_slopes(size, context.seed + i) for i in range(_DRAWS)] for size in sizes}
    trained = [_trained_slopes(context, i) for i in range(_DRAWS)]
    for space, search in searches.items():
        sides = {name: functools.partial(side, search, draws, "random slopes") for name, draws in random.items()}
        name = f"{trained[0][0].shape[1]} features, trained"
        sides[name] = functools.partial(side, search, trained, "trained network")
        unit = "search of a batch"
        measure.compare(context, "growth_features", sides, unit=unit, space=space, batch=_BATCH)


def _classes(context: Context) -> None:
    """A network with ever more classes: JSMA takes two backward passes whatever their number, a Jacobian takes all."""
    images, *_ = context.first(_CLASSES_BATCH)
    batch = len(images)

    def steps(logits_fn: Any, images: jax.Array) -> attacks.AttackResult:
        # Below the fewest classes.
        labels, targets = jnp.zeros(batch, jnp.int32), jnp.ones(batch, jnp.int32)
        return jsma_without_success(_JSMA_STEPS, "logits", logits_fn, images, labels, targets)

    for name, function, order in (("jacobian", jacobian.jacobian, "n"), ("jsma", steps, "1")):
        sides = {}
        for classes in _CLASSES:
            module = models.build(context.recipe.network, classes)
            logits_fn = bind(module, module.init(jax.random.key(context.seed), images[:1]))
            fields = _point(name, classes, order)
            sides[classes] = measure.program(function, logits_fn, images, units=batch, fields=fields)
        _grow(context, "classes", sides, attack=name, batch=batch)


def _temperatures(context: Context) -> None:
    """Training at ever more temperatures: one program, traced as often as for a single one."""
    sides = {
        count: functools.partial(training.stack_side, context, count, **_point("training", count))
        for count in _TEMPERATURES
    }
    _grow(context, "temperatures", sides, unit="step of a network", batch=context.training_batch)


def _compaction(context: Context) -> None:
    """Carlini and Wagner's L2 attack and JSMA, with batches that examples leave when they end and without."""
    arguments = ((context.state.logits_fn, jax.random.key(context.seed)), *context.first(_BATCH))
    images, loop = arguments[1], loops.while_live
    whole = lambda *given, **settings: loop(*given, **settings | {"lanes": None, "smallest": 10**9})

    def jsma(shared: Any, images: jax.Array, labels: jax.Array, targets: jax.Array) -> attacks.AttackResult:
        gamma = context.recipe.jsma_features / images[0].size
        return attacks.jsma(shared[0], images, labels, targets=targets, gamma=gamma)

    def side(attack: Any, norm: str, while_live: Any) -> Side:
        def describe(result: attacks.AttackResult) -> dict[str, Any]:
            distances = np.asarray(getattr(metrics.distances(images, result.inputs), norm))[np.asarray(result.success)]
            mean = float(distances.mean()) if len(distances) else None
            return _means(result) | {"norm": norm, "mean_distance": mean}

        with mock.patch.object(loops, "while_live", while_live):
            # A function of its own, or the trace of the other side would be taken.
            function = lambda *arguments: attack(*arguments)
            return measure.program(function, *arguments, units=len(images), fields=describe)()

    for name, attack, norm in (("carlini_wagner_l2", _carlini_wagner, "l2"), ("jsma", jsma, "l0_values")):
        sides = {
            "ddjax": functools.partial(side, attack, norm, loop),
            "batches that stay whole": functools.partial(side, attack, norm, whole),
        }
        measure.compare(context, "compaction", sides, attack=name, batch=len(images))


def _precision(context: Context) -> None:
    """PGD on the network as it is and with its products in bfloat16, both judged by the network as it is."""
    for batch in context.batches:
        arguments = ((context.state.logits_fn, jax.random.key(context.seed)), *context.first(batch))

        def describe(result: attacks.AttackResult, labels: jax.Array = arguments[2]) -> dict[str, Any]:
            success = evaluation.judge(context.state.logits_fn, result.inputs, labels).success
            return {"success": float(success.mean()), "success_in_its_own": float(np.mean(result.success))}

        in_less = lambda shared, *columns: _pgd((in_bfloat16(shared[0]), shared[1]), *columns)
        sides = {
            name: measure.program(attack, *arguments, units=batch, fields=describe)
            for name, attack in (("ddjax", _pgd), ("bfloat16", in_less))
        }
        measure.compare(context, "precision", sides, attack="pgd", batch=batch)


WORK = {
    "growth_examples": _examples,
    "growth_steps": _steps,
    "growth_features": _features,
    "growth_classes": _classes,
    "growth_temperatures": _temperatures,
    "compaction": _compaction,
    "precision": _precision,
}
