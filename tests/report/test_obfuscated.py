import json

import numpy as np
import pytest

from ddjax import metrics, report, runs
from ddjax.report import obfuscated

LIGHTS = ("one_step", "transfer", "whole_box", "random", "radius", "zero_gradient")


def of_row(row, clean, unaware, aware, colors):
    """The records of a row, accuracies of 100 images in percent."""
    share = lambda percent: metrics.rate_fields("accuracy", percent, 100)
    yield {"measure": "clean", "row": row, **share(clean)}
    for knows, percent in ((False, unaware), (True, aware)):
        file = f"images/{row}_{knows}.npz"
        yield {"measure": "attack", "row": row, "aware": knows, "attack": "pgd", "file": file, **share(percent)}
        yield {"measure": "worst", "row": row, "aware": knows, **share(percent)}
    yield {"measure": "gradient", "row": row, "norm_unaware": 0.0, "norm_aware": 1.5}
    yield {"measure": "transfer", "row": row, **share(50)}
    for name, color in zip(LIGHTS, colors, strict=True):
        light = {"name": name, "color": color, "value": 0.5, "reference": 0.25, "explanation": f"{name} of {row}."}
        yield {"measure": "light", "row": row, **light}


@pytest.fixture
def workdir(tmp_path):
    lines = [
        *of_row("none", 60, 0, 0, ["green"] * 6),
        *of_row("jpeg", 57, 55, 3, ["green"] * 5 + ["red"]),
        *of_row("randomization", 50, 20, 10, ["yellow", "unknown", *["green"] * 4]),
        *of_row("quilting", 51, 50, 5, ["red"] * 6),
    ]
    (tmp_path / "images").mkdir()
    images = np.zeros((2, 4, 4, 3), np.float32)
    np.savez(tmp_path / "images" / "clean.npz", images=images.astype(np.uint8), labels=np.zeros(2, np.int32))
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
    assert len(table) == 2 + 4
    assert "| jpeg | 57.0 %" in table[3]
    assert "0 %<br>ImageNet, 0.05 L2, normalized" in table[3]
    assert table[3].endswith("| 0 / 1.5 | 🟢🟢🟢🟢🟢🔴 |")
    assert table[4].endswith("🟡⚪🟢🟢🟢🟢 |")
    # Nothing was published about no defense.
    assert "ImageNet" not in table[2]
    assert "CIFAR" not in table[2]


def test_expectations_are_told_as_they_are(workdir):
    jpeg, randomization, quilting = obfuscated.expectations(runs.read_results(workdir))
    assert jpeg.startswith("jpeg: loses 3.0 points on clean images, within 5; the aware attack takes 52 points more, ")
    assert "it leaves 3.0 %, at most 5.0 %" in jpeg
    assert "loses 10.0 points on clean images, NOT within 5" in randomization
    assert "takes 10 points more, NOT 30" in randomization
    assert "leaves 10.0 %, NOT at most 5.0 %" in randomization
    assert "The network has not been trained on resized images" in randomization
    # Trained on other images, it may lose more.
    assert "loses 9.0 points on clean images, within 10" in quilting


def test_conclusion_and_an_empty_run(workdir):
    said = obfuscated.conclude(runs.read_results(workdir))
    assert "3 defenses that hide their gradients are right on 20.0 % to 55.0 % of the images" in said
    assert "on 3.0 % to 10.0 % under one that does" in said
    assert obfuscated.conclude([]) == "Nothing has been measured yet."
    (workdir / "results.jsonl").write_text("")
    assert report.write(workdir).exists()
