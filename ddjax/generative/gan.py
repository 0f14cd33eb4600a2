"""Wasserstein GAN with gradient penalty: a generator of small images and the critic that it learns from.

Reference:
  Gulrajani, Ahmed, Arjovsky, Dumoulin and Courville, Improved Training of Wasserstein GANs, 2017 (arXiv 1704.00028),
  algorithm 1, with the networks of Samangouei, Kabkab and Chellappa, Defense-GAN, 2018 (arXiv 1805.06605).

Departures from the papers:
  Neither network has batch normalization, as in the code of Defense-GAN: the penalty is of each image by itself.
  In the place of convolutions of 5 x 5 with stride 2 and their transposed stand those of 3 x 3 with stride 1 between
  rearrangements of 2 x 2 pixels to channels and back, which see 6 x 6 pixels. XLA:CPU runs strided and transposed
  convolutions in loops as naive code.
  The norm of the penalty goes over all values of an image. The public code takes it over the rows only, and so
  penalizes each column by itself.
  Codes are standard normal wherever they are drawn, in training as in reconstruction; the code of Defense-GAN starts
  reconstructions much closer to zero than what the generator was trained on.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jaxtyping import Array, Float, Key, Num

from ddjax import checks, layers
from ddjax.binding import bind
from ddjax.generative.resolution import depth_to_space, space_to_depth
from ddjax.rounding import to_float
from ddjax.state import TrainState
from ddjax.training.step import Scalar, epoch_rows

_SLOPE = 0.2
_HE, _GLOROT = nn.initializers.he_normal(), nn.initializers.glorot_uniform()
# Within the root of the penalty, whose derivative at zero is infinite.
_TINY = 1e-12
# What a step's key is folded with, after the numbers of the critic's steps.
_FOR_GENERATOR = 0x6E4


class Generator(nn.Module):
    """From codes to images: a dense layer and three convolutions that double the height and width.

    Attributes:
      image_shape: (H, W, C).
      width: the features of the last hidden layer; those before it have two and four times as many.
      latent: the length of a code.
      lowering: see `ddjax.layers`.
    """

    image_shape: tuple[int, int, int]
    width: int = 64
    latent: int = 128
    lowering: str = "auto"

    @nn.compact
    def __call__(self, codes: Float[Array, "B L"]) -> Float[Array, "B H W C"]:
        """Generates a batch of images in [0, 1]."""
        height, width, channels = self.image_shape
        # Rounded up, and cut off after each doubling.
        sizes = [(-(-height // part), -(-width // part)) for part in (8, 4, 2, 1)]
        first = (*sizes[0], 4 * self.width)
        features = nn.Dense(first[0] * first[1] * first[2], kernel_init=_HE, name="dense")(codes)
        features = features.reshape(codes.shape[0], *first)
        for stage, filters in enumerate((2 * self.width, self.width, channels)):
            # The last layer is not followed by a rectifier.
            init = _HE if stage < 2 else _GLOROT
            name, (rows, columns) = f"up_{stage}", sizes[stage + 1]
            conv = layers.Conv(4 * filters, padding="SAME", kernel_init=init, lowering=self.lowering, name=name)
            features = depth_to_space(conv(nn.relu(features)))[:, :rows, :columns]
        return nn.sigmoid(features)


class Critic(nn.Module):
    """From images to scores, higher for those that look real: the generator's mirror image.

    Attributes:
      width: the features of the first layer; those after it have two and four times as many.
      lowering: see `ddjax.layers`.
    """

    width: int = 64
    lowering: str = "auto"

    @nn.compact
    def __call__(self, images: Float[Array, "B H W C"]) -> Float[Array, " B"]:
        """Scores a batch of images."""
        features = images
        for stage in range(3):
            odd = [(0, side % 2) for side in features.shape[1:3]]
            features = space_to_depth(jnp.pad(features, ((0, 0), *odd, (0, 0))))
            filters = 2**stage * self.width
            conv = layers.Conv(filters, padding="SAME", kernel_init=_HE, lowering=self.lowering, name=f"down_{stage}")
            features = nn.leaky_relu(conv(features), _SLOPE)
        return nn.Dense(1, name="dense")(features.reshape(images.shape[0], -1))[:, 0]


@dataclasses.dataclass(frozen=True)
class Gan:
    """The two networks, from codes to images and from images to scores; compared by value."""

    generator: Generator
    critic: Critic

    def init(self, key: Key[Array, ""], images: Float[Array, "B H W C"]) -> dict[str, Any]:
        """The parameters of both for images of this shape: `{"params": {"generator": ..., "critic": ...}}`."""
        for_generator, for_critic, _ = jax.random.split(key, 3)
        generator = self.generator.init(for_generator, jnp.zeros((1, self.generator.latent)))["params"]
        return {"params": {"generator": generator, "critic": self.critic.init(for_critic, images)["params"]}}


@functools.cache
def _adam(learning_rate: float) -> optax.GradientTransformation:
    """The paper's optimizer; one object for equal rates, so that states of equal settings share one program."""
    return optax.adam(learning_rate, b1=0.5, b2=0.9)


def create_state(
    image_shape: tuple[int, int, int],
    key: Key[Array, ""],
    *,
    width: int = 64,
    latent: int = 128,
    learning_rate: float = 1e-4,
    lowering: str = "auto",
) -> TrainState:
    """The state before the first step; `params` and `opt_state` have entries "generator" and "critic".

    Both networks have the width, 64 in the paper, and Adam with the learning rate. The key makes the parameters and all
    later randomness. A width, length or rate that is not positive raises ValueError.
    """
    for name, value in (("width", width), ("latent", latent), *zip("HWC", image_shape, strict=True)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    checks.check_number("learning_rate", learning_rate, above=0.0)
    model = Gan(Generator(image_shape, width, latent, lowering), Critic(width, lowering))
    params = model.init(key, jnp.zeros((1, *image_shape)))["params"]
    optimizer = _adam(learning_rate)
    return TrainState(
        params=params,
        opt_state={name: optimizer.init(part) for name, part in params.items()},
        # As it comes back from a step and from a checkpoint; a Python integer would be a program of its own.
        step=jnp.zeros((), jnp.int32),
        key=jax.random.split(key, 3)[2],
        network=model,
        optimizer=optimizer,
    )


def draw_codes(key: Key[Array, ""], count: int, latent: int) -> Float[Array, "B L"]:
    """Draws codes of this length from the prior, the standard normal distribution."""
    return jax.random.normal(key, (count, latent))


def generator_fn(model: Gan, params: Any) -> jax.tree_util.Partial:
    """The generator as a function from codes `[B, L]` to images `[B, H, W, C]` in [0, 1].

    The parameters are those of both networks, as in the state. The function is a pytree whose leaves are those of the
    generator, as `ddjax.bind` makes it of a classifier.
    """
    return bind(model.generator, {"params": params["generator"]})


def gradient_penalty(critic: nn.Module, params: Any, images: Float[Array, "B H W C"]) -> Float[Array, ""]:
    """The mean squared difference from 1 of the norm of the critic's gradient with respect to an image.

    It is taken at images between real and generated ones. This is equation 3 of the paper, without the factor.
    """
    gradient = jax.grad(lambda inputs: jnp.sum(_scores(critic, params, inputs)))(images)
    norms = jnp.sqrt(jnp.sum(gradient**2, axis=(1, 2, 3)) + _TINY)
    return jnp.mean((norms - 1) ** 2)


def _scores(critic: nn.Module, params: Any, images: Array) -> Array:
    return critic.apply({"params": params}, images)  # pyright: ignore[reportReturnType]


def _update(state: TrainState, name: str, gradient: Any) -> TrainState:
    """Steps one of the networks."""
    updates, opt_state = state.optimizer.update(gradient, state.opt_state[name], state.params[name])
    params = optax.apply_updates(state.params[name], updates)
    return state.replace(params=state.params | {name: params}, opt_state=state.opt_state | {name: opt_state})


def train_step(
    state: TrainState, images: Num[Array, "S B H W C"], *, penalty: Scalar = 10.0
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """Takes S steps of the critic, each on B images and as many generated ones, and then one of the generator.

    Args:
      state: of both networks.
      images: uint8 or floats in [0, 1], other ones for each step of the critic.
      penalty: the factor of the gradient penalty, at least 0.

    Returns:
      The state after the step, and by name: "wasserstein", the critic's estimate of the distance between the real and
      the generated distribution, and "penalty", without its factor, both means over the steps of the critic; and
      "generator_loss", minus the mean score of generated images.

    Raises:
      ValueError: for a negative penalty, or images without the axis of the critic's steps.
    """
    checks.check_number("penalty", penalty, least=0.0)
    if images.ndim != 5 or 0 in images.shape[:2]:
        raise ValueError(f"a step needs images for each step of the critic, [S, B, H, W, C], got {images.shape}")
    count, (generator, critic) = images.shape[1], (state.network.generator, state.network.critic)
    generate = lambda params, key: generator.apply({"params": params}, draw_codes(key, count, generator.latent))
    step_key = jax.random.fold_in(state.key, state.step)

    def step_critic(state: TrainState, given: tuple[Array, Array]) -> tuple[TrainState, dict[str, Array]]:
        real, (of_codes, of_places) = to_float(given[0]), jax.random.split(jax.random.fold_in(step_key, given[1]))
        generated = generate(state.params["generator"], of_codes)
        place = jax.random.uniform(of_places, (count, 1, 1, 1))
        between = place * real + (1 - place) * generated

        def loss_fn(params: Any) -> tuple[Array, dict[str, Array]]:
            scores = _scores(critic, params, jnp.concatenate([real, generated]))
            wasserstein = jnp.mean(scores[:count]) - jnp.mean(scores[count:])
            missed = gradient_penalty(critic, params, between)
            return penalty * missed - wasserstein, {"wasserstein": wasserstein, "penalty": missed}

        gradient, metrics = jax.grad(loss_fn, has_aux=True)(state.params["critic"])
        return _update(state, "critic", gradient), metrics

    state, metrics = lax.scan(step_critic, state, (images, jnp.arange(images.shape[0])))
    of_codes = jax.random.fold_in(step_key, images.shape[0] + _FOR_GENERATOR)
    loss_fn = lambda params: -jnp.mean(_scores(critic, state.params["critic"], generate(params, of_codes)))
    loss, gradient = jax.value_and_grad(loss_fn)(state.params["generator"])
    state = _update(state, "generator", gradient)
    metrics = jax.tree.map(jnp.mean, metrics) | {"generator_loss": loss}
    return state.replace(step=state.step + 1), metrics


def train_epoch(
    state: TrainState,
    images: Num[Array, "N H W C"],
    *,
    batch_size: int = 50,
    critic_steps: int = 5,
    penalty: Scalar = 10.0,
) -> tuple[TrainState, dict[str, Float[Array, ""]]]:
    """Trains for one epoch, in which the critic sees each image once: a scan over a random permutation of the data.

    The images, uint8 or floats in [0, 1], are on the device. A batch has the images of a step of the critic. There are
    `critic_steps` of them, at least 1, for each step of the generator. A rest of images that is smaller waits for
    another epoch's permutation; without enough images for one step it raises ValueError.

    Returns:
      The state after the epoch, and the means of the metrics of `train_step`.
    """

    def step(state: TrainState, rows: Array) -> tuple[TrainState, dict[str, Array]]:
        batches = images[rows].reshape(critic_steps, batch_size, *images.shape[1:])
        return train_step(state, batches, penalty=penalty)

    if critic_steps < 1:
        raise ValueError(f"critic_steps must be at least 1, got {critic_steps}")
    rows = epoch_rows(state, images.shape[0], batch_size * critic_steps)
    state, metrics = lax.scan(step, state, rows)
    return state, jax.tree.map(jnp.mean, metrics)
