"""The adversarial inputs that launchers write for other programs."""

import numpy as np
import pytest
from absl import flags
from PIL import Image

from ddjax import evaluation, runs
from launch import exporting


@pytest.fixture(autouse=True)
def save_png():
    with pytest.MonkeyPatch.context() as patch:
        flags.FLAGS.unparse_flags()
        flags.FLAGS(["test", "--save_png"])
        yield patch
    flags.FLAGS(["test", "--nosave_png"])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("targets", [None, np.asarray([4, 5], np.int32)])
def test_writes_arrays_and_images(tmp_path, channels, targets):
    # The bytes of an image, a little off: what is nearest to them comes back.
    pixels = np.random.default_rng(0).integers(0, 256, (2, 5, 4, channels))
    adversarial = np.clip((pixels + 0.3) / 255, 0, 1).astype(np.float32)
    labels = np.asarray([1, 2], np.int32)
    tried = evaluation.Attempts(np.arange(2), np.zeros_like(adversarial), labels, targets, labels)
    with runs.Run(tmp_path / "run", {}, {}) as run:
        exporting.save(run, "pgd", tried, adversarial, np.asarray([True, False]))
    saved = np.load(tmp_path / "run" / "adversarial" / "pgd.npz")
    np.testing.assert_array_equal(saved["adversarial"], adversarial)
    np.testing.assert_array_equal(saved["inputs"], tried.inputs)
    np.testing.assert_array_equal(saved["success"], [True, False])
    assert ("targets" in saved) == (targets is not None)
    ends = ["", ""] if targets is None else ["_target4", "_target5"]
    names = [f"00000_label1{ends[0]}.png", f"00001_label2{ends[1]}.png"]
    directory = tmp_path / "run" / "adversarial" / "pgd"
    assert sorted(path.name for path in directory.iterdir()) == names
    for name, image in zip(names, pixels, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(directory / name)).reshape(image.shape), image)


def test_refuses_inputs_that_are_no_images():
    exporting.check_shape((8, 8, 1))
    for shape in ((64,), (8, 8, 2)):
        with pytest.raises(ValueError, match="--save_png needs images of 1 or 3 channels"):
            exporting.check_shape(shape)
