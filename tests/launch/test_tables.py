"""Launchers on tables of features."""

import numpy as np
import pytest

from ddjax import data, runs


def test_sweep_of_a_table_has_figures_of_features_and_none_of_images(launch, tmp_path):
    small = ["--recipe=breast_cancer", "--temperatures=20", "--epochs=4", "--num_examples=8"]
    done = launch("sweep", *small, f"--workdir={tmp_path}")
    assert "JSMA, tempered" in done.stdout
    figures = {path.name for path in (tmp_path / "figures").iterdir()}
    assert figures >= {"success.png", "jsma_features.png"}
    assert not {name for name in figures if "grid" in name}
    config = runs.read_config(tmp_path)
    assert config["resolved"]["feature_names"][0] == "mean radius"
    (record, *_) = [record for record in runs.read_results(tmp_path) if record["measure"] == "jsma"]
    assert (record["num_features"], record["max_features"]) == (30, 12)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Breast cancer as a file, in which one column is categorical, and masked, and one is constant."""
    train, test = data.load("breast_cancer", "train"), data.load("breast_cancer", "test")
    arrays = {}
    for prefix, part in (("", train), ("test_", test)):
        inputs = part.images * np.arange(1, 31)
        inputs[:, 1], inputs[:, 2] = inputs[:, 1] > 1, 7
        arrays |= {f"{prefix}inputs": inputs, f"{prefix}labels": part.labels}
    path = tmp_path_factory.mktemp("table") / "table.npz"
    np.savez(path, mask=np.arange(30) != 1, **arrays)
    return path


@pytest.fixture(scope="module")
def network(launch, table, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("network")
    launch("train", "--recipe=breast_cancer", f"--dataset=npz:{table}", "--epochs=10", f"--workdir={workdir}")
    return workdir / "checkpoints" / "seed0_none" / "baseline"


def test_masked_and_constant_columns_stay_and_no_attack_is_nearer_than_the_proof(launch, network, tmp_path):
    attacks = ["--attack=deepfool", "--attack=pgd:num_steps=10", "--attack=jsma:gamma=0.4", "--targets=auto"]
    done = launch(
        "attack", f"--checkpoint={network}", *attacks, "--certify", "--num_examples=8", f"--workdir={tmp_path}"
    )
    assert "8-bit" not in done.stdout
    records = runs.read_results(tmp_path)
    with np.load(tmp_path / "images" / "clean.npz") as clean:
        inputs = clean["images"]
    moved = 0
    for record in records:
        assert record.get("violations", 0) == 0
        if record["measure"] == "attack":
            with np.load(tmp_path / record["file"]) as found:
                change = found["images"] != inputs[found["rows"]]
                moved += found["success"].sum()
            assert not change[:, 1:3].any()
            assert "success_8_bits" not in record
    assert moved > 0
    assert [record["norm"] for record in records if record["measure"] == "certify"] == ["linf", "l2"]
    page = (tmp_path / "report.html").read_text()
    assert "feature 4" in page or "gallery_0_deepfool" in page
    assert "L0, pixels" not in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--defense=jpeg"], "jpeg works on images [B, H, W, C], got inputs of the shape (30,)"),
        (["--defense=squeezing:squeezers=median_2_2"], "a median filter works on images"),
        (["--eight_bits"], "--eight_bits is for images, not for inputs of the shape (30,)"),
        (["--dataset=digits"], "takes inputs of shape (30,) in 2 classes; digits has (8, 8, 1) in 10"),
    ],
)
def test_what_is_about_pixels_is_refused_before_anything_is_written(launch, network, tmp_path, arguments, message):
    workdir = tmp_path / "run"
    done = launch("evaluate", f"--checkpoint={network}", "--attack=fgsm", *arguments, f"--workdir={workdir}", ok=False)
    assert message in done.stderr
    assert not workdir.exists()
