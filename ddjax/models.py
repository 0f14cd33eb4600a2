"""The papers' networks. Images `[B, H, W, C]` in `[0, 1]` go in, logits `[B, K]` come out; none contains a softmax.

Only `mlp` takes inputs of any other shape, too.

A network is a `ConvNet` or a `ResNet` with the paper's numbers, made by name, as in
`build("papernot_mnist", num_classes=10)`.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ddjax import layers
from ddjax.registry import Registry

_INIT = nn.initializers.glorot_uniform()
_HE = nn.initializers.he_normal()
# Of photographs in [0, 1], for each channel; what torchvision's networks expect.
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_DEVIATION = (0.229, 0.224, 0.225)


class ConvNet(nn.Module):
    """Stages of ReLU convolutions, each stage ending in 2 x 2 max pooling, then ReLU dense layers, then logits.

    Attributes:
      num_classes: the number of logits, K.
      stages: for each stage, the widths of its 3 x 3 convolutions. Without stages, inputs may have any shape.
      dense: the widths of the hidden dense layers.
      dropout: the dropout rate after each of them.
      feature_dropout: the dropout rate before the first of them.
      center: subtracted from the inputs, a number or one for each place along the last axis; 0.5 centers pixels as the
        papers do.
      scale: what they are divided by then.
      batch_norm: whether batches are normalized between each convolution and its ReLU. The running mean and variance
        are the collection `batch_stats`, which a training step has to carry along.
      padding: of the convolutions, `"VALID"` or `"SAME"`.
      lowering: how convolution and pooling reach the backend; see `ddjax.layers`.
    """

    num_classes: int
    stages: tuple[tuple[int, ...], ...]
    dense: tuple[int, ...]
    dropout: tuple[float, ...]
    feature_dropout: float = 0.0
    center: float | tuple[float, ...] = 0.5
    scale: float | tuple[float, ...] = 1.0
    batch_norm: bool = False
    padding: str = "VALID"
    lowering: str = "auto"

    @nn.compact
    def __call__(self, images: Float[Array, "B ..."], train: bool = False) -> Float[Array, "B K"]:
        """Computes the logits; `train` takes the batch's statistics, and drops out, which needs a `dropout` key."""
        if self.stages and images.ndim != 4:
            raise ValueError(f"convolutions need images [B, H, W, C], got inputs of the shape {images.shape}")
        hidden = (images - _for_each_channel(self.center, images)) / _for_each_channel(self.scale, images)
        for widths in self.stages:
            for width in widths:
                hidden = layers.Conv(width, padding=self.padding, kernel_init=_INIT, lowering=self.lowering)(hidden)
                if self.batch_norm:
                    # Momentum and epsilon as in PyTorch.
                    hidden = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5)(hidden)
                hidden = layers.ReLU()(hidden)
            hidden = layers.max_pool(hidden, lowering=self.lowering)
        hidden = hidden.reshape(hidden.shape[0], -1)
        if hidden.shape[1] == 0:
            raise ValueError(f"images of shape {images.shape[1:]} are too small for the stages {self.stages}")
        if self.feature_dropout:
            hidden = nn.Dropout(self.feature_dropout)(hidden, deterministic=not train)
        for width, rate in zip(self.dense, self.dropout, strict=True):
            hidden = layers.ReLU()(nn.Dense(width, kernel_init=_INIT)(hidden))
            hidden = nn.Dropout(rate)(hidden, deterministic=not train)
        return nn.Dense(self.num_classes, kernel_init=_INIT)(hidden).astype(jnp.float32)


class ResNet(nn.Module):
    """A residual network of pre-activation units in three stages; images are standardized one by one.

    A unit is twice batch normalization, rectifier and 3 x 3 convolution, beside a shortcut. The first unit of the
    second and of the third stage halves height and width; there, and where the width grows, the shortcut is an average
    pooling and zeros for the channels that are new. The first unit of all normalizes before its shortcut branches off.
    At the end come normalization, rectifier, the mean over the image, and logits.

    Attributes:
      num_classes: the number of logits, K.
      units: of each stage.
      stem: the channels of the first convolution.
      widths: the channels of each stage.
      negative_slope: of the rectifiers.
      lowering: how convolutions of stride 1 reach the backend; see `ddjax.layers`.
    """

    num_classes: int
    units: int
    stem: int = 16
    widths: tuple[int, ...] = (16, 32, 64)
    negative_slope: float = 0.0
    lowering: str = "auto"

    @nn.compact
    def __call__(self, images: Float[Array, "B ..."], train: bool = False) -> Float[Array, "B K"]:
        """Computes the logits; `train` takes the batch's statistics."""
        if images.ndim != 4:
            raise ValueError(f"convolutions need images [B, H, W, C], got inputs of the shape {images.shape}")

        def activate(hidden: Array) -> Array:
            hidden = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-3)(hidden)
            return layers.ReLU(self.negative_slope)(hidden)

        def convolve(hidden: Array, width: int, stride: int = 1) -> Array:
            if stride == 1:
                return layers.Conv(width, padding="SAME", kernel_init=_HE, lowering=self.lowering)(hidden)
            return nn.Conv(width, (3, 3), stride, kernel_init=_HE)(hidden)

        hidden = convolve(_standardized(images), self.stem)
        for stage, width in enumerate(self.widths):
            for unit in range(self.units):
                stride = 2 if stage and not unit else 1
                active = activate(hidden)
                shortcut = active if not stage and not unit else hidden
                if stride > 1:
                    # `nn.avg_pool` divides by an integer, which strict promotion refuses.
                    total = nn.pool(shortcut, 0.0, lax.add, (stride, stride), (stride, stride), "SAME")
                    shortcut = total / float(stride * stride)
                new = width - shortcut.shape[-1]
                shortcut = jnp.pad(shortcut, ((0, 0), (0, 0), (0, 0), (new // 2, new - new // 2)))
                hidden = shortcut + convolve(activate(convolve(active, width, stride)), width)
        hidden = jnp.mean(activate(hidden), axis=(1, 2))
        return nn.Dense(self.num_classes, kernel_init=_INIT)(hidden).astype(jnp.float32)


def _standardized(images: Array) -> Array:
    """Each image with mean 0 and deviation 1; one that hardly varies is divided by no less than one over sqrt(D)."""
    axes = (1, 2, 3)
    mean, variance = jnp.mean(images, axes, keepdims=True), jnp.var(images, axes, keepdims=True)
    # A square root at zero has no gradient.
    return (images - mean) / jnp.sqrt(jnp.maximum(variance, 1 / math.prod(images.shape[1:])))


def _for_each_channel(values: float | tuple[float, ...], images: Array) -> Array:
    return jnp.asarray(values, images.dtype).reshape(*(1,) * (images.ndim - 1), -1)


@dataclasses.dataclass(frozen=True)
class Network:
    """The declaration of a network.

    Attributes:
      name: what `build` and recipes take.
      make: from the number of classes, and perhaps further keyword arguments, to the flax module.
    """

    name: str
    make: Callable[..., nn.Module]


def _network(name: str, module: type[nn.Module], **settings: Any) -> Network:
    return Network(name, functools.partial(module, **settings))


_MNIST: dict[str, Any] = {"stages": ((32, 32), (64, 64)), "dense": (200, 200)}
NETWORKS = (
    # Papernot et al. 2016 (arXiv 1511.04508), Table I. Padding and pooling as in Carlini and Wagner's code, which says
    # what the table does not; dropout on both dense layers, as the text says.
    _network("papernot_mnist", ConvNet, **_MNIST, dropout=(0.5, 0.5)),
    _network("papernot_cifar10", ConvNet, stages=((64, 64), (128, 128)), dense=(256, 256), dropout=(0.5, 0.5)),
    # Carlini and Wagner's training code drops out after the first dense layer only.
    _network("carlini_mnist", ConvNet, **_MNIST, dropout=(0.5, 0.0)),
    # The small MNIST network of a public Keras re-implementation of defensive distillation; pixels stay in [0, 1].
    _network("small_mnist", ConvNet, stages=((32,), (64,)), dense=(128,), dropout=(0.0,), center=0.0),
    # For photographs, of a public project on the robustness of classifiers ("VGG10_lighter"): ten convolutions, each
    # with batch normalization, and three dense layers.
    _network(
        "vgg10",
        ConvNet,
        stages=((32, 32), (64, 64), (128, 128), (128, 128), (128, 128)),
        dense=(4096, 4096),
        dropout=(0.5, 0.5),
        center=_IMAGENET_MEAN,
        scale=_IMAGENET_DEVIATION,
        batch_norm=True,
        padding="SAME",
    ),
    # The networks of the detector of local intrinsic dimensionality (Ma et al. 2018, arXiv 1801.02613), as its public
    # code has them.
    _network("lid_mnist", ConvNet, stages=((64, 64),), dense=(128,), dropout=(0.5,), feature_dropout=0.5),
    _network(
        "lid_cifar10",
        ConvNet,
        stages=((32, 32), (64, 64), (128, 128)),
        dense=(1024, 512),
        dropout=(0.5, 0.5),
        feature_dropout=0.5,
        padding="SAME",
    ),
    # For color images of 32 x 32 on two CPU cores.
    _network("small_cifar10", ConvNet, stages=((16, 16), (32, 32)), dense=(128,), dropout=(0.25,), padding="SAME"),
    # For 8 x 8 digits: one stage, so that some resolution is left to attack.
    _network("digits", ConvNet, stages=((16, 32),), dense=(64,), dropout=(0.0,), padding="SAME"),
    # For tables of features.
    _network("mlp", ConvNet, stages=(), dense=(64, 64), dropout=(0.0, 0.0)),
    # Madry et al. 2018 (arXiv 1706.06083), which names it w32-10: 3 x 5 units of two convolutions, and the stem.
    _network("madry_cifar10", ResNet, units=5, widths=(160, 320, 640), negative_slope=0.1),
    # The ResNet-20 of stochastic activation pruning (Dhillon et al. 2018, arXiv 1803.01442).
    _network("resnet20", ResNet, units=3),
)
REGISTRY: Registry[Network] = Registry("network", "NETWORKS", NETWORKS)


@functools.cache
def build(name: str, num_classes: int, **settings: Any) -> Any:
    """Makes a network by name; the same object for the same arguments, since programs are compiled for it.

    Args:
      name: of a registered network, or `package.module:name` of one that a module declares in `NETWORKS`.
      num_classes: the number of logits, at least 2.
      **settings: further arguments of the network, such as `lowering` of those in this file.

    Returns:
      The flax module; `module.init(key, images)` makes its variables.

    Raises:
      ValueError: for an unknown name or fewer than two classes.
    """
    declared = REGISTRY.find(name)
    if num_classes < 2:
        raise ValueError(f"a classifier needs at least two classes, got {num_classes}")
    return declared.make(num_classes=num_classes, **settings)
