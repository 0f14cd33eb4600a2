"""What a defense is: its declaration, and the defense with its settings as it is deployed and attacked.

Each file of a defense ends with `DEFENSES = (declare(...),)`. Everything that other code knows about a defense follows
from the declaration alone.
"""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Key

from ddjax import registry
from ddjax.checks import check_choice
from ddjax.classifier import (
    LogitsFn,
    Randomized,
    Transform,
    bpda,
    expectation,
    randomized,
    single_draw,
    transform,
    transformed,
)

KINDS = ("none", "transform", "wrapper", "detector", "training")
GRADIENTS = ("own", "straight-through", "substitute")


@dataclasses.dataclass(frozen=True)
class Declaration:
    """What a defense is; `declare` makes it and says what the attributes mean."""

    name: str
    function: Callable[..., Any]
    kind: str
    gradient: str | None
    substitute: Callable[..., Any] | None
    prepare: Callable[..., tuple[tuple[Any, ...], dict[str, Any]]] | None
    random: bool
    averages: bool
    view: Callable[..., Array] | None
    published: Callable[[str], dict[str, Any]] | None
    check: Callable[..., None] | None
    settings: tuple[tuple[str, Any], ...]

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """The settings that a flag can set, with this declaration's defaults: those of `prepare` among them."""
        found = registry.settings_of(self.function)
        if self.prepare is not None:
            # What `prepare` finds out itself is no setting of a user.
            found |= registry.settings_of(self.prepare)
        defaults = dict(self.settings)
        return {
            name: each.replace(default=defaults[name]) if name in defaults else each
            for name, each in found.items()
            if defaults.get(name, each) is not PREPARED
        }


class _Prepared:
    """The default of a setting that `prepare` finds out, such as the length of a generator's codes."""

    def __repr__(self) -> str:
        return "PREPARED"


PREPARED = _Prepared()


def declare(
    function: Callable[..., Any],
    *,
    name: str | None = None,
    kind: str = "transform",
    gradient: str | None = None,
    substitute: Callable[..., Any] | None = None,
    prepare: Callable[..., tuple[tuple[Any, ...], dict[str, Any]]] | None = None,
    random: bool = False,
    averages: bool = False,
    view: Callable[..., Array] | None = None,
    published: Callable[[str], dict[str, Any]] | None = None,
    check: Callable[..., None] | None = None,
    **settings: Any,
) -> Declaration:
    """Declares a defense.

    Args:
      function: the defense. A transform takes inputs `[B, ...]`, where it is random then a key for each, then what
        `prepare` has made, and its settings as keyword-only arguments. A wrapper takes a classifier, then what
        `prepare` has made, and its settings, and returns a classifier or a `Randomized`. A detector takes a classifier,
        clean inputs and labels, and the keyword-only `key`, `evaluate` and its settings; it returns an object with
        `threshold`, `scores(inputs)` and `flags(inputs)`.
      name: in the registry; default: the function's.
      kind: one of `KINDS`. A defense by training changes nothing when the network is deployed; neither does a
        detector, which stands beside it.
      gradient: of a transform or a wrapper, how an attack that knows the defense differentiates it. `"own"`: its own
        gradient is useful. `"straight-through"`: by BPDA with the identity, for transforms only. `"substitute"`: by
        BPDA with `substitute`.
      substitute: of a transform, a function of inputs, keys where the transform is random, and what was prepared; of a
        wrapper, another wrapper. It gets those of the settings that it has, too.
      prepare: makes what the function takes in addition: a function of training inputs `[N, ...]`, a key, and
        keyword-only settings. It returns a tuple of arrays or pytrees, and settings of the function that follow from
        these.
      random: whether a transform takes keys.
      averages: whether one draw of a random defense averages over several already, so that an expectation over one
        draw is enough for an attack.
      view: from the outputs of the transform to what can be shown in the place of the inputs; it gets the settings that
        it has. Default: the outputs.
      published: from the name of a data set to the settings that were published for it; empty for none.
      check: takes the settings and raises ValueError for bad ones, before any work is done.
      **settings: defaults in the place of the function's or of `prepare`'s.

    Returns:
      The declaration, for `DEFENSES` at the end of the file or for `ddjax.defenses.register`.

    Raises:
      ValueError: for an unknown kind; a transform or a wrapper that does not say what its gradient is; a gradient that
        the kind does not have; a substitute without `gradient="substitute"`, or the latter without a substitute.
    """
    name = str(getattr(function, "__name__", "")) if name is None else name
    check_choice("kind of a defense", kind, KINDS)
    if kind in ("transform", "wrapper"):
        if gradient is None:
            raise ValueError(
                f"defense {name!r} must declare its gradient: "
                'gradient="own", gradient="straight-through", or gradient="substitute" with substitute=FUNCTION'
            )
        check_choice("gradient", gradient, GRADIENTS)
    elif gradient is not None:
        raise ValueError(f"defense {name!r} is no transform and no wrapper: it has no gradient to declare")
    if kind == "wrapper" and gradient == "straight-through":
        raise ValueError(f"defense {name!r}: a wrapper has no straight-through gradient; give a substitute")
    if (substitute is not None) != (gradient == "substitute"):
        raise ValueError(f'defense {name!r}: gradient="substitute" and substitute=FUNCTION go together')
    return Declaration(
        name,
        function,
        kind,
        gradient,
        substitute,
        prepare,
        random,
        averages,
        view,
        published,
        check,
        tuple(sorted(settings.items(), key=lambda item: item[0])),
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Defense:
    """A defense with its settings, and with what was prepared for it; a pytree whose leaves are the latter.

    Attributes:
      declaration: what it is.
      text: as it was written, for results.
      settings: of the function; names and hashable values.
      preparing: settings of `prepare`.
      given: what was prepared; None where it is still missing.
    """

    declaration: Declaration = dataclasses.field(metadata={"static": True})
    text: str = dataclasses.field(metadata={"static": True})
    settings: tuple[tuple[str, Any], ...] = dataclasses.field(default=(), metadata={"static": True})
    preparing: tuple[tuple[str, Any], ...] = dataclasses.field(default=(), metadata={"static": True})
    given: tuple[Any, ...] | None = None

    @property
    def is_transform(self) -> bool:
        """Whether it transforms inputs."""
        return self.declaration.kind == "transform"

    @property
    def is_detector(self) -> bool:
        """Whether it is a detector beside the network."""
        return self.declaration.kind == "detector"

    def prepared(self, inputs: Float[Array | np.ndarray, "N ..."], key: Key[Array, ""]) -> "Defense":
        """The defense with what it takes in addition: patches of training images, or a trained model.

        Args:
          inputs: training inputs, or none of the same shape for a defense that only loads a model.
          key: a single one.

        Returns:
          The same defense where there is nothing to prepare.

        Raises:
          ValueError: as its `prepare` does.
        """
        if self.declaration.prepare is None or self.given is not None:
            return dataclasses.replace(self, given=self.given or ())
        given, settings = self.declaration.prepare(inputs, key, **dict(self.preparing))
        return self.with_given(*given, **settings)

    def with_given(self, *given: Any, **settings: Any) -> "Defense":
        """The defense with what the caller has prepared, such as patches or a model of their own.

        Args:
          *given: what the function takes after inputs, or after inputs and keys; arrays and pytrees.
          **settings: of the function, in the place of those it has.
        """
        merged = tuple(sorted((dict(self.settings) | settings).items()))
        return dataclasses.replace(self, given=given, settings=merged, preparing=())

    def transform(self, inputs: Float[Array, "B ..."], keys: Key[Array, " B"]) -> Array:
        """What the transform makes of inputs: one draw of each, where it is random.

        Raises:
          ValueError: for a defense that is no transform, or that is not prepared.
        """
        if not self.is_transform:
            raise ValueError(f"{self.text} does not transform inputs")
        drawn = (keys,) if self.declaration.random else ()
        return self._transform(inputs, *drawn, *self._given)

    def deployed(self, logits_fn: LogitsFn) -> LogitsFn | Randomized:
        """The defended classifier; a `Randomized` where the defense is random.

        Raises:
          ValueError: for a defense that is not prepared.
        """
        return self._defended(logits_fn, self.declaration.function, self._transform)

    def naive(self, logits_fn: LogitsFn, key: Key[Array, ""]) -> LogitsFn:
        """The defended classifier as a defense-unaware attacker sees it: its own gradients, and one fixed draw.

        Args:
          logits_fn: the network.
          key: of the draw, a single one.

        Raises:
          ValueError: for a defense that is not prepared.
        """
        defended = self.deployed(logits_fn)
        return single_draw(defended, key) if isinstance(defended, Randomized) else defended

    def aware(self, logits_fn: LogitsFn, key: Key[Array, ""], num_samples: int = 30) -> LogitsFn:
        """The defended classifier as a defense-aware attacker sees it: by the declared gradient, over several draws.

        Args:
          logits_fn: the network.
          key: of the draws, a single one.
          num_samples: of the expectation; one for a defense that averages already.

        Raises:
          ValueError: for a defense that is not prepared.
        """
        function = self.declaration.function
        if self.declaration.kind == "wrapper" and self.declaration.substitute is not None:
            function = self.declaration.substitute
        defended = self._defended(logits_fn, function, self._aware_transform)
        if not isinstance(defended, Randomized):
            return defended
        return expectation(defended, key, num_samples=1 if self.declaration.averages else num_samples)

    def check_fits(self, logits_fn: LogitsFn, input_shape: tuple[int, ...]) -> None:
        """Refuses a network or a setting that does not fit, without running anything.

        Args:
          logits_fn: the network.
          input_shape: of one input, without the batch.

        Raises:
          ValueError: where the transform gives inputs that the network does not take, or as the defense itself does.
        """
        inputs, key = jax.ShapeDtypeStruct((1, *input_shape), np.float32), jax.random.key(0)
        if self.is_transform:
            seen = jax.eval_shape(lambda inputs: self.transform(inputs, jax.random.split(key, 1)), inputs)
            if seen.shape != inputs.shape:
                try:
                    jax.eval_shape(logits_fn, seen)
                except Exception as error:
                    raise ValueError(
                        f"{self.text} turns inputs of the shape {tuple(input_shape)} into ones of the shape "
                        f"{seen.shape[1:]}, which this network does not take"
                    ) from error
        jax.eval_shape(self.naive(logits_fn, key), inputs)

    def view(self, inputs: Float[Array, "B ..."], key: Key[Array, ""]) -> Array | None:
        """Inputs as the defended network sees them, by one draw; None where it sees them as they are."""
        show = self.declaration.view
        if self.is_detector and show is not None:
            return show(inputs, **_taken(show, self.settings))
        if not self.is_transform:
            return None
        seen = self.transform(inputs, jax.random.split(key, len(inputs)))
        return seen if show is None else show(seen, **_taken(show, self.settings))

    def detector(self, logits_fn: LogitsFn, inputs: Any, labels: Any, *, key: Key[Array, ""], evaluate: Any) -> Any:
        """Fits the detector, or calibrates its threshold.

        Args:
          logits_fn: the network.
          inputs: clean ones that serve nothing else, `[N, ...]`.
          labels: the true classes, `[N]`.
          key: a single one.
          evaluate: applies `function(shared, *batch)` to any number of examples: `evaluate(function, shared, *columns)`
            returns NumPy arrays.

        Returns:
          An object with `threshold`, `scores(inputs)` and `flags(inputs)`.

        Raises:
          ValueError: for a defense that is no detector, and as its function does.
        """
        if not self.is_detector:
            raise ValueError(f"{self.text} is no detector")
        return self.declaration.function(logits_fn, inputs, labels, key=key, evaluate=evaluate, **dict(self.settings))

    @property
    def _given(self) -> tuple[Any, ...]:
        if self.given is None and self.declaration.prepare is not None:
            raise ValueError(f"{self.text} needs preparation: call prepared(inputs, key) first")
        return self.given or ()

    @property
    def _transform(self) -> Transform:
        return transform(self.declaration.function, **dict(self.settings))

    @property
    def _aware_transform(self) -> Transform:
        return differentiable(self._transform, self.declaration)

    def _defended(self, logits_fn: LogitsFn, wrap: Callable[..., Any], seen: Transform) -> Any:
        if self.declaration.kind == "wrapper":
            return wrap(logits_fn, *self._given, **_taken(wrap, self.settings))
        if not self.is_transform:
            return logits_fn
        behind = randomized if self.declaration.random else transformed
        return behind(logits_fn, seen, *self._given)


def differentiable(exact: Transform, declaration: Declaration) -> Transform:
    """The transform with the gradient that its declaration names."""
    if declaration.gradient == "own":
        return exact
    if declaration.substitute is None:
        return bpda(exact)
    return bpda(exact, transform(declaration.substitute, **_taken(declaration.substitute, exact.settings)))


def parsed(defenses: registry.Registry[Declaration], text: str, dataset: str = "") -> Defense:
    """Reads `name:key=value,key=value`; see `ddjax.defenses.parse`."""
    name, settings = defenses.split(text)
    declaration = defenses.find(name)
    read = registry.read_settings(f"--defense={text}", name, settings, declaration.parameters)
    return with_settings(declaration, text, read, dataset)


def with_settings(declaration: Declaration, text: str, settings: Mapping[str, Any], dataset: str = "") -> Defense:
    """The defense with these settings; those published for the data set, and then the declared defaults, stand in.

    Raises:
      ValueError: for a missing setting, or one that the declaration's `check` refuses.
    """
    published = declaration.published(dataset) if declaration.published is not None else {}
    defaults = {name: value for name, value in declaration.settings if value is not PREPARED}
    merged = defaults | published | dict(settings)
    missing = [
        name
        for name, each in declaration.parameters.items()
        if each.default is inspect.Parameter.empty and name not in merged
    ]
    if missing:
        published_for = f"; nothing is published for {dataset or 'this data set'}" if declaration.published else ""
        raise ValueError(f"--defense={text} needs {missing[0]}, as in {missing[0]}=VALUE{published_for}")
    if declaration.check is not None:
        declaration.check(**merged)
    of_preparing = () if declaration.prepare is None else registry.settings_of(declaration.prepare)
    preparing = {name: value for name, value in merged.items() if name in of_preparing}
    rest = {name: value for name, value in merged.items() if name not in of_preparing}
    return Defense(declaration, text, tuple(sorted(rest.items())), tuple(sorted(preparing.items())))


def _taken(function: Callable[..., Any], settings: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    """Those of the settings that a function takes."""
    parameters = inspect.signature(function).parameters
    return {name: value for name, value in settings if name in parameters}


def _unchanged(logits_fn: LogitsFn) -> LogitsFn:
    return logits_fn


# The network as it is, in the place of a defense.
DEFENSES = (declare(_unchanged, name="none", kind="none"),)
