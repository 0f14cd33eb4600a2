"""The attacks, beside the same attacks of other libraries: same weights, images, settings and batches."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ddjax import attacks, evaluation, layers, losses, metrics, parallel

from . import adapters, measure, peers
from .measure import Context, Side

_PGD_STEPS = 40
# Of `jsma_step`, inside one call, so that what surrounds the loop does not count.
_STEPS = 5
# Ours once more with other settings, by attack and side.
_VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    # The target's gradient alone, as in art; there of the logit.
    "jsma": {"ddjax, probabilities": {"score_space": "probs"}},
}


class _Attack(NamedTuple):
    """An attack of ours as it is measured.

    Attributes:
      function: the attack.
      settings: of it and of the adapters; real numbers become arguments of the compiled program.
      norm: the distance that is told, of `metrics.Distances`.
      targets: `"one"` where it aims at `Context.targets`, `"all"` where at every other class of each image.
      grows: whether it is measured on the largest batch, too.
      linearises: whether one more evaluation than steps is spent, and several gradients in each.
    """

    function: Callable[..., attacks.AttackResult]
    settings: Mapping[str, Any]
    norm: str
    targets: str = ""
    grows: bool = False
    linearises: bool = False


def _attacks(context: Context) -> dict[str, _Attack]:
    """The attacks by name, with the keys of `ADAPTERS`."""
    # The usual radius: of photographs, and of digits.
    epsilon = 8 / 255 if context.test.image_shape[2] == 3 else 0.3
    pgd = {"epsilon": epsilon, "step_size": 2.5 * epsilon / _PGD_STEPS, "num_steps": _PGD_STEPS}
    gamma = context.recipe.jsma_features / context.images[0].size
    jsma = {"theta": 1.0, "gamma": gamma, "score_space": "logits"}
    searches, steps = (3, 30) if context.quick else (9, 100)
    l2 = {"learning_rate": 0.05, "initial_const": 0.1, "search_steps": searches, "num_steps": steps}
    linf = {"learning_rate": 0.02, "decrease_factor": 0.9, "num_steps": steps}
    carlini = functools.partial(_Attack, targets="one")
    return {
        "fgsm": _Attack(attacks.fgsm, {"epsilon": epsilon}, "linf", grows=True),
        "pgd": _Attack(attacks.pgd, pgd, "linf", grows=True),
        "ddn": _Attack(attacks.ddn, {"num_steps": 100}, "l2"),
        "deepfool": _Attack(attacks.deepfool, {"num_steps": 50, "overshoot": 0.02}, "l2", linearises=True),
        "jsma": _Attack(attacks.jsma, jsma, "l0_values", "all", linearises=True),
        "carlini_wagner_l2": carlini(attacks.carlini_wagner_l2, {**l2, "abort_early": False}, "l2"),
        "carlini_wagner_l2_compacted": carlini(attacks.carlini_wagner_l2, {**l2, "abort_early": True}, "l2"),
        "carlini_wagner_linf": carlini(attacks.carlini_wagner_linf, linf, "linf"),
    }


def _examples(context: Context, attack: _Attack, count: int) -> tuple[Any, ...]:
    """What is attacked: images, labels, targets and keys."""
    images, labels, targets = (array[:count] for array in (context.images, context.labels, context.targets))
    if attack.targets == "all":
        rows, other = np.divmod(np.arange(count), context.test.num_classes - 1)
        images, labels = context.images[rows], context.labels[rows]
        targets = ((labels + 1 + other) % context.test.num_classes).astype(np.int32)
    return images, labels, targets, jax.random.split(jax.random.key(context.seed), len(labels))


def _batches(columns: tuple[Any, ...], size: int) -> list[tuple[Any, ...]]:
    return [tuple(column[i : i + size] for column in columns) for i in range(0, len(columns[0]), size)]


@dataclasses.dataclass(frozen=True)
class _Comparison:
    """An attack on `tried`, in batches of `batch`; `made` has the images that our sides returned."""

    context: Context
    attack: _Attack
    tried: tuple[Any, ...]
    batch: int
    made: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def judge(self, found: np.ndarray) -> dict[str, Any]:
        """Success and distance on the first examples, by the same classifier whoever made the images."""
        clean, labels, targets, _ = _batches(self.tried, len(found))[0]
        targets = targets if self.attack.targets else None
        success = evaluation.judge(self.context.state.logits_fn, found, labels, targets).success[0]
        distances = getattr(metrics.distances(jnp.asarray(clean), jnp.asarray(found)), self.attack.norm)
        mean = float(np.asarray(distances)[success].mean()) if success.any() else None
        return {"success": float(success.mean()), "norm": self.attack.norm, "mean_distance": mean}

    def our_side(self, name: str, settings: Mapping[str, Any]) -> Side:
        """A side of ours."""
        function, batch = self.attack.function, self.batch
        numbers = {key: np.float32(value) for key, value in settings.items() if isinstance(value, float)}
        words = {key: value for key, value in settings.items() if key not in numbers}

        def attack_batch(shared: Any, images: jax.Array, labels: jax.Array, targets: jax.Array, keys: jax.Array) -> Any:
            logits_fn, numbers = shared
            targeted = {"targets": targets} if self.attack.targets else {}
            return function(logits_fn, images, labels, key=keys, **words, **numbers, **targeted)

        # As launchers run it: all devices share a batch, and each has as many examples of its share at work as suit it.
        devices = jax.local_devices() if batch % jax.local_device_count() == 0 else jax.local_devices()[:1]
        mesh = jax.sharding.Mesh(np.array(devices), ("data",))
        in_parts = not any(each.refills for each in attacks.ATTACKS.values() if each.function is function)
        shared = parallel.replicate((self.context.state.logits_fn, numbers), mesh)
        batches = [(shared, *parallel.split(part, mesh)) for part in _batches(self.tried, batch)]
        program = parallel.over_examples(attack_batch, mesh, in_parts=in_parts)
        compiled = layers.jit(program).lower(*batches[0]).compile()

        def describe(results: list[attacks.AttackResult]) -> dict[str, Any]:
            self.made[name] = np.concatenate([np.asarray(result.inputs) for result in results])
            gradients = float(np.mean([np.asarray(result.gradients) for result in results]))
            steps = float(np.mean([np.asarray(result.steps) for result in results]))
            fields = {"gradients": gradients, "steps": steps, "flops": None}
            forward, backward = _flops(self.context, batch)
            if forward is not None and backward is not None:
                evaluations = steps + 1 if self.attack.linearises else gradients
                fields["flops"] = evaluations * forward + gradients * backward
            return self.judge(self.made[name]) | fields | {"program_bytes": measure.bytes_of(compiled)}

        call = lambda: jax.block_until_ready([compiled(*arguments) for arguments in batches])
        return Side(call, len(self.tried[0]), describe)

    def their_side(self, attack: str, peer: str, settings: Mapping[str, Any]) -> Side:
        """A side of a peer."""
        adapter, network = adapters.ADAPTERS[attack][peer], _network(self.context, self.batch)
        given = _batches(self.tried, adapter.most or len(self.tried[0]))[0]
        settings = {**settings, "batch": self.batch}
        call = adapters.make_call(attack, peer, network, settings, bool(self.attack.targets))
        self.context.peers.torch.manual_seed(self.context.seed)
        parts = [
            (network.images(images), network.classes(labels), network.classes(targets))
            for images, labels, targets, _ in _batches(given, self.batch)
        ]

        def describe(found: list[Any]) -> dict[str, Any]:
            images = np.concatenate([peers.on_host(part) for part in found])
            fields = {"note": adapter.note, "memory_format": network.memory_format, **self.judge(images)}
            if len(images) < len(self.tried[0]):
                same = self.judge(self.made["ddjax"][: len(images)])
                fields |= {f"{field}_same": same[field] for field in ("success", "mean_distance")}
            return fields

        return Side(lambda: peers.block_until_ready([call(*part) for part in parts]), len(given[0]), describe)


@functools.cache
def _flops(context: Context, batch: int) -> tuple[float | None, float | None]:
    """The operations of a forward and of a backward pass for one example, of programs without a loop."""
    images = jax.ShapeDtypeStruct((batch, *context.test.image_shape), jnp.float32)
    total = lambda logits_fn, x: jnp.sum(logits_fn(x) ** 2)
    both, forward = (
        measure.flops_of(layers.jit(function).lower(context.state.logits_fn, images).compile())
        for function in (jax.grad(total, argnums=1), total)
    )
    return (None, None) if both is None or forward is None else (forward / batch, (both - forward) / batch)


@functools.cache
def _network(context: Context, batch: int) -> peers.Network:
    return peers.fastest(context.state, context.images[:batch], context.labels[:batch])


def _measure(context: Context, name: str) -> None:
    attack = _attacks(context)[name]
    largest = [context.largest] if attack.grows and context.largest is not None else []
    for batch in dict.fromkeys([*context.batches, *largest]):
        # An example alone may be an easy one: so many go, in whole batches one after the other.
        least = 2 if context.quick else 4 if attack.targets == "one" else 8
        count = batch * max(1, least // batch)
        comparison = _Comparison(context, attack, _examples(context, attack, count), batch)
        sides: dict[str, Callable[[], Side]] = {
            side: functools.partial(comparison.our_side, side, {**attack.settings, **changed})
            for side, changed in {"ddjax": {}, **_VARIANTS.get(name, {})}.items()
        }
        for peer in filter(context.peers.has, adapters.ADAPTERS[name]):
            sides[peer] = functools.partial(comparison.their_side, name, peer, attack.settings)
        measure.compare(context, name, sides, unit="pair" if attack.targets == "all" else "example", batch=batch)


def jsma_without_success(
    steps: int, space: str, logits_fn: Any, images: jax.Array, labels: jax.Array, targets: jax.Array
) -> attacks.AttackResult:
    """So many steps of JSMA for every example, since the targets are put out of reach."""
    # Not so far that probabilities underflow.
    out_of_reach = lambda x: (logits := logits_fn(x)) - 40.0 * jax.nn.one_hot(targets, logits.shape[1])
    gamma = 2 * steps / images[0].size
    return attacks.jsma(out_of_reach, images, labels, targets=targets, gamma=gamma, score_space=space)


def input_gradients(count: int, logits_fn: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
    """Input gradients in a loop, each at a point that depends on the last."""
    gradient = jax.grad(lambda x: jnp.sum(losses.cross_entropy(logits_fn(x), labels)))
    return lax.fori_loop(0, count, lambda _, x: x + 1e-3 * gradient(x), images)


def _jsma_steps(context: Context) -> None:
    """A step of JSMA in each score space, beside the input gradients that it cannot do without."""

    def check(result: attacks.AttackResult) -> dict[str, Any]:
        spent = float(result.steps.mean()) / (_STEPS - 1)
        if spent < 0.99:
            raise RuntimeError(f"only {spent:.2f} of the steps were needed: the comparison would flatter JSMA")
        return {}

    for batch in context.batches:
        images, labels, targets, _ = _examples(context, _attacks(context)["jsma"], batch)
        units, arguments = _STEPS * len(labels), (context.state.logits_fn, images, labels)
        gradients = functools.partial(input_gradients, 2 * _STEPS)
        sides = {"two gradients": measure.program(gradients, *arguments, units=units)}
        for space in ("probs", "logits"):
            attack = functools.partial(jsma_without_success, _STEPS - 1, space)
            sides[f"ddjax, {space}"] = measure.program(attack, *arguments, targets, units=units, fields=check)
        measure.compare(context, "jsma_step", sides, unit="step", batch=batch)


WORK = {name: functools.partial(_measure, name=name) for name in adapters.ADAPTERS} | {"jsma_step": _jsma_steps}
