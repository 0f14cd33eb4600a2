import html
import json

import numpy as np
import pytest

from ddjax import metrics, report, runs
from ddjax.report import obfuscated

LIGHTS = ("one_step", "transfer", "whole_box", "random", "radius", "zero_gradient")


def of_row(row, clean, unaware, aware, colors, threat=("cifar10", "linf", 0.031)):
    """The records of a row, accuracies of 100 images in percent."""
    dataset, norm, epsilon = threat
    yield {"measure": "network", "row": row, "dataset": dataset, "norm": norm, "epsilon": epsilon}
    share = lambda percent: metrics.rate_fields("accuracy", percent, 100)
    yield {"measure": "clean", "row": row, **share(clean)}
    for knows, percent in ((False, unaware), (True, aware)):
        file = f"images/{row}_{knows}.npz"
        yield {"measure": "attack", "row": row, "aware": knows, "attack": "pgd", "file": file, **share(percent)}
        yield {"measure": "worst", "row": row, "aware": knows, **share(percent)}
    yield {"measure": "gradient", "row": row, "norm_unaware": 0.0, "norm_aware": 1.5}
    yield {"measure": "transfer", "row": row, **share(50)}
    for name, color in zip(LIGHTS if colors else (), colors, strict=True):
        light = {"name": name, "color": color, "value": 0.5, "reference": 0.25, "explanation": f"{name} of {row}."}
        yield {"measure": "light", "row": row, **light}


@pytest.fixture
def workdir(tmp_path):
    mnist, near = ("mnist", "linf", 0.3), ("mnist", "l2", 1.98)
    kept = metrics.rate_fields("success", 8, 10) | metrics.rate_fields("kept", 2, 8)
    lines = [
        *of_row("none", 60, 0, 0, ["green"] * 6),
        *of_row("jpeg", 57, 55, 3, ["green"] * 5 + ["red"]),
        *of_row("randomization", 50, 20, 10, ["yellow", "unknown", *["green"] * 4]),
        *of_row("quilting", 51, 50, 5, ["red"] * 6),
        *of_row("none_mnist", 99, 1, 1, ["green"] * 6, mnist),
        # Rows on which a look takes long have no lights.
        *of_row("pixel_defend", 88, 60, 20, [], mnist),
        *of_row("defense_gan", 91, 80, 40, [], near),
        {"measure": "reparameterization", "row": "defense_gan", **kept, "mean_l2": 3.25, "within": 3},
    ]
    (tmp_path / "images").mkdir()
    images = np.zeros((2, 4, 4, 3), np.float32)
    for row in ("jpeg", "quilting"):
        np.savez(tmp_path / "images" / f"{row}_clean.npz", images=images.astype(np.uint8), labels=np.zeros(2, np.int32))
    shown = {"images": images, "broken": np.array([True, True]), "lost": np.array([True, False])}
    np.savez(tmp_path / "images" / "jpeg_True.npz", **shown, defended=images)
    config = {"flags": {"launcher": "obfuscated", "dataset": "cifar10"}, "resolved": {}, "environment": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_page_and_table(workdir):
    page = report.write(workdir).read_text()
    assert "zero_gradient of jpeg." in page
    assert {path.stem for path in (workdir / "figures").iterdir()} == {"accuracy", "gallery"}
    table = report.readme_table(workdir).splitlines()
    assert len(table) == 2 + 7
    assert table[0].startswith("| defense | data set, radius | clean |")
    assert "| jpeg | cifar10, 0.031 Linf | 57.0 %" in table[3]
    assert "| defense_gan | mnist, 1.98 L2 | 91.0 %" in table[8]
    assert "0 %<br>ImageNet, 0.05 L2, normalized" in table[3]
    assert table[3].endswith("| 0 / 1.5 | 🟢🟢🟢🟢🟢🔴 |")
    assert table[4].endswith("🟡⚪🟢🟢🟢🟢 |")
    # Nothing was published about no defense.
    assert "ImageNet" not in table[2]
    assert "CIFAR" not in table[2]


def test_expectations_are_told_as_they_are(workdir):
    said = obfuscated.expectations(runs.read_results(workdir))
    jpeg, randomization, quilting, pixel_defend, defense_gan = said
    assert jpeg.startswith("jpeg: loses 3.0 points on clean images, within 5; the aware attack takes 52 points more, ")
    assert "it leaves 3.0 %, at most 5.0 %" in jpeg
    assert "loses 10.0 points on clean images, NOT within 5" in randomization
    assert "takes 10 points more, NOT 30" in randomization
    assert "leaves 10.0 %, NOT at most 5.0 %" in randomization
    assert "The network has not been trained on resized images" in randomization
    # Trained on other images, it may lose more.
    assert "loses 9.0 points on clean images, within 10" in quilting
    # By the network for the same images.
    assert "loses 11.0 points on clean images, NOT within 10" in pixel_defend
    assert "loses 8.0 points on clean images, within 10" in defense_gan
    assert "it leaves 40.0 %, at most 60.0 %" in defense_gan


def test_reparameterization_is_told(workdir):
    page = report.write(workdir).read_text()
    said = page.partition('<section id="reparameterization">')[2]
    assert "found for 8 of 10 images one of the generator's" in html.unescape(said)
    assert "at a mean L2 distance of 3.25, 3 of them within the radius" in said
    assert "25.0&nbsp;% of them still fool the classifier" in said
    nothing = metrics.rate_fields("success", 0, 10) | metrics.rate_fields("kept", 0, 0)
    record = {"measure": "reparameterization", "row": "defense_gan", **nothing, "mean_l2": None, "within": 0}
    assert "found none of 10 images" in obfuscated._reparameterized(record)


def test_conclusion_and_an_empty_run(workdir):
    said = obfuscated.conclude(runs.read_results(workdir))
    assert "5 defenses that hide their gradients are right on 20.0 % to 80.0 % of the images" in said
    assert "on 3.0 % to 40.0 % under one that does" in said
    assert obfuscated.conclude([]) == "Nothing has been measured yet."
    (workdir / "results.jsonl").write_text("")
    assert report.write(workdir).exists()
