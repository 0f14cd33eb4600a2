"""Photographs in folders, from their files to an attack on what was trained on them."""

import time

import jax
import numpy as np
import pytest
from PIL import Image

from ddjax import checkpoints, data, runs

NAMES = ("cane", "gatto", "ragno")
TRAINING = ["--recipe=digits", "--image_size=8", "--epochs=3"]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Three animals of different colors, thirty images of each in different sizes."""
    root = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for channel, name in enumerate(NAMES):
        (root / name).mkdir()
        for number in range(30):
            pixels = rng.integers(0, 100, (10 + number % 3, 12, 3), dtype=np.uint8)
            pixels[..., channel] += 120
            Image.fromarray(pixels).save(root / name / f"{number}.{('jpeg', 'png')[number % 2]}", quality=95)
    return root


@pytest.fixture(scope="module")
def arguments(photographs, tmp_path_factory):
    return [*TRAINING, f"--dataset=folder:{photographs}", f"--cache_dir={tmp_path_factory.mktemp('cache')}"]


@pytest.fixture(scope="module")
def streamed(launch, arguments, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("streamed")
    return workdir, launch("train", *arguments, f"--workdir={workdir}").stdout


def checkpoint(workdir):
    return workdir / "checkpoints" / "seed0_none" / "baseline"


def leaves(workdir):
    return jax.tree.leaves(checkpoints.load_network(checkpoint(workdir))[0].params)


def test_what_is_read_batch_by_batch_trains_as_what_is_in_memory(streamed, launch, arguments, tmp_path):
    workdir, printed = streamed
    accuracy, loader = runs.read_results(workdir)
    assert accuracy["n"] == 18
    assert accuracy["accuracy"] > 0.6
    assert loader["measure"] == "loader"
    assert min(loader[f"{what}_per_second"] for what in ("decoded", "read", "trained")) > 0
    assert "images a second:" in printed
    assert "read from the cache" in printed
    # A subset is in memory; this one is the whole.
    launch("train", *arguments, "--num_train=72", f"--workdir={tmp_path}")
    assert [record["measure"] for record in runs.read_results(tmp_path)] == ["accuracy"]
    for one, other in zip(leaves(workdir), leaves(tmp_path), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5)
    # What is done is not done again, nor told again.
    before = runs.read_results(workdir)
    assert "images a second" not in launch("train", *arguments, f"--workdir={workdir}").stdout
    assert runs.read_results(workdir) == before


def test_killed_in_the_middle_it_ends_with_the_same_network(streamed, launch, start, arguments, tmp_path):
    command = [*arguments, f"--workdir={tmp_path}", "--checkpoint_seconds=0"]
    process = start("train", *command)
    deadline = time.monotonic() + 60
    while not (checkpoint(tmp_path) / "1").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    launch("train", *command)
    for one, other in zip(leaves(streamed[0]), leaves(tmp_path), strict=True):
        np.testing.assert_array_equal(one, other)


def test_distilled_and_attacked(streamed, launch, arguments, tmp_path):
    launch("distill", *arguments, "--epochs=1", "--temperature=20", f"--workdir={tmp_path / 'pair'}")
    assert [record["network"] for record in runs.read_results(tmp_path / "pair")] == ["teacher", "student"]
    cache = [argument for argument in arguments if argument.startswith("--cache_dir")]
    done = launch(
        "attack",
        f"--checkpoint={checkpoint(streamed[0])}",
        "--attack=fgsm:epsilon=0.5",
        "--num_examples=9",
        *cache,
        f"--workdir={tmp_path / 'attack'}",
    )
    assert "fgsm:epsilon=0.5: success" in done.stdout
    assert runs.read_config(tmp_path / "attack")["resolved"]["class_names"] == ["cat", "dog", "spider"]
    done = launch(
        "evaluate",
        f"--checkpoint={checkpoint(streamed[0])}",
        "--defense=squeezing:squeezers=bit_depth_4+median_2_2",
        "--attack=fgsm:epsilon=0.5",
        "--num_examples=9",
        "--num_calibration=30",
        *cache,
        f"--workdir={tmp_path / 'matrix'}",
    )
    assert "squeezing" in done.stdout
    done = launch(
        "distill", *arguments, "--temperature=20", "--label_noise=0.1", f"--workdir={tmp_path / 'noisy'}", ok=False
    )
    assert "training on noisy images needs the images in memory" in done.stderr


def test_a_truncated_photograph_is_named_and_refused_or_left_out(photographs, launch, tmp_path):
    tree = tmp_path / "photographs"
    for path in photographs.glob("*/*"):
        (tree / path.parent.name).mkdir(parents=True, exist_ok=True)
        content = path.read_bytes()
        broken = path.parent.name == "gatto" and path.name == "4.jpeg"
        (tree / path.parent.name / path.name).write_bytes(content[: len(content) // 2] if broken else content)
    arguments = [*TRAINING[:2], "--epochs=1", f"--dataset=folder:{tree}", f"--cache_dir={tmp_path / 'cache'}"]
    done = launch("train", *arguments, f"--workdir={tmp_path / 'run'}", ok=False)
    assert "1 of 90 images" in done.stderr
    assert "gatto/4.jpeg" in done.stderr
    assert "unreadable=skip" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
    done = launch("train", *arguments, "--unreadable=skip", f"--workdir={tmp_path / 'run'}")
    assert "gatto/4.jpeg" in done.stderr
    assert "they are left out" in done.stderr
    assert runs.read_config(tmp_path / "run")["resolved"]["num_train"] == 71


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe=animals10"], "there is no folder animals10"),
        (["--recipe=digits", "--dataset=folder:/nowhere", "--image_size=8"], "there is no folder /nowhere"),
        (["--class_names=cane"], "--class_names must be DIRECTORY=NAME,..., got cane"),
    ],
)
def test_bad_use_ends_in_one_line(launch, tmp_path, arguments, message):
    done = launch("train", *arguments, f"--workdir={tmp_path / 'run'}", ok=False)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_size_must_be_given(launch, photographs, tmp_path):
    arguments = ["--recipe=digits", f"--dataset=folder:{photographs}", f"--workdir={tmp_path / 'run'}"]
    assert "(image_size)" in launch("train", *arguments, ok=False).stderr


def test_animals10_trains_its_network_with_augmentation_and_statistics(launch, tfds_data_dir, tmp_path):
    cifar = data.load("cifar10", "test", data_dir=tfds_data_dir, num_examples=50)
    for number, (image, label) in enumerate(zip(cifar.images, cifar.labels, strict=True)):
        folder = tmp_path / "raw-img" / list(data.ANIMALS10)[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"OIP-{number}.jpeg")
    done = launch(
        "train",
        "--recipe=animals10",
        f"--dataset=folder:{tmp_path / 'raw-img'}",
        "--image_size=32",
        "--epochs=1",
        f"--cache_dir={tmp_path / 'cache'}",
        f"--workdir={tmp_path / 'run'}",
    )
    assert "on 10 test images" in done.stdout
    assert "images a second:" in done.stdout
    state, spec = checkpoints.load_network(checkpoint(tmp_path / "run"))
    assert (spec.network, spec.image_shape, spec.batch_size) == ("ddjax.models:ConvNet", (32, 32, 3), 32)
    (mean, *_) = jax.tree.leaves(state.statistics["batch_stats"])
    assert np.abs(mean).max() > 0


def test_masking_of_a_folder_network_takes_images_of_its_size(streamed, launch, arguments, tmp_path):
    workdir, _ = streamed
    sizes = ["--num_examples=18", "--num_calibration=20", "--num_queries=20", "--substitute_epochs=1"]
    given = [argument for argument in arguments if not argument.startswith(("--image_size", "--recipe", "--epochs"))]
    launch("evaluate", f"--checkpoint={checkpoint(workdir)}", "--masking", *sizes, *given, f"--workdir={tmp_path}/run")
    assert any(record["measure"] == "masking" for record in runs.read_results(tmp_path / "run"))
