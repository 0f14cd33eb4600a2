"""The adversarial inputs of a run for other programs: `adversarial/NAME.npz`, and PNG files on request."""

import io
from collections.abc import Sequence

import numpy as np
from absl import flags
from PIL import Image

from ddjax import evaluation, files, parallel, rounding, runs

_SAVE_PNG = flags.DEFINE_bool(
    "save_png",
    False,
    "Also writes each adversarial image that is made now as a PNG file, rounded to 8 bits, which may undo an attack.",
)


def check_shape(shape: Sequence[int]) -> None:
    """Refuses `--save_png` for inputs that are no images."""
    if _SAVE_PNG.value and not (len(shape) == 3 and shape[-1] in (1, 3)):
        raise ValueError(f"--save_png needs images of 1 or 3 channels, and these inputs have the shape {tuple(shape)}")


def save(run: runs.Run, name: str, tried: evaluation.Attempts, adversarial: np.ndarray, success: np.ndarray) -> None:
    """Writes what an attack made of each attempt, beside the clean inputs, labels and targets.

    Args:
      run: gets `adversarial/NAME.npz`, and a directory `adversarial/NAME` of PNG files.
      name: of the attack and whatever it attacked.
      tried: the attempts.
      adversarial: the inputs that the attack made, in [0, 1].
      success: whether each fools the classifier that was attacked.
    """
    targets = {} if tried.targets is None else {"targets": tried.targets}
    arrays = {"inputs": tried.inputs, "adversarial": adversarial, "labels": tried.labels, "success": success}
    path = run.save_arrays(f"adversarial/{name}", **arrays, **targets)
    if not _SAVE_PNG.value or not parallel.is_primary():
        return
    directory = path.with_suffix("")
    directory.mkdir(exist_ok=True)
    for number, image in enumerate(rounding.to_uint8(np.asarray(adversarial))):
        words = [f"{number:05d}", f"label{tried.labels[number]}"]
        words += [] if tried.targets is None else [f"target{tried.targets[number]}"]
        content = io.BytesIO()
        # A gray image has no axis of channels in Pillow.
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(content, "PNG")
        files.write_atomically(directory / f"{'_'.join(words)}.png", content.getvalue())
