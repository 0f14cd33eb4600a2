"""A detector of adversarial images by the local intrinsic dimensionality of each layer's activations.

The dimensionality around an image is estimated, at each layer, from the distances to its nearest neighbors in a
minibatch of clean images; it tends to be larger for adversarial images. The features of an image are the estimates at
the input and at every layer, and a logistic regression decides.

In all functions here, `logits_fn` is a classifier that calls flax modules, such as `bind` makes; not compiled by
itself, which would hide its layers. `references` are a minibatch of clean images, 100 in the paper. `after` are the
types of the modules that count as layers.

Reference:
  Ma et al., Characterizing Adversarial Subspaces Using Local Intrinsic Dimensionality, 2018 (arXiv 1801.02613),
  Algorithm 1.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Key

from ddjax import layers
from ddjax.attacks import carlini_wagner_l2, examples
from ddjax.checks import check_number
from ddjax.classifier import LogitsFn, as_pytree
from ddjax.defenses.declaration import declare
from ddjax.defenses.detector import Detector as FittedDetector
from ddjax.defenses.detector import calibrated_threshold, call
from ddjax.defenses.images import Inputs, Keys

# The modules whose outputs count as layers; pooling, flattening and dropout are left out.
LAYERS: tuple[type[nn.Module], ...] = (layers.Conv, nn.Conv, nn.Dense, nn.BatchNorm, layers.ReLU)
# The attack that the detector is fitted on: Opt of the paper, Carlini and Wagner's L2 attack, shortened.
FITTING_ATTACK = {"learning_rate": 0.01, "initial_const": 1.0, "search_steps": 3, "num_steps": 100}
# Squared distances from a matrix product are right to about this share of the squared norms; smaller ones are rounding.
_ROUNDING = 1e-6
# The least squared distance, for points that coincide.
_TINY = 1e-30
# The least mean logarithm: it vanishes where all neighbors are equally far, and the dimensionality is infinite then.
_LEAST_LOG = 1e-6
_FOLDS = 5
# Shares of the clean images: what the detector compares with, and what it is fitted on; the rest is for its threshold.
_REFERENCES, _FITTED = 1 / 8, 3 / 8


def local_intrinsic_dimensionality(
    queries: Float[Array, "N D"], references: Float[Array, "M D"], *, neighbors: int = 20
) -> Float[Array, " N"]:
    """The maximum-likelihood estimate -(1/k sum_i log(r_i / r_k))^-1 from the distances to k neighbors.

    The closest reference is left out: usually it is the query itself, or the clean image of which the query was made,
    and would reveal which of the two the query is. Where it is neither, leaving it out raises the estimate by about a
    sixth, with 20 neighbors.

    There must be at least 2 neighbors, and one reference more than neighbors. The estimates are positive and finite,
    and do not change with the scale of the points. One is a million where the neighbors are equally far, as duplicates
    are.
    """
    if neighbors < 2 or len(references) <= neighbors:
        raise ValueError(
            f"the dimensionality needs at least 2 neighbors and one reference more than neighbors, "
            f"got {neighbors} neighbors and {len(references)} references"
        )
    # Centering keeps distances, which then lose less to rounding.
    center = jnp.mean(references, axis=0, keepdims=True)
    queries, references = queries - center, references - center
    sizes = jnp.sum(queries**2, axis=1)[:, None] + jnp.sum(references**2, axis=1)[None, :]
    squared = sizes - 2 * jnp.matmul(queries, references.T, precision=lax.Precision.HIGHEST)
    squared = jnp.maximum(squared, _ROUNDING * sizes + _TINY)
    nearest = -lax.top_k(-squared, neighbors + 1)[0][:, 1:]
    # Of squared distances, hence the half.
    logs = (jnp.log(nearest) - jnp.log(nearest[:, -1:])) / 2
    return 1 / jnp.maximum(-jnp.mean(logs, axis=1), _LEAST_LOG)


def activations(
    logits_fn: LogitsFn, images: Inputs, *, after: tuple[type[nn.Module], ...] = LAYERS
) -> collections.OrderedDict[str, Float[Array, "B _"]]:
    """The images, and each layer's activations: one row of values for each image.

    They are in the order of computation, by name; the first is `"input"`. A classifier that calls no such module raises
    ValueError.
    """
    found = collections.OrderedDict(input=images)
    calls = collections.Counter(found)

    def record(run: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        outputs = run(*args, **kwargs)
        if context.method_name == "__call__" and isinstance(context.module, after):
            name = "/".join(context.module.path) or type(context.module).__name__
            calls[name] += 1
            found[name if calls[name] == 1 else f"{name}#{calls[name]}"] = outputs
        return outputs

    with nn.intercept_methods(record):
        logits_fn(images)
    if len(found) == 1:
        names = ", ".join(f"{kind.__module__}.{kind.__qualname__}" for kind in after)
        raise ValueError(f"no layers to see: the classifier calls no module of the types {names or 'given, of none'}")
    flat = lambda values: values.reshape(values.shape[0], -1).astype(jnp.float32)
    return collections.OrderedDict((name, flat(values)) for name, values in found.items())


def features(
    logits_fn: LogitsFn,
    queries: Inputs,
    references: Float[Array, "M ..."],
    *,
    neighbors: int = 20,
    after: tuple[type[nn.Module], ...] = LAYERS,
) -> Float[Array, "B L"]:
    """The dimensionality around each of the queries: clean, noisy or adversarial images.

    There is one column for each of the `activations`.

    Departures from the paper:
      There, the references are the clean images of the minibatch that is judged. A deployed detector has no clean
      originals: it takes one fixed minibatch of clean images, and should be fitted on features from it, too.
    """
    found = activations(logits_fn, queries, after=after)
    near = activations(logits_fn, references, after=after)
    columns = [local_intrinsic_dimensionality(found[name], near[name], neighbors=neighbors) for name in found]
    return jnp.stack(columns, axis=1)


def noisy(images: Inputs, like: Inputs, keys: Keys) -> Inputs:
    """Images with Gaussian noise of the same L2 norm as an attack's change; the detector must not flag noise.

    Both are within [0, 1]; `like` are the images after the attack. Clipping to [0, 1] shortens the noise.
    """
    noise = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:], images.dtype))(keys)
    scale = examples.norm(like - images) / examples.norm(noise)
    return jnp.clip(images + examples.per_example(scale, images) * noise, 0.0, 1.0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Detector:
    """A logistic regression on features as they come; a pytree of arrays.

    Attributes:
      weights: of the features, `[L]` floats.
      bias: a float.
    """

    weights: Any
    bias: Any

    def log_odds(self, features: Float[Array, "B L"]) -> Float[Array, " B"]:
        """The logarithm of the odds that an image is adversarial; an attack on the detector minimizes it."""
        return jnp.sum(features * self.weights[None, :], axis=1) + self.bias

    def scores(self, features: Float[Array, "B L"]) -> Float[Array, " B"]:
        """The detector's probability that an image is adversarial."""
        return jax.nn.sigmoid(self.log_odds(features))


def fit_detector(
    clean: Float[Array | np.ndarray, "N L"],
    noisy: Float[Array | np.ndarray, "O L"],
    adversarial: Float[Array | np.ndarray, "P L"],
    *,
    seed: int = 0,
) -> Detector:
    """Fits the detector: adversarial `features` against those of clean and of noisy images.

    They are of images that the network classifies correctly: as they are, with noise, and after an attack that
    succeeded. Keep aside what the detector is to be judged by, all features of an image together. The seed is that of
    the folds by which the strength of the regularization is chosen. The paper's detector decides at a score of 0.5.

    Raises:
      ValueError: for features that are not finite, fewer than five of a kind, or different numbers of layers.

    Departures from the authors' code:
      Features are scaled to [0, 1] by the smallest and largest value of the fitted ones alone, there also of those that
      the detector is tested on.
    """
    kinds = [np.asarray(kind, np.float64) for kind in (clean, noisy, adversarial)]
    if len({kind.shape[1] for kind in kinds}) > 1 or min(map(len, kinds)) < _FOLDS:
        raise ValueError(
            f"a detector needs {_FOLDS} or more features of each kind from the same layers, "
            f"got {', '.join(str(kind.shape) for kind in kinds)}"
        )
    if not all(np.isfinite(kind).all() for kind in kinds):
        raise ValueError("a detector needs features that are finite")
    # Lazily: it takes a second, and attacks on a detector do not need it.
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import MinMaxScaler

    values = np.concatenate(kinds)
    is_adversarial = np.repeat([False, False, True], [len(kind) for kind in kinds])
    # As LogisticRegressionCV, with each fold's own scaling.
    search = GridSearchCV(
        make_pipeline(MinMaxScaler(), LogisticRegression(max_iter=1000)),
        {"logisticregression__C": np.logspace(-4, 4, 10)},
        cv=StratifiedKFold(_FOLDS, shuffle=True, random_state=seed),
    )
    scaler, regression = search.fit(values, is_adversarial).best_estimator_.named_steps.values()
    weights = regression.coef_[0]
    bias = regression.intercept_[0] + weights @ scaler.min_
    return Detector(jnp.asarray(weights * scaler.scale_, jnp.float32), jnp.float32(bias))


def detector_scores(
    logits_fn: LogitsFn, detector: Detector, images: Inputs, references: Float[Array, "M ..."], **settings: Any
) -> Float[Array, " B"]:
    """The detector's probabilities that images are adversarial, differentiable from the images on.

    The detector must be fitted on `features` with the same settings.
    """
    return detector.scores(features(logits_fn, images, references, **settings))


def fit(
    logits_fn: LogitsFn,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    key: Key[Array, ""],
    evaluate: Callable[..., Any],
    false_positive_rate: float = 0.05,
) -> FittedDetector:
    """Fits the detector on an attack's images, and calibrates its threshold for a false-positive rate in [0, 1).

    The network was not trained on the images. It takes an eighth of them, within [0, 1], to compare with, three eighths
    to be fitted on, and one half for the threshold; the rate is that of those which the network classifies correctly.
    The other arguments are those of all detectors, see `Declaration`.

    Raises:
      ValueError: for a bad rate; too few images, or too few on which the attack succeeds (see `fit_detector`).
    """
    check_number("false_positive_rate", false_positive_rate, least=0.0, below=1.0)
    logits_fn = as_pytree(logits_fn)
    decide = functools.partial(_decisions, evaluate, logits_fn)
    first, second = (round(len(images) * share) for share in (_REFERENCES, _REFERENCES + _FITTED))
    references, tried, rest = np.split(images, [first, second])
    _, true, true_rest = np.split(labels, [first, second])
    of_attack, of_noise = (np.asarray(jax.random.key_data(half)) for half in jax.random.split(key, (2, len(tried))))
    attacked = evaluate(_attacked, logits_fn, tried, true, of_attack)
    correct, decisions = decide(tried) == true, decide(attacked)
    fooled = correct & (decisions != true) & (decisions >= 0)
    if min(correct.sum(), fooled.sum()) < _FOLDS:
        raise ValueError(
            f"a detector needs {_FOLDS} or more images that the network classifies correctly, and as many that the "
            f"attack fools, got {correct.sum()} and {fooled.sum()}"
        )
    disturbed = evaluate(_noisy, (), tried[fooled], attacked[fooled], of_noise[fooled])
    seen = functools.partial(evaluate, call, jax.tree_util.Partial(features, logits_fn, references=references))
    seed = int(jax.random.randint(key, (), 0, 2**31 - 1, jnp.int32))
    detector = fit_detector(seen(tried[correct]), seen(disturbed), seen(attacked[fooled]), seed=seed)
    score_fn = jax.tree_util.Partial(detector_scores, logits_fn, detector, references=references)
    scores = evaluate(call, score_fn, rest[decide(rest) == true_rest])
    return FittedDetector(score_fn, calibrated_threshold(scores, false_positive_rate), evaluate)


def _decisions(evaluate: Callable[..., Any], logits_fn: LogitsFn, images: np.ndarray) -> np.ndarray:
    """The classes; -1 where a logit is NaN."""
    logits = evaluate(call, logits_fn, images)
    return np.where(np.isnan(logits).any(axis=1), -1, logits.argmax(axis=1))


def _attacked(logits_fn: Any, images: Array, labels: Array, key_data: Array) -> Array:
    key = jax.random.wrap_key_data(key_data)
    return carlini_wagner_l2(logits_fn, images, labels, key=key, **FITTING_ATTACK).inputs


def _noisy(_: Any, images: Array, like: Array, key_data: Array) -> Array:
    return noisy(images, like, jax.random.wrap_key_data(key_data))


DEFENSES = (declare(fit, name="lid", kind="detector"),)
