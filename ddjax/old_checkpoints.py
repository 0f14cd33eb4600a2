"""Networks of checkpoints that were written before checkpoints named import paths: they named recipes."""

from collections.abc import Mapping
from typing import Any

# The arguments of the generative models, by the name of their recipe.
_PIXELCNN = {
    "pixelcnn_cifar10": {"width": 160, "blocks": 5, "levels": 3, "mixtures": 10, "dropout": 0.5},
    "pixelcnn_mnist": {"width": 16, "blocks": 1, "levels": 2, "mixtures": 5, "dropout": 0.0},
    "pixelcnn_fashion_mnist": {"width": 40, "blocks": 5, "levels": 3, "mixtures": 10, "dropout": 0.5},
}
_GAN_WIDTH = {"gan_mnist": 24, "gan_mnist_full": 64}


def described_by_recipe(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The import path and the arguments of a network that is named by its recipe, for `checkpoints.build`.

    Args:
      fields: of the stored description; `network` is a name of `ddjax.models` or the kind of a generative model.
    """
    recipe, name, shape = fields["recipe"], fields["network"], list(fields["image_shape"])
    if recipe in _PIXELCNN:
        return _of("generative.pixelcnn:PixelCNN", channels=shape[2], **_PIXELCNN[recipe])
    if recipe in _GAN_WIDTH:
        width = _GAN_WIDTH[recipe]
        generator = _of("generative.gan:Generator", image_shape=shape, width=width, latent=128)
        return _of("generative.gan:Gan", generator=generator, critic=_of("generative.gan:Critic", width=width))
    network = _of("models:build", name=name, num_classes=fields["num_classes"])
    if not recipe.startswith("thermometer"):
        return network
    return _of("defenses.thermometer:Encoded", network=network, levels=16, channels=shape[2])


def _of(path: str, **arguments: Any) -> dict[str, Any]:
    return {"network": f"ddjax.{path}", "arguments": arguments}
