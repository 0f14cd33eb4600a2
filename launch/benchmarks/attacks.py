"""The attacks, beside the same attacks of other libraries: same weights, images, settings and batches."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddjax import attacks, layers, metrics, parallel

from . import measure, peers
from .adapters import ADAPTERS, Adapter
from .measure import Context, Side

# An example alone may be an easy one: so many go, one after the other, where the batch is smaller.
_LEAST_EXAMPLES = 8
_PGD_STEPS = 40


class _Attack(NamedTuple):
    """An attack of ours as it is measured.

    Attributes:
      function: the attack.
      settings: of it and of the adapters; real numbers become arguments of the compiled program.
      norm: the distance that is told, of `metrics.Distances`.
      targeted: whether it aims at `Context.targets`.
      all_targets: whether it aims at every other class of each image instead.
      grows: whether it is measured on the largest batch, too.
      linearises: whether one more evaluation than steps is spent, and several gradients in each.
      least_examples: in place of `_LEAST_EXAMPLES`.
    """

    function: Callable[..., attacks.AttackResult]
    settings: Callable[[Context], dict[str, Any]]
    norm: str
    targeted: bool = False
    all_targets: bool = False
    grows: bool = False
    linearises: bool = False
    least_examples: int = _LEAST_EXAMPLES


def _epsilon(context: Context) -> float:
    """The usual radius in Linf: of digits, and of photographs."""
    return 8 / 255 if context.test.image_shape[2] == 3 else 0.3


def _pgd_settings(context: Context) -> dict[str, Any]:
    epsilon = _epsilon(context)
    return {"epsilon": epsilon, "step_size": 2.5 * epsilon / _PGD_STEPS, "num_steps": _PGD_STEPS}


def _l2_settings(context: Context, abort_early: bool) -> dict[str, Any]:
    searches, steps = (3, 30) if context.quick else (9, 100)
    return {
        "learning_rate": 0.05,
        "initial_const": 0.1,
        "search_steps": searches,
        "num_steps": steps,
        "abort_early": abort_early,
    }


def _linf_settings(context: Context) -> dict[str, Any]:
    return {"learning_rate": 0.02, "decrease_factor": 0.9, "num_steps": 30 if context.quick else 100}


def _jsma_settings(context: Context) -> dict[str, Any]:
    return {"theta": 1.0, "gamma": context.recipe.jsma_features / context.images[0].size, "score_space": "logits"}


_ATTACKS = {
    "fgsm": _Attack(attacks.fgsm, lambda context: {"epsilon": _epsilon(context)}, "linf", grows=True),
    "pgd": _Attack(attacks.pgd, _pgd_settings, "linf", grows=True),
    "ddn": _Attack(attacks.ddn, lambda _: {"num_steps": 100}, "l2"),
    "deepfool": _Attack(attacks.deepfool, lambda _: {"num_steps": 50, "overshoot": 0.02}, "l2", linearises=True),
    "jsma": _Attack(attacks.jsma, _jsma_settings, "l0_values", targeted=True, all_targets=True, linearises=True),
    "carlini_wagner_l2": _Attack(
        attacks.carlini_wagner_l2, lambda c: _l2_settings(c, False), "l2", targeted=True, least_examples=4
    ),
    "carlini_wagner_l2_compacted": _Attack(
        attacks.carlini_wagner_l2, lambda c: _l2_settings(c, True), "l2", targeted=True, least_examples=4
    ),
    "carlini_wagner_linf": _Attack(
        attacks.carlini_wagner_linf, _linf_settings, "linf", targeted=True, least_examples=4
    ),
}


# Ours once more with other settings, by attack and side.
_VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    # The target's gradient alone, as in art; there of the logit.
    "jsma": {"ddjax, probabilities": {"score_space": "probs"}},
}


class _Examples(NamedTuple):
    """What is attacked, all `[N, ...]`."""

    images: np.ndarray
    labels: np.ndarray
    targets: np.ndarray

    def first(self, count: int) -> "_Examples":
        return _Examples(*(array[:count] for array in self))

    def batches(self, size: int) -> list["_Examples"]:
        return [_Examples(*(array[i : i + size] for array in self)) for i in range(0, len(self.labels), size)]


def _examples(context: Context, attack: _Attack, count: int) -> _Examples:
    if not attack.all_targets:
        return _Examples(context.images, context.labels, context.targets).first(count)
    others = context.num_classes - 1
    rows, other = np.divmod(np.arange(count), others)
    labels = context.labels[rows]
    return _Examples(context.images[rows], labels, ((labels + 1 + other) % context.num_classes).astype(np.int32))


_logits = jax.jit(lambda logits_fn, images: logits_fn(images))


def decide(logits_fn: Any, images: np.ndarray, batch_size: int = 128) -> np.ndarray:
    """The class of each image; -1, no class, where the logits are not finite."""
    parts = [images[i : i + batch_size] for i in range(0, len(images), batch_size)]
    logits = np.concatenate([np.asarray(_logits(logits_fn, part)) for part in parts])
    return np.where(np.isfinite(logits).all(1), logits.argmax(1), -1)


def _judge(context: Context, attack: _Attack, tried: _Examples, found: np.ndarray) -> dict[str, Any]:
    """Success and distance, by the same classifier whoever made the images."""
    decisions = decide(context.logits_fn, found)
    success = decisions == tried.targets if attack.targeted else (decisions != tried.labels) & (decisions >= 0)
    distances = metrics.distances(jnp.asarray(tried.images), jnp.asarray(found))
    of_successes = np.asarray(getattr(distances, attack.norm))[success]
    return {
        "success": float(success.mean()),
        "norm": attack.norm,
        "mean_distance": float(of_successes.mean()) if success.any() else None,
    }


def _measure(context: Context, name: str) -> None:
    attack = _ATTACKS[name]
    settings = attack.settings(context)
    batches = [*context.batches]
    if attack.grows and context.largest is not None and context.largest not in batches:
        batches.append(context.largest)
    for batch in batches:
        least = 2 if context.quick else attack.least_examples
        tried = _examples(context, attack, max(batch, least))
        # What ours returned, for the peers that are given less.
        ours: dict[str, np.ndarray] = {}
        sides: dict[str, Side | Callable[[], Side]] = {
            "ddjax": functools.partial(_our_side, context, attack, settings, tried, batch, ours)
        }
        for side, changed in _VARIANTS.get(name, {}).items():
            varied = {**settings, **changed}
            sides[side] = functools.partial(_our_side, context, attack, varied, tried, batch, {})
        for peer, adapter in ADAPTERS[name].items():
            if context.peers.has(peer):
                sides[peer] = functools.partial(_their_side, context, attack, settings, adapter, tried, batch, ours)
        where = {"work": name, "network": context.network, "batch": batch}
        unit = "pair" if attack.all_targets else "example"
        measure.compare(context.run, where, sides, unit=unit, repetitions=context.repetitions)


def _our_side(
    context: Context,
    attack: _Attack,
    settings: Mapping[str, Any],
    tried: _Examples,
    batch: int,
    ours: dict[str, np.ndarray],
) -> Side:
    numbers = {name: np.float32(value) for name, value in settings.items() if isinstance(value, float)}
    words = {name: value for name, value in settings.items() if name not in numbers}

    def attack_batch(shared: Any, images: jax.Array, labels: jax.Array, keys: jax.Array, *targets: jax.Array) -> Any:
        logits_fn, numbers = shared
        targeted = {"targets": targets[0]} if targets else {}
        return attack.function(logits_fn, images, labels, key=keys, **words, **numbers, **targeted)

    # As launchers run it: all devices share a batch, and each has as many examples of its share at work as suit it.
    devices = jax.local_devices() if batch % jax.local_device_count() == 0 else jax.local_devices()[:1]
    mesh = jax.sharding.Mesh(np.array(devices), ("data",))
    in_parts = not any(each.refills for each in attacks.ATTACKS.values() if each.function is attack.function)
    program = layers.jit(parallel.over_examples(attack_batch, mesh, in_parts=in_parts))
    shared = parallel.replicate((context.logits_fn, numbers), mesh)
    keys = jax.random.split(jax.random.key(context.seed), len(tried.labels))
    compiled: Any = None
    calls = []
    for start in range(0, len(tried.labels), batch):
        rows = slice(start, start + batch)
        columns = [
            tried.images[rows],
            tried.labels[rows],
            keys[rows],
            *([tried.targets[rows]] if attack.targeted else []),
        ]
        arguments = (shared, *(parallel.split(column, mesh) for column in columns))
        if compiled is None:
            compiled = program.lower(*arguments).compile()
        calls.append(functools.partial(compiled, *arguments))

    def describe(results: list[attacks.AttackResult]) -> dict[str, Any]:
        ours["images"] = np.concatenate([np.asarray(result.inputs) for result in results])
        gradients = float(np.mean([np.asarray(result.gradients) for result in results]))
        steps = float(np.mean([np.asarray(result.steps) for result in results]))
        forward, backward = _flops(context, batch)
        flops = None
        if forward is not None and backward is not None:
            flops = (steps + 1 if attack.linearises else gradients) * forward + gradients * backward
        return _judge(context, attack, tried, ours["images"]) | {
            "gradients": gradients,
            "steps": steps,
            "flops": flops,
            "program_bytes": measure.bytes_of(compiled),
        }

    return Side(lambda: jax.block_until_ready([call() for call in calls]), len(tried.labels), describe)


@functools.cache
def _flops(context: Context, batch: int) -> tuple[float | None, float | None]:
    """The operations of a forward and of a backward pass for one example, of programs without a loop."""
    images = jax.ShapeDtypeStruct((batch, *context.test.image_shape), jnp.float32)
    total = lambda logits_fn, x: jnp.sum(logits_fn(x) ** 2)
    both = measure.flops_of(layers.jit(jax.grad(total, argnums=1)).lower(context.logits_fn, images).compile())
    forward = measure.flops_of(layers.jit(total).lower(context.logits_fn, images).compile())
    if both is None or forward is None:
        return None, None
    return forward / batch, (both - forward) / batch


@functools.cache
def _network(context: Context, batch: int) -> peers.Network:
    return peers.fastest(context.state, context.images[:batch], context.labels[:batch])


def _their_side(
    context: Context,
    attack: _Attack,
    settings: Mapping[str, Any],
    adapter: Adapter,
    tried: _Examples,
    batch: int,
    ours: Mapping[str, np.ndarray],
) -> Side:
    network = _network(context, batch)
    given = tried.first(adapter.most or len(tried.labels))
    call = adapter.make(network, {**settings, "batch": batch})
    context.peers.torch.manual_seed(context.seed)
    parts = [
        (network.images(part.images), network.classes(part.labels), network.classes(part.targets))
        for part in given.batches(batch)
    ]

    def attack_all() -> list[Any]:
        found = [call(*part) for part in parts]
        peers.synchronize()
        return found

    def describe(found: list[Any]) -> dict[str, Any]:
        fields = {"note": adapter.note, "memory_format": network.memory_format}
        fields |= _judge(context, attack, given, np.concatenate([peers.on_host(images) for images in found]))
        if len(given.labels) < len(tried.labels) and "images" in ours:
            same = _judge(context, attack, given, ours["images"][: len(given.labels)])
            fields |= {"success_same": same["success"], "mean_distance_same": same["mean_distance"]}
        return fields

    return Side(attack_all, len(given.labels), describe)


# Steps inside one call, so that what surrounds the loop does not count.
_STEPS = 5


def _jsma_steps(context: Context) -> None:
    """A step of JSMA in each score space, beside the input gradients that it cannot do without."""
    for batch in context.batches:
        tried = _examples(context, _ATTACKS["jsma"], batch)
        images, labels, targets = (jnp.asarray(array) for array in tried)
        where = {"work": "jsma_step", "network": context.network, "batch": batch}
        gradients = functools.partial(_gradients, context, images, labels)
        sides: dict[str, Side | Callable[[], Side]] = {"two gradients": gradients}
        for space in ("probs", "logits"):
            sides[f"ddjax, {space}"] = functools.partial(_hopeless_jsma, context, images, labels, targets, space)
        measure.compare(context.run, where, sides, base="two gradients", unit="step", repetitions=context.repetitions)


def _gradients(context: Context, images: jax.Array, labels: jax.Array) -> Side:
    """Pairs of input gradients in a loop, each at a point that depends on the last."""

    def steps(logits_fn: Any, images: jax.Array) -> jax.Array:
        gradient = jax.grad(lambda x: -jnp.take_along_axis(jax.nn.log_softmax(logits_fn(x)), labels[:, None], 1).sum())
        return jax.lax.fori_loop(0, 2 * _STEPS, lambda _, x: x + 1e-3 * gradient(x), images)

    compiled = layers.jit(steps).lower(context.logits_fn, images).compile()
    return Side(lambda: compiled(context.logits_fn, images).block_until_ready(), _STEPS * len(images))


def _hopeless_jsma(context: Context, images: jax.Array, labels: jax.Array, targets: jax.Array, space: str) -> Side:
    """The target is put out of reach, so that every example takes every step."""

    def steps(logits_fn: Any, images: jax.Array) -> attacks.AttackResult:
        # Not so far that probabilities underflow.
        bias = 40.0 * (jnp.arange(context.num_classes) == targets[:, None])
        out_of_reach = lambda x: logits_fn(x) - bias
        gamma = 2 * (_STEPS - 1) / images[0].size
        return attacks.jsma(out_of_reach, images, labels, targets=targets, gamma=gamma, score_space=space)

    compiled = layers.jit(steps).lower(context.logits_fn, images).compile()
    spent = float(compiled(context.logits_fn, images).steps.mean()) / (_STEPS - 1)
    if spent < 0.99:
        raise RuntimeError(f"only {spent:.2f} of the steps were needed: the comparison would flatter JSMA")
    return Side(lambda: jax.block_until_ready(compiled(context.logits_fn, images)), _STEPS * len(images))


WORK: dict[str, measure.Work] = {name: functools.partial(_measure, name=name) for name in _ATTACKS}
WORK["jsma_step"] = _jsma_steps
