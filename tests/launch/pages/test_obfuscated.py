"""The page of `launch.obfuscated`, from synthetic records."""

import numpy as np
import pytest

from launch import pages
from launch.pages import obfuscated
from tests.launch.pages import reading
from tests.launch.pages.synthetic import figures, save_run, share, write

LIGHTS = ("one_step", "transfer", "whole_box", "random", "radius", "zero_gradient")


def of_row(row, clean, unaware, aware, colors, threat=("cifar10", "linf", 0.031)):
    """The records of a row, accuracies of 100 images in percent."""
    dataset, norm, epsilon = threat
    yield {"measure": "network", "row": row, "dataset": dataset, "norm": norm, "epsilon": epsilon}
    yield {"measure": "clean", "row": row, **share("accuracy", clean)}
    for knows, percent in ((False, unaware), (True, aware)):
        record = {"row": row, "aware": knows, **share("accuracy", percent)}
        yield {**record, "measure": "attack", "attack": "pgd", "file": f"images/{row}_{knows}.npz"}
        yield {**record, "measure": "worst"}
    yield {"measure": "gradient", "row": row, "norm_unaware": 0.0, "norm_aware": 1.5}
    yield {"measure": "transfer", "row": row, **share("accuracy", 50)}
    for name, color in zip(LIGHTS if colors else (), colors, strict=True):
        yield {"measure": "light", "row": row, "name": name, "color": color, "explanation": f"{name} of {row}."}


@pytest.fixture
def run(tmp_path):
    lines = [
        *of_row("none", 60, 0, 0, ["green"] * 6),
        *of_row("jpeg", 57, 55, 3, ["green"] * 5 + ["red"]),
        *of_row("randomization", 50, 20, 10, ["yellow", "unknown", *["green"] * 4]),
        # Rows on which a look takes long have no lights.
        *of_row("defense_gan", 91, 80, 40, [], ("mnist", "l2", 1.98)),
        {"measure": "reparameterization", "row": "defense_gan", **share("success", 8, 10), **share("kept", 2, 8)}
        | {"mean_l2": 3.25, "within": 3},
        {"measure": "attack", "row": "lid", "aware": True, "attack": "pgd", "file": "x", **share("detection", 9, 10)}
        | {"auc": 0.5},
    ]
    (tmp_path / "images").mkdir()
    images = np.zeros((2, 4, 4, 3), np.float32)
    for row in ("jpeg", "randomization"):
        np.savez(tmp_path / "images" / f"{row}_clean.npz", images=images.astype(np.uint8), labels=np.zeros(2, np.int32))
    shown = {"images": images, "broken": np.array([True, True]), "lost": np.array([True, False])}
    np.savez(tmp_path / "images" / "jpeg_True.npz", **shown, defended=images)
    save_run(tmp_path, "obfuscated", lines, dataset="cifar10")
    return tmp_path


def test_page_has_claims_and_breaks(run):
    page = write(run)
    table = page.sections["table"]
    assert table.column("defense") == ["none", "jpeg", "randomization", "defense_gan", "lid"]
    assert table.column("data set, radius")[2:] == ["cifar10, 0.031 Linf", "mnist, 1.98 L2", ""]
    assert table.column("aware")[1] == "3.0 %\n1.0 to 8.5\nn = 100"
    assert table.column("gap") == ["+0.0", "+52.0", "+10.0", "+40.0", ""]
    # Nothing was published about no defense.
    assert table.column("published")[:2] == ["", "0 %\nImageNet, 0.05 L2, normalized"]
    assert table.column("gradient") == [*["0 / 1.5"] * 4, ""]
    assert table.column("lights") == ["🟢🟢🟢🟢🟢🟢", "🟢🟢🟢🟢🟢🔴", "🟡⚪🟢🟢🟢🟢", "", ""]
    assert page.sections["masked-gradients"].column("gradients are zero")[1] == "🔴\nzero_gradient of jpeg."
    assert page.sections["reparameterization"].rows[1] == [
        "defense_gan", "80.0 %\n49.0 to 94.3\nn = 10", "3.25", "3", "25.0 %\n7.1 to 59.1\nn = 8"
    ]  # fmt: skip
    assert page.sections["detector"].rows[1:] == [["lid", "pgd", "aware", "90.0 %\n59.6 to 98.2\nn = 10", "0.500"]]
    assert figures(run) == {"accuracy", "gallery"}


def test_search_that_finds_nothing_has_no_distance(tmp_path):
    record = {"measure": "reparameterization", "row": "defense_gan", "mean_l2": None, "within": 0}
    save_run(tmp_path, "obfuscated", [record | share("success", 0, 10) | share("kept", 0, 0)])
    assert write(tmp_path).sections["reparameterization"].rows == [
        ["defense", "found", "within the radius"], ["defense_gan", "0.0 %\n0.0 to 27.8\nn = 10", "0"]
    ]  # fmt: skip


def test_markdown_has_a_line_for_each_defense(run):
    _, _, jpeg, *_ = lines = reading.markdown(pages.table(run))
    assert len(lines) == 6
    assert jpeg[:3] == ["jpeg", "cifar10, 0.031 Linf", "57.0 % (47.2 to 66.3, n = 100)"]


def test_figure_shows_what_was_measured():
    rows = [
        {"defense": "a", "clean": 0.9, "clean_low": 0.8, "clean_high": 0.95, "aware": 0.1},
        {"defense": "b", "unaware": 0.5, "aware": 0.0},
        {"defense": "c"},
    ]
    figure = obfuscated.accuracy_figure(rows)
    assert figure is not None
    (axes,) = figure.axes
    shown = [np.asarray(line.get_xdata(), float).tolist() for line in axes.lines]
    assert shown == [[90.0], [80.0, 95.0], [10.0], [], [50.0], [], [0.0], []]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["clean", "unaware", "aware"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    assert obfuscated.accuracy_figure([{"defense": "c"}]) is None
