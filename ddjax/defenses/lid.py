"""A detector of adversarial images by the local intrinsic dimensionality of what each layer makes of them.

Around an image, the dimensionality of a layer is estimated from the distances to its nearest neighbors in a minibatch
of clean images; adversarial images tend to have a larger one. The features of an image are the estimates at the input
and at every layer, and a logistic regression decides.

Reference:
  Ma et al., Characterizing Adversarial Subspaces Using Local Intrinsic Dimensionality, 2018 (arXiv 1801.02613).
"""

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Key

from ddjax import layers
from ddjax.attacks import examples
from ddjax.classifier import LogitsFn

# The modules whose outputs count as layers.
LAYERS: tuple[type[nn.Module], ...] = (layers.Conv, nn.Conv, nn.Dense, nn.BatchNorm, layers.ReLU)
# Squared distances from a matrix product are right to about this share of the squared norms; in what is closer there is
# no telling.
_ROUNDING = 1e-6
# For points that are all at the same place.
_TINY = 1e-30
# Of the mean logarithm, which vanishes where all neighbors are equally far; the dimensionality is infinite then.
_LEAST_LOG = 1e-6
_FOLDS = 5


def local_intrinsic_dimensionality(
    queries: Float[Array, "N D"], references: Float[Array, "M D"], *, neighbors: int = 20
) -> Float[Array, " N"]:
    """The maximum-likelihood estimate -(1/k sum_i log(r_i / r_k))^-1 from the distances to k neighbors.

    The closest reference is left out before the k: usually it is the query itself, or the clean image of which the
    query was made, and it would give away which of the two the query is. Where it is neither, the estimate is higher by
    about a sixth for it, with 20 neighbors.

    Args:
      queries: points.
      references: points in whose midst the dimensionality is wanted, at least one more than neighbors.
      neighbors: k, at least 2.

    Returns:
      Positive and finite numbers, one for each query, which do not change with the scale of the points. Where the
      neighbors are equally far, as duplicates are, it is a million.

    Raises:
      ValueError: for too few neighbors or references.

    Reference:
      Ma et al., 2018 (arXiv 1801.02613), Algorithm 1.
    """
    if neighbors < 2 or len(references) <= neighbors:
        raise ValueError(
            f"the dimensionality needs at least 2 neighbors and one reference more than neighbors, "
            f"got {neighbors} neighbors and {len(references)} references"
        )
    # Distances stay, and lose less to rounding.
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
    logits_fn: LogitsFn, images: Float[Array, "B H W C"], *, after: tuple[type[nn.Module], ...] = LAYERS
) -> collections.OrderedDict[str, Float[Array, "B _"]]:
    """The images, and what each layer of a network makes of them.

    Args:
      logits_fn: a classifier that calls flax modules, such as `bind` makes; not compiled by itself, or its layers
        cannot be seen.
      images: a batch.
      after: the types of the modules that count as layers. The default has all that compute something, the last of
        which gives the logits; pooling, flattening and dropout are left out.

    Returns:
      By name, in the order of computation and the first of them `"input"`: one row of values for each image.

    Raises:
      ValueError: when the classifier calls no such module.
    """
    found = collections.OrderedDict(input=images)
    calls = collections.Counter(found)

    def record(
        run: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: nn.module.InterceptorContext
    ) -> Any:
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
    queries: Float[Array, "B H W C"],
    references: Float[Array, "M H W C"],
    *,
    neighbors: int = 20,
    after: tuple[type[nn.Module], ...] = LAYERS,
) -> Float[Array, "B L"]:
    """The dimensionality around each image at each layer.

    Args:
      logits_fn: see `activations`.
      queries: images to judge: clean, noisy or adversarial.
      references: a minibatch of clean images; the paper takes 100.
      neighbors: see `local_intrinsic_dimensionality`.
      after: see `activations`.

    Returns:
      One column for each of the `activations`.

    Raises:
      ValueError: as `local_intrinsic_dimensionality` and `activations` do.

    Reference:
      Ma et al., 2018 (arXiv 1801.02613), Algorithm 1.

    Departures from the paper:
      There, the references are the clean images of the very minibatch that is judged. A detector that is deployed has
      no clean originals: it takes any minibatch of clean training images, always the same one, and should be fitted on
      features from it, too.
    """
    found = activations(logits_fn, queries, after=after)
    near = activations(logits_fn, references, after=after)
    return jnp.stack(
        [local_intrinsic_dimensionality(found[name], near[name], neighbors=neighbors) for name in found], axis=1
    )


def noisy(
    images: Float[Array, "B H W C"], like: Float[Array, "B H W C"], keys: Key[Array, " B"]
) -> Float[Array, "B H W C"]:
    """Images with Gaussian noise as large, in L2, as what an attack changed; the detector must not fall for noise.

    Args:
      images: within [0, 1].
      like: the same images after the attack.
      keys: one for each image.

    Returns:
      Images within [0, 1]; where the box cuts the noise off, less of it is left.
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
      threshold: a float; an image counts as adversarial when its score exceeds it.
    """

    weights: Any
    bias: Any
    threshold: Any

    def log_odds(self, features: Float[Array, "B L"]) -> Float[Array, " B"]:
        """The logarithm of the odds that an image is adversarial: what an attack on the detector brings down."""
        return jnp.sum(features * self.weights[None, :], axis=1) + self.bias

    def scores(self, features: Float[Array, "B L"]) -> Float[Array, " B"]:
        """The probability that an image is adversarial, as the detector sees it."""
        return jax.nn.sigmoid(self.log_odds(features))


def fit_detector(
    clean: Float[Array | np.ndarray, "N L"],
    noisy: Float[Array | np.ndarray, "O L"],
    adversarial: Float[Array | np.ndarray, "P L"],
    *,
    seed: int = 0,
) -> Detector:
    """Fits the detector: adversarial features against those of clean and of noisy images.

    Keep aside what the detector is to be judged by, all features of an image together.

    Args:
      clean: `features` of images that the network classifies correctly; leave out the others.
      noisy: of the same images with noise.
      adversarial: of the same images after an attack that succeeded.
      seed: of the folds by which the strength of the regularization is chosen.

    Returns:
      The detector with a threshold of one half, where the paper's decides. For another one, replace it, with
      `squeezing.calibrated_threshold` of the scores of clean images for instance.

    Raises:
      ValueError: for features that are not finite, fewer than five of a kind, or different numbers of layers.

    Reference:
      Ma et al., 2018 (arXiv 1801.02613), Algorithm 1.

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
    # What LogisticRegressionCV does, with each fold's own scaling, and under names that releases agree on.
    search = GridSearchCV(
        make_pipeline(MinMaxScaler(), LogisticRegression(max_iter=1000)),
        {"logisticregression__C": np.logspace(-4, 4, 10)},
        cv=StratifiedKFold(_FOLDS, shuffle=True, random_state=seed),
    )
    scaler, regression = search.fit(values, is_adversarial).best_estimator_.named_steps.values()
    weights = regression.coef_[0]
    return Detector(
        weights=jnp.asarray(weights * scaler.scale_, jnp.float32),
        bias=jnp.float32(regression.intercept_[0] + weights @ scaler.min_),
        threshold=jnp.float32(0.5),
    )


def detector_scores(
    logits_fn: LogitsFn,
    detector: Detector,
    images: Float[Array, "B H W C"],
    references: Float[Array, "M H W C"],
    *,
    neighbors: int = 20,
    after: tuple[type[nn.Module], ...] = LAYERS,
) -> Float[Array, " B"]:
    """The detector as it is deployed, differentiable from the images on.

    Args:
      logits_fn: see `activations`.
      detector: fitted on features with the same settings.
      images: a batch.
      references: clean images.
      neighbors: see `features`.
      after: see `features`.

    Returns:
      Probabilities; an image counts as adversarial when its own exceeds the detector's threshold.

    Raises:
      ValueError: as `features` does.
    """
    return detector.scores(features(logits_fn, images, references, neighbors=neighbors, after=after))
