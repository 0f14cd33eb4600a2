"""The page of `launch.carlini`, from synthetic records."""

import numpy as np
import pytest

from launch import pages
from launch.pages import carlini as page_of_carlini
from tests.launch.pages import reading
from tests.launch.pages.synthetic import (
    accuracy,
    carlini,
    figures,
    rows,
    save_clean,
    save_images,
    save_run,
    write,
)

L2, L0 = ("carlini_wagner_l2", "l2"), ("carlini_wagner_l0", "l0_pixels")
ALL, FAIL = (100, 100, 100), (0, 0, 0)


def both(name, norm, base=ALL, student=ALL, ratio=1.25, **settings):
    distances = tuple(ratio * distance for distance in (1.0, 2.0, 3.0))
    return [
        carlini("baseline", name, norm, base, **settings),
        carlini("student", name, norm, student, distances, **settings),
    ]


@pytest.fixture
def run(tmp_path):
    records = [accuracy("baseline", 99), accuracy("teacher", 98, 100.0), accuracy("student", 97, 100.0)]
    records += both(*L2) + both(*L0) + both("fgsm", "linf", (90, 42, 0), (80, 3, 0))
    records += both("deepfool", "l2", (100, None, None), (90, None, None), n=100)
    save_run(tmp_path, "carlini", records)
    # Few classes draw faster.
    save_clean(tmp_path, classes=3)
    for network in ("baseline", "student"):
        for attack, _ in (L2, L0):
            save_images(tmp_path, f"{network}_{attack}", targeted=True, classes=3)
    return tmp_path


def test_page_has_distances_beside_published_ones(run):
    page = write(run)
    _, l0, l2, deepfool, fgsm = page.sections["distances"].rows
    assert [line[0] for line in (l0, l2, deepfool, fgsm)] == ["C&W L0", "C&W L2", "DeepFool", "FGSM"]
    assert l2[1:4] == ["L2", "1\npublished 1.36", "1.25\npublished 1.7"]
    assert l2[4:6] == ["2\npublished 1.76", "2.5\npublished 2.2"]
    assert (l0[-1], l2[-1]) == ("1.25\npublished 1.19", "1.25\npublished 1.25")
    assert fgsm[4] == "2\n42.0 %\npublished 0.26 at 42 %"
    assert fgsm[6] == "none\n0.0 %\npublished none at 0 %"
    assert deepfool[2:] == ["1\npublished 2.11", "1.25\n90.0 %", "", "", "", "", ""]
    costs = page.sections["success-and-costs"]
    assert costs.column("average case")[-2:] == ["42.0 %\n32.8 to 51.8\nn = 100", "3.0 %\n1.0 to 8.5\nn = 100"]
    assert costs.column("targeted") == ["yes"] * 4 + ["no"] * 2 + ["yes"] * 2
    assert costs.column("after 8-bit rounding") == ["99.0 %"] * 8
    assert page.sections["networks"].rows[1:] == [
        ["undistilled", "none", "99.0 %\n94.6 to 99.8\nn = 100"],
        ["distilled", "100", "97.0 %\n91.5 to 99.0\nn = 100"],
    ]
    grids = [f"grid_{network}_carlini_wagner_{norm}" for norm in ("l0", "l2") for network in ("baseline", "student")]
    assert page.sections["examples"].figures == grids
    assert figures(run) == {"comparison", *grids}


def test_csv_has_published_values(run):
    write(run)
    table = rows(run)
    assert not any("seconds" in column for column in table[0])
    assert (table[0]["network"], table[0]["temperature"], table[0]["correct"]) == ("baseline", "none", "99")
    found = {(row["network"], row["attack"]): row for row in table}
    row = found["student", "carlini_wagner_l2"]
    assert (row["average_distance"], row["average_published_distance"]) == ("2.500000", "2.200000")
    assert found["baseline", "fgsm"]["average_published_success"] == "0.420000"
    assert found["student", "fgsm"]["average_published_distance"] == ""
    assert found["student", "deepfool"]["average_distance"] == ""


def test_markdown_names_case_and_network_in_each_column(run):
    header, *_, deepfool, _ = reading.markdown(pages.table(run))
    assert header[:5] == [
        "attack", "distance", "best case, undistilled", "best case, distilled", "average case, undistilled"
    ]  # fmt: skip
    assert deepfool[2:4] == ["1 (published 2.11)", "1.25 (90.0 %)"]


@pytest.mark.parametrize(
    ("settings", "temperature", "expected"),
    [
        ({"dataset": "digits"}, 100.0, ["2", "2.5"]),
        ({"dataset": "cifar10"}, 100.0, ["2\npublished 0.33", "2.5\npublished 0.6"]),
        ({}, 20.0, ["2\npublished 1.76", "2.5"]),
    ],
)
def test_published_values_belong_to_data_set_and_temperature(tmp_path, settings, temperature, expected):
    save_run(tmp_path, "carlini", both(*L2, temperature=temperature), **settings)
    assert write(tmp_path).sections["distances"].rows[1][4:6] == expected
    published = "average_published_distance" in rows(tmp_path)[0]
    assert published == ("published" in expected[0])


def test_ratio_is_of_attacks_that_are_made_to_succeed(tmp_path):
    records = both(*L2, ratio=1.5) + both(*L0, student=FAIL) + both("fgsm", "linf")
    save_run(tmp_path, "carlini", records, dataset="digits")
    assert write(tmp_path).sections["distances"].column("ratio") == ["", "1.50", ""]


def test_stopped_run_has_what_was_measured(tmp_path):
    save_run(tmp_path, "carlini", both(*L2)[:1])
    page = write(tmp_path)
    cases = [f"{case} case, undistilled" for case in ("best", "average", "worst")]
    assert page.sections["distances"].rows[0] == ["attack", "distance", *cases]
    assert page.sections["figures"].figures == ["comparison"]


def test_no_attack_succeeded(tmp_path):
    save_run(tmp_path, "carlini", both(*L2, base=FAIL, student=FAIL), dataset="digits")
    page = write(tmp_path)
    assert page.sections["distances"].rows[1][2] == "none\n0.0 %"
    assert "figures" not in page.sections


def test_single_image_is_shown(tmp_path):
    save_run(tmp_path, "carlini", both(*L2, base=(1, 9, 1), student=(1, 9, 1), n=9))
    save_clean(tmp_path, size=1, shape=(5, 5, 3), wrong=())
    save_images(tmp_path, "student_carlini_wagner_l2", targeted=True)
    assert write(tmp_path).sections["examples"].figures == ["grid_student_carlini_wagner_l2"]


def test_comparison_figure_has_a_line_from_best_to_worst():
    base, student = both(*L2)
    new = carlini("baseline", "new", "l7", (100, None, None))
    figure = page_of_carlini.comparison_figure([{"baseline": base, "student": student}, {"baseline": new}], "mnist")
    assert figure is not None
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["C&W L2 (L2)", "new (l7)"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "undistilled", "undistilled, published", "distilled", "distilled, published"
    ]  # fmt: skip
    # A mark and a line each.
    assert len(axes.lines) == 2 * 5
    np.testing.assert_allclose(np.asarray(axes.lines[2].get_xdata()), [1.76])
    np.testing.assert_allclose(np.asarray(axes.lines[3].get_xdata()), [1.36, 2.60])
    np.testing.assert_allclose(np.asarray(axes.lines[9].get_xdata()), [1, 1])
    assert page_of_carlini.comparison_figure([{"baseline": carlini("baseline", *L2, FAIL)}], "digits") is None
    assert page_of_carlini.comparison_figure([], "mnist") is None
