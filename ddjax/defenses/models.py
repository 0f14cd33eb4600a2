"""The trained generative models that defenses take, from their checkpoints."""

from typing import Any

from ddjax.checkpoints import CheckpointError, load_network, read_spec


class MissingModelError(CheckpointError):
    """The model of a defense is missing or damaged.

    Attributes:
      role: `"density"` or `"generator"`.
    """

    def __init__(self, role: str, message: str) -> None:
        """Takes the role and the message."""
        super().__init__(message)
        self.role = role


def load(checkpoint: str, role: str, image_shape: tuple[int, ...]) -> Any:
    """The state of the trained model of a role that takes images of this shape, (H, W, C), from its checkpoints.

    Raises:
      MissingModelError: where there is none.
      ValueError: for a model of another role, or of images of another shape.
    """
    try:
        spec = read_spec(checkpoint)
    except CheckpointError as error:
        raise MissingModelError(role, f"{error}; model=DIRECTORY names the checkpoints of a {role}") from error
    if spec.role != role:
        raise ValueError(f"{checkpoint} holds a {spec.role}, not a {role}")
    if spec.image_shape != tuple(image_shape):
        raise ValueError(
            f"the {role} of {checkpoint} takes images of shape {spec.image_shape}, not {tuple(image_shape)}"
        )
    return load_network(checkpoint)[0]
