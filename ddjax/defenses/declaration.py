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

from ddjax import classifier, registry
from ddjax.checks import check_choice
from ddjax.classifier import LogitsFn, Randomized, Transform

KINDS = ("none", "transform", "wrapper", "detector", "training")
GRADIENTS = ("own", "straight-through", "substitute")
# The default of a setting that `prepare` finds out, such as the length of a generator's codes.
PREPARED: Any = object()


@dataclasses.dataclass(frozen=True)
class Declaration:
    """What a defense is; made by `declare`.

    Attributes:
      name: in the registry.
      function: the defense. A transform takes inputs `[B, ...]`, where it is random then a key for each, then what
        `prepare` has made, and its settings as keyword-only arguments. A wrapper takes a classifier, then what
        `prepare` has made, and its settings, and returns a classifier or a `Randomized`. A detector takes a classifier,
        clean inputs `[N, ...]` that serve nothing else, their labels `[N]`, and the keyword-only `key`, a single one,
        `evaluate` and its settings. `evaluate(function, shared, *columns)` applies `function(shared, *batch)` to any
        number of examples and returns NumPy arrays. The detector returns an object with `threshold`, `scores(inputs)`
        and `flags(inputs)`.
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
      images: whether it works on images `[B, H, W, C]` only, since it is about pixels, blocks or windows.
      settings: defaults in the place of the function's or of `prepare`'s, by name.
    """

    name: str
    function: Callable[..., Any]
    kind: str = "transform"
    gradient: str | None = None
    substitute: Callable[..., Any] | None = None
    prepare: Callable[..., tuple[tuple[Any, ...], dict[str, Any]]] | None = None
    random: bool = False
    averages: bool = False
    view: Callable[..., Array] | None = None
    published: Callable[[str], dict[str, Any]] | None = None
    check: Callable[..., None] | None = None
    images: bool = False
    settings: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        """Refuses a declaration that does not say what others must know."""
        name = f"defense {self.name!r}"
        check_choice("kind of a defense", self.kind, KINDS)
        if self.kind in ("transform", "wrapper"):
            if self.gradient is None:
                raise ValueError(
                    f"{name} must declare its gradient: "
                    'gradient="own", gradient="straight-through", or gradient="substitute" with substitute=FUNCTION'
                )
            check_choice("gradient", self.gradient, GRADIENTS)
        elif self.gradient is not None:
            raise ValueError(f"{name} is no transform and no wrapper: it has no gradient to declare")
        if self.kind == "wrapper" and self.gradient == "straight-through":
            raise ValueError(f"{name}: a wrapper has no straight-through gradient; give a substitute")
        if (self.substitute is not None) != (self.gradient == "substitute"):
            raise ValueError(f'{name}: gradient="substitute" and substitute=FUNCTION go together')

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """The settings that a flag can set, with this declaration's defaults: those of `prepare` among them."""
        found = registry.settings_of(self.function)
        if self.prepare is not None:
            found |= registry.settings_of(self.prepare)
        defaults = dict(self.settings)
        found = {name: each.replace(default=defaults.get(name, each.default)) for name, each in found.items()}
        # What `prepare` finds out itself is no setting of a user.
        return {name: each for name, each in found.items() if each.default is not PREPARED}

    def differentiable(self, exact: Transform) -> Transform:
        """The transform, with its settings, with the gradient that is declared."""
        if self.gradient == "own":
            return exact
        if self.substitute is None:
            return classifier.bpda(exact)
        return classifier.bpda(exact, classifier.transform(self.substitute, **_taken(self.substitute, exact.settings)))


def declare(function: Callable[..., Any], *, name: str | None = None, **declared: Any) -> Declaration:
    """Declares a defense, for `DEFENSES` at the end of the file or for `ddjax.defenses.register`.

    Args:
      function: the defense.
      name: in the registry; default: the function's.
      **declared: the other attributes of `Declaration`, by name. All other names are those of settings, and their
        values are defaults in the place of the function's or of `prepare`'s.

    Raises:
      ValueError: for an unknown kind; a transform or a wrapper that does not say what its gradient is; a gradient that
        the kind does not have; a substitute without `gradient="substitute"`, or the latter without a substitute.
    """
    known = {field.name for field in dataclasses.fields(Declaration)} - {"settings"}
    settings = tuple((key, declared.pop(key)) for key in sorted(declared.keys() - known))
    return Declaration(name or getattr(function, "__name__", ""), function, settings=settings, **declared)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Defense:
    """A defense with its settings, and with what was prepared for it; a pytree whose leaves are the latter.

    Methods raise ValueError where what they need is not prepared, and for a defense of another kind than theirs.

    Attributes:
      declaration: what it is.
      text: as it was written, for results.
      settings: of the function, and until it is prepared of `prepare`; names and hashable values.
      given: what was prepared; None where it is still missing.
    """

    declaration: Declaration = dataclasses.field(metadata={"static": True})
    text: str = dataclasses.field(metadata={"static": True})
    settings: tuple[tuple[str, Any], ...] = dataclasses.field(default=(), metadata={"static": True})
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

        `inputs` are for training; none of the same shape are enough for a defense that only loads a model. `key` is a
        single one. The errors are those of `prepare`, and ValueError for inputs that are no images where it needs them.
        """
        self._check_shape(np.shape(inputs)[1:])
        if self.declaration.prepare is None or self.given is not None:
            return dataclasses.replace(self, given=self.given or ())
        given, settings = self.declaration.prepare(inputs, key, **_taken(self.declaration.prepare, self.settings))
        return self.with_given(*given, **settings)

    def with_given(self, *given: Any, **settings: Any) -> "Defense":
        """The defense with what the caller has prepared, such as patches or a model of their own.

        These are the arrays and pytrees that the function takes after inputs, or after inputs and keys, and settings in
        the place of those it has.
        """
        merged = _taken(self.declaration.function, self.settings) | settings
        return dataclasses.replace(self, given=given, settings=tuple(sorted(merged.items())))

    def transform(self, inputs: Float[Array, "B ..."], keys: Key[Array, " B"]) -> Array:
        """What the transform makes of inputs: one draw of each, where it is random."""
        if not self.is_transform:
            raise ValueError(f"{self.text} does not transform inputs")
        drawn = (keys,) if self.declaration.random else ()
        return self._transform(inputs, *drawn, *self._given)

    def deployed(self, logits_fn: LogitsFn) -> LogitsFn | Randomized:
        """The defended classifier; a `Randomized` where the defense is random."""
        return self._defended(logits_fn, self.declaration.function, self._transform)

    def naive(self, logits_fn: LogitsFn, key: Key[Array, ""]) -> LogitsFn:
        """The defended classifier as a defense-unaware attacker sees it: its own gradients, and one fixed draw."""
        defended = self.deployed(logits_fn)
        return classifier.single_draw(defended, key) if isinstance(defended, Randomized) else defended

    def aware(self, logits_fn: LogitsFn, key: Key[Array, ""], num_samples: int = 30) -> LogitsFn:
        """The defended classifier as a defense-aware attacker sees it: by the declared gradient, over several draws.

        Of a defense that averages already, it takes one draw.
        """
        declared = self.declaration
        wrap = declared.substitute or declared.function
        defended = self._defended(logits_fn, wrap, declared.differentiable(self._transform))
        if not isinstance(defended, Randomized):
            return defended
        return classifier.expectation(defended, key, num_samples=1 if declared.averages else num_samples)

    def check_fits(self, logits_fn: LogitsFn, input_shape: tuple[int, ...]) -> None:
        """Refuses a network, or a setting, that does not fit inputs of this shape `[...]`; runs nothing.

        Raises:
          ValueError: for inputs that are no images where it needs them; where the transform gives inputs that the
            network does not take; or as the defense itself does.
        """
        self._check_shape(input_shape)
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
        if self.is_detector:
            jax.eval_shape(lambda inputs: self.view(inputs, key), inputs)

    def _check_shape(self, input_shape: tuple[int, ...]) -> None:
        if self.declaration.images and len(input_shape) != 3:
            raise ValueError(f"{self.text} works on images [B, H, W, C], got inputs of the shape {tuple(input_shape)}")

    def view(self, inputs: Float[Array, "B ..."], key: Key[Array, ""]) -> Array | None:
        """Inputs as the defended network sees them, by one draw; None where it sees them as they are."""
        show = self.declaration.view
        if self.is_transform:
            inputs = self.transform(inputs, jax.random.split(key, len(inputs)))
        elif show is None:
            return None
        return inputs if show is None else show(inputs, **_taken(show, self.settings))

    def detector(self, logits_fn: LogitsFn, inputs: Any, labels: Any, *, key: Key[Array, ""], evaluate: Any) -> Any:
        """Fits the detector, or calibrates its threshold; the arguments and errors are those of its function."""
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
        return classifier.transform(self.declaration.function, **dict(self.settings))

    def _defended(self, logits_fn: LogitsFn, wrap: Callable[..., Any], seen: Transform) -> Any:
        """The classifier in the wrapper, or behind the transform, whichever of the two the defense is."""
        if self.declaration.kind == "wrapper":
            return wrap(logits_fn, *self._given, **_taken(wrap, self.settings))
        if not self.is_transform:
            return logits_fn
        behind = classifier.randomized if self.declaration.random else classifier.transformed
        return behind(logits_fn, seen, *self._given)


def with_settings(declaration: Declaration, text: str, settings: Mapping[str, Any], dataset: str = "") -> Defense:
    """The defense with these settings; those published for the data set, and then the declared defaults, stand in.

    Raises:
      ValueError: for a missing setting, or one that the declaration's `check` refuses.
    """
    published = declaration.published(dataset) if declaration.published is not None else {}
    defaults = {name: value for name, value in declaration.settings if value is not PREPARED}
    merged = defaults | published | dict(settings)
    for name, each in declaration.parameters.items():
        if each.default is inspect.Parameter.empty and name not in merged:
            reason = f"; nothing is published for {dataset or 'this data set'}" if declaration.published else ""
            raise ValueError(f"--defense={text} needs {name}, as in {name}=VALUE{reason}")
    if declaration.check is not None:
        declaration.check(**merged)
    return Defense(declaration, text, tuple(sorted(merged.items())))


def _taken(function: Callable[..., Any], settings: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    """Those of the settings that a function takes."""
    parameters = inspect.signature(function).parameters
    return {name: value for name, value in settings if name in parameters}


def _unchanged(logits_fn: LogitsFn) -> LogitsFn:
    return logits_fn


# The network as it is, in the place of a defense.
DEFENSES = (declare(_unchanged, name="none", kind="none"),)
