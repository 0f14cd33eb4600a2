"""The training of generative models, and the defenses that take them."""

import contextlib
import dataclasses
import json
import math
import shutil
import types

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from ddjax import checkpoints, runs
from launch import generating, obfuscated
from launch.recipes import generative as generative_recipes

PIXELCNN = ["--recipe=pixelcnn_mnist", "--dataset=digits", "--num_train=200", "--num_test=50", "--epochs=2"]
DENSITY, GENERATOR = ("checkpoints/seed0_none/density", "checkpoints/seed0_none/generator")
# As the recipes of these names, on two cores.
TINY = {
    "pixelcnn_mnist": {"width": 4, "blocks": 1, "levels": 1, "mixtures": 2, "dropout": 0.0},
    "gan_mnist": {"width": 4, "latent": 6, "lowering": "plain"},
}
SEARCHED = ((3, 1), (3, 2))


@contextlib.contextmanager
def in_process(**values):
    """Launchers called as functions, with smaller recipes and other flags."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["launch"])
    tiny = {
        name: dataclasses.replace(recipe, network=TINY[name]) if name in TINY else recipe
        for name, recipe in generative_recipes.RECIPES.items()
    }
    changes = dict(obfuscated._QUICK_CHANGES)
    changes["defense_gan"] = changes["defense_gan"] | {"defense": "defense_gan:num_steps=2,restarts=2"}
    with pytest.MonkeyPatch.context() as patch, flagsaver.flagsaver(**values):
        for module in (generative_recipes, generating):
            patch.setattr(module, "RECIPES", types.MappingProxyType(tiny))
        patch.setattr(generating, "_SEARCHED", SEARCHED)
        patch.setattr(obfuscated, "_QUICK_CHANGES", changes)
        with jax.numpy_dtype_promotion("standard"):
            yield


def of(records, measure, **fields):
    return [r for r in records if r["measure"] == measure and all(r[key] == value for key, value in fields.items())]


# The density


@pytest.fixture(scope="module")
def density(launch, tmp_path_factory):
    """A run of `launch.train`, and what it printed."""
    workdir = tmp_path_factory.mktemp("density") / "run"
    return workdir, launch("train", f"--workdir={workdir}", *PIXELCNN).stdout


def test_a_density_is_trained_and_reported(density):
    workdir, printed = density
    assert f"{workdir}/{DENSITY}: after 2 epochs bits_per_dimension" in printed
    first, second = of(runs.read_results(workdir), "epoch")
    assert (first["epoch"], second["epoch"]) == (1, 2)
    for name in ("bits_per_dimension", "held_out_bits_per_dimension"):
        assert 0 < second[name] < first[name] < 8
    for epoch in (1, 2):
        samples = np.load(workdir / "samples" / f"epoch{epoch}.npz")["images"]
        assert samples.shape == (32, 8, 8, 1)
        np.testing.assert_allclose(255 * samples, np.round(255 * samples), atol=1e-4)
        assert 0 <= samples.min() < samples.max() <= 1
    assert (workdir / "report.html").exists()
    assert {path.stem for path in (workdir / "figures").iterdir()} == {"training", "samples"}
    spec = checkpoints.read_spec(workdir / DENSITY)
    assert (spec.recipe, spec.role, spec.image_shape) == ("pixelcnn_mnist", "density", (8, 8, 1))
    assert runs.read_config(workdir)["resolved"]["num_train"] == 200


def test_a_finished_training_repeats_nothing(density, launch):
    workdir, printed = density
    before = (workdir / "results.jsonl").read_bytes()
    assert launch("train", f"--workdir={workdir}", *PIXELCNN).stdout == printed
    assert (workdir / "results.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temperature=2"], "--temperature is for classifiers, not for pixelcnn_mnist"),
        (["--epochs=0"], "--epochs must be at least 1, got 0"),
        (["--num_train=20"], "32"),
    ],
)
def test_bad_flags_end_in_one_line(launch, tmp_path, arguments, message):
    done = launch("train", f"--workdir={tmp_path}/run", *PIXELCNN, *arguments, ok=False)
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


# The generator, and a density for the table, in this process


def train_tiny(recipe, workdir):
    values = {"recipe": recipe, "dataset": "digits", "num_train": 300, "num_test": 20, "epochs": 1}
    with in_process(**values, workdir=str(workdir)):
        generating.train()


@pytest.fixture(scope="module")
def classifier(launch, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("classifier") / "run"
    sizes = ["--dataset=digits", "--num_train=600", "--num_test=100", "--epochs=6"]
    launch("train", f"--workdir={workdir}", *sizes)
    return workdir


@pytest.fixture(scope="module")
def trained(classifier, tmp_path_factory):
    """The networks of three rows, where `launch.obfuscated` looks for them."""
    directory = tmp_path_factory.mktemp("runs")
    for recipe in TINY:
        train_tiny(recipe, directory / f"train_{recipe}")
    # The recipe's own network is too large for such small images.
    shutil.copytree(classifier, directory / "train_mnist_quick")
    return directory


def test_a_generator_is_trained_and_looked_for(trained, capsys):
    workdir = trained / "train_gan_mnist"
    before = (workdir / "results.jsonl").read_bytes()
    (epoch,) = of(runs.read_results(workdir), "epoch")
    assert {"wasserstein", "penalty", "generator_loss"} < epoch.keys()
    assert "held_out_bits_per_dimension" not in epoch
    found = of(runs.read_results(workdir), "reconstruction")
    assert [(r["num_steps"], r["restarts"]) for r in found] == list(SEARCHED)
    # The second search starts where the first one did, and elsewhere too.
    assert found[1]["mean_error"] <= found[0]["mean_error"]
    for record in found:
        assert record["n"] == 20
        name = f"steps{record['num_steps']}_starts{record['restarts']}.npz"
        arrays = np.load(workdir / "reconstructions" / name)
        off = ((arrays["images"] - arrays["originals"] / np.float32(255)) ** 2).mean((1, 2, 3))
        assert record["mean_error"] == pytest.approx(float(off.mean()), rel=1e-4)
        assert record["median_error"] == pytest.approx(float(np.median(off)), rel=1e-4)
    assert np.load(workdir / "samples" / "epoch1.npz")["images"].shape == (32, 8, 8, 1)
    assert {path.stem for path in (workdir / "figures").iterdir()} == {"training", "samples", "reconstructions"}
    train_tiny("gan_mnist", workdir)
    assert f"{workdir}/{GENERATOR}: after 1 epochs" in capsys.readouterr().out
    assert (workdir / "results.jsonl").read_bytes() == before


# The defenses


def test_a_network_is_attacked_behind_the_density(launch, classifier, density, tmp_path):
    defense = f"pixel_defend:epsilon=0.2,model={density[0]}/{DENSITY}"
    arguments = [f"--checkpoint={classifier}/checkpoints/seed0_none/baseline", "--attack=fgsm:epsilon=0.2"]
    sizes = ["--num_examples=10", "--num_calibration=10", "--batch_size=10", "--quick", "--budget_l2=1.5"]
    launch("evaluate", *arguments, *sizes, f"--defense={defense}", f"--workdir={tmp_path}/run")
    records = runs.read_results(tmp_path / "run")
    # Purified images are no longer those that the attack has made for the network alone.
    assert {record["defense"] for record in records if "defense" in record} >= {defense}
    assert of(records, "worst")
    for record in records:
        for name, value in record.items():
            if name.endswith("accuracy"):
                assert 0 <= value <= 1, record
    shown = [np.load(path) for path in sorted((tmp_path / "run").rglob("*.npz"))]
    defended = [arrays["defended"] for arrays in shown if "defended" in arrays]
    assert defended
    for seen in defended:
        np.testing.assert_allclose(255 * seen, np.round(255 * seen), atol=1e-4)


@pytest.fixture
def other_shape(density, tmp_path):
    """The checkpoint of a density that says to be of other images."""
    copied = tmp_path / "density"
    shutil.copytree(density[0] / DENSITY, copied)
    (path,) = copied.glob("*/spec/metadata*")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"image_shape": [28, 28, 1]}))
    return copied


def test_models_that_do_not_fit_are_refused(launch, classifier, trained, other_shape, tmp_path):
    arguments = [f"--checkpoint={classifier}/checkpoints/seed0_none/baseline", "--attack=fgsm", "--quick"]
    arguments += ["--num_examples=10", "--num_calibration=10", f"--workdir={tmp_path}/run"]
    cases = [
        ("pixel_defend", tmp_path / "nothing", "train it with: python -m launch.train --recipe=pixelcnn_mnist"),
        ("defense_gan", tmp_path / "nothing", "train it with: python -m launch.train --recipe=gan_mnist"),
        ("pixel_defend", trained / "train_gan_mnist" / GENERATOR, "holds a generator, not a density"),
        ("pixel_defend", other_shape, "takes images of shape (28, 28, 1), not (8, 8, 1)"),
    ]
    for name, model, message in cases:
        done = launch("evaluate", *arguments, f"--defense={name}:model={model}", ok=False)
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


# The rows of the table


ROWS = ["pixel_defend", "defense_gan"]


def fill(trained, workdir):
    values = {"num_examples": 6, "num_clean": 20, "num_steps": 10, "samples": 2, "num_held_out": 80, "batch_size": 20}
    values |= {"num_queries": 40, "substitute_epochs": 1, "substitute_rounds": 0, "dataset": "digits", "quick": True}
    # Without lights, which take longer than all else and are those of any network.
    values["lights"] = False
    with in_process(**values, defense=ROWS, runs=str(trained), workdir=str(workdir)):
        obfuscated.main()


@pytest.fixture(scope="module")
def table(trained, tmp_path_factory):
    """A run of `launch.obfuscated` with two rows."""
    workdir = tmp_path_factory.mktemp("obfuscated") / "run"
    fill(trained, workdir)
    return workdir


def test_every_row_is_whole(table):
    records = runs.read_results(table)
    for row in ROWS:
        for measure in ("network", "clean", "gradient", "transfer"):
            assert len(of(records, measure, row=row)) == 1, (row, measure)
        # Where a look takes long, a part of the images, but no fewer than are attacked.
        assert of(records, "clean", row=row)[0]["accuracy_n"] == (6 if row == "pixel_defend" else 20)
        unaware, aware = (of(records, "worst", row=row, aware=knows)[0]["accuracy"] for knows in (False, True))
        assert aware == min(aware, unaware, *(cell["accuracy"] for cell in of(records, "attack", row=row)))
        assert not of(records, "light", row=row)
    assert {path.stem for path in (table / "figures").iterdir()} >= {"accuracy"}
    assert "Reparameterization" in (table / "report.html").read_text()


def test_images_are_within_the_radius_of_their_row(table):
    records = runs.read_results(table)
    radii = {record["row"]: (record["norm"], record["epsilon"]) for record in of(records, "network")}
    # A root of a mean square is shorter than a norm by the root of the number of values.
    assert radii["defense_gan"] == ("l2", pytest.approx(math.sqrt(0.005 * 64)))
    assert radii["pixel_defend"] == ("linf", 0.3)
    for record in of(records, "attack"):
        if record["attack"] == "reparameterization":
            # It goes as far as it must; only what is within counts.
            continue
        norm, radius = radii[record["row"]]
        clean = np.load(table / "images" / f"{record['row']}_clean.npz")["images"].astype(np.float32) / 255
        arrays = np.load(table / record["file"])
        change = (arrays["images"] - clean).reshape(len(clean), -1)
        size = np.abs(change).max(1) if norm == "linf" else np.sqrt((change**2).sum(1))
        assert size.max() <= radius + 1e-4
        assert arrays["images"].min() >= 0
        assert arrays["images"].max() <= 1
        assert "defended" in arrays


def test_gradients_through_a_purification_are_zero_until_one_looks_through(table):
    records = runs.read_results(table)
    for row in ("pixel_defend", "defense_gan"):
        (gradient,) = of(records, "gradient", row=row)
        assert gradient["zero_unaware"] == 1
        assert gradient["zero_aware"] < 1
        assert gradient["norm_aware"] > 0


def test_images_of_the_generator_that_fool_the_network_are_shown_to_the_defense(table):
    records = runs.read_results(table)
    (record,) = of(records, "reparameterization")
    assert record["row"] == "defense_gan"
    assert record["success_n"] == 6
    count = round(record["success"] * 6)
    assert record["kept_n"] == count
    (attack,) = of(records, "attack", attack="reparameterization")
    arrays = np.load(table / attack["file"])
    clean = np.load(table / "images" / "defense_gan_clean.npz")["images"].astype(np.float32) / 255
    distances = np.sqrt(((arrays["images"] - clean) ** 2).sum((1, 2, 3)))
    # Where none was found, the clean image stands.
    assert (distances > 0).sum() == count
    within = distances <= math.sqrt(0.005 * 64) + 1e-4
    assert record["within"] == (within & (distances > 0)).sum()
    assert not np.any(arrays["broken"] & ~arrays["lost"] & ~within)
    if count:
        assert record["mean_l2"] == pytest.approx(float(distances[distances > 0].mean()), rel=1e-5)
        assert 0 <= record["kept"] <= 1
    else:
        assert record["mean_l2"] is None


def test_what_the_reconstruction_would_do_is_carried_over(table):
    (attack,) = of(runs.read_results(table), "attack", attack="reparameterization, carried over")
    assert (attack["row"], attack["aware"]) == ("defense_gan", True)
    # The radius, and what the box cuts is less.
    clean = np.load(table / "images" / "defense_gan_clean.npz")["images"].astype(np.float32) / 255
    change = np.sqrt(((np.load(table / attack["file"])["images"] - clean) ** 2).sum((1, 2, 3)))
    assert (change <= attack["budget"] + 1e-4).all()


def test_a_finished_table_repeats_nothing(table, trained):
    before = (table / "results.jsonl").read_bytes()
    fill(trained, table)
    assert (table / "results.jsonl").read_bytes() == before


def test_a_missing_model_names_its_training(trained, tmp_path):
    shutil.copytree(trained / "train_mnist_quick", tmp_path / "train_mnist_quick")
    with pytest.raises(ValueError, match="python -m launch.train --recipe=pixelcnn_mnist"):
        fill(tmp_path, tmp_path / "run")
    assert not (tmp_path / "run").exists()
