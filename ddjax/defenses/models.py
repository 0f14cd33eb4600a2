"""The trained generative models that defenses take, from their checkpoints."""

from typing import Any


def load(checkpoint: str, role: str, image_shape: tuple[int, ...]) -> Any:
    """Loads the trained model of a defense.

    Args:
      checkpoint: its directory.
      role: `"density"` or `"generator"`.
      image_shape: (H, W, C) of the images that it must take.

    Returns:
      Its state.

    Raises:
      CheckpointError: where there is none.
      ValueError: for a model of another role, or of images of another shape.
    """
    # Lazily: only these defenses need checkpoints.
    from ddjax import runs
    from ddjax.generative import recipes

    names = [name for name, recipe in recipes.RECIPES.items() if recipe.role == role]
    try:
        spec = runs.read_spec(checkpoint)
    except runs.CheckpointError as error:
        advice = f"train it with: python -m launch.train --recipe={' or --recipe='.join(names)}"
        raise runs.CheckpointError(f"{error}; {advice}") from error
    if spec.role != role:
        raise ValueError(f"{checkpoint} holds a {spec.role}, not a {role}; recipes of one: {', '.join(names)}")
    if spec.image_shape != tuple(image_shape):
        raise ValueError(
            f"the {role} of {checkpoint} is of images of shape {spec.image_shape}, not {tuple(image_shape)}"
        )
    state, _ = runs.load_network(checkpoint)
    return state


def model_fn(state: Any) -> Any:
    """The density or the generator of a state, as a function; a pytree whose leaves are the parameters."""
    from ddjax.generative import recipes

    return recipes.model_fn(state)


def latent_of(state: Any) -> int:
    """The length of a generator's codes."""
    from ddjax.generative import recipes

    return recipes.latent_of(state)
