"""The page of `launch.carlini`, from synthetic records."""

import csv

import pytest

from ddjax import figures, published, report
from ddjax.report import carlini as carlini_page
from tests.report import synthetic
from tests.report.synthetic import accuracy, carlini, files

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
    synthetic.save_run(tmp_path, "carlini", records)
    # Few classes draw faster.
    synthetic.save_clean(tmp_path, classes=3)
    for network in ("baseline", "student"):
        for attack, _ in (L2, L0):
            synthetic.save_images(tmp_path, f"{network}_{attack}", targeted=True, classes=3)
    return tmp_path


def test_page(run):
    page = report.write(run).read_text()
    for section in ("summary", "distances", "figures", "costs", "examples"):
        assert f'<section id="{section}">' in page
    assert sorted(path.stem for path in (run / "figures").iterdir()) == [
        "comparison", "grid_baseline_carlini_wagner_l0", "grid_baseline_carlini_wagner_l2",
        "grid_student_carlini_wagner_l0", "grid_student_carlini_wagner_l2",
    ]  # fmt: skip
    assert "<td>2<span class=ends>published 1.76</span></td>" in page
    assert "<td>2.5<span class=ends>published 2.2</span></td>" in page
    assert "<td>1.25<span class=ends>published 1.25</span></td>" in page
    assert "<td>2 (42.0 %)<span class=ends>published 0.26 (42 %)</span></td>" in page
    assert "<td>none (0.0 %)<span class=ends>published none (0 %)</span></td>" in page
    assert page.index("<td>C&amp;W L0</td>") < page.index("<td>C&amp;W L2</td>") < page.index("<td>FGSM</td>")


def test_same_bytes_again(run):
    report.write(run)
    first = files(run)
    report.write(run)
    assert files(run) == first


def test_table(run):
    report.write(run)
    with (run / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert not any("seconds" in column for column in rows[0])
    assert (rows[0]["network"], rows[0]["temperature"], rows[0]["correct"]) == ("baseline", "none", "99")
    found = {(row["network"], row["attack"]): row for row in rows}
    row = found["student", "carlini_wagner_l2"]
    assert (row["average_distance"], row["average_published_distance"]) == ("2.500000", "2.200000")
    assert found["baseline", "fgsm"]["average_published_success"] == "0.420000"
    assert found["student", "fgsm"]["average_published_distance"] == ""
    assert found["student", "deepfool"]["average_distance"] == ""


def test_readme_table(run):
    lines = report.readme_table(run).split("\n")
    assert len(lines) == 6
    assert lines[0].startswith("| attack | distance | best, undistilled | best, distilled | average, undistilled |")
    assert lines[3].startswith("| C&W L2 | L2 | 1<br>published 1.36 | 1.25<br>published 1.7 | 2<br>published 1.76 |")
    assert lines[4] == "| DeepFool | L2 | 1<br>published 2.11 | 1.25 (90.0 %) |  |  |  |  |  |"


@pytest.mark.parametrize(("settings", "shown"), [({"dataset": "digits"}, False), ({"dataset": "cifar10"}, True)])
def test_published_values_belong_to_their_data_set(tmp_path, settings, shown):
    synthetic.save_run(tmp_path, "carlini", both(*L2), **settings)
    page = report.write(tmp_path).read_text()
    assert ("published 0.33" in page) == shown
    assert ("published" in page) == shown
    assert ("published" in (tmp_path / "table.csv").read_text()) == shown


def test_published_values_belong_to_their_temperature(tmp_path):
    synthetic.save_run(tmp_path, "carlini", both(*L2, temperature=20.0))
    table = report.readme_table(tmp_path)
    assert "published 1.76" in table
    assert "published 2.2" not in table


def test_conclusion_attacks_still_succeed():
    said = carlini_page.conclude(both(*L2) + both(*L0, ratio=1.5) + [accuracy("student", 97, 100.0)], "mnist")
    assert "Test accuracy: 97.0 % distilled at T = 100." in said
    assert "C&W L0 100.0 % (100.0 % without distillation)" in said
    assert "1.50 (C&W L0, published 1.19) and 1.25 (C&W L2, published 1.25) times as far away" in said
    assert "Conclusion: distillation does not stop these attacks; they go at most 1.50 times as far." in said
    assert "Other attacks" not in said


def test_conclusion_no_farther():
    said = carlini_page.conclude(both(*L2, ratio=0.9), "digits")
    assert "does not stop these attacks, nor do they have to go farther." in said
    assert "published" not in said


def test_conclusion_weaker_attacks_fail_on_their_own():
    records = both(*L2) + both("jsma_f", "l0_pixels", student=(9, 2, 0))
    records += both("deepfool", "l2", (100, None, None), (10, None, None))
    said = carlini_page.conclude(records, None)
    assert "JSMA-F from 100.0 % to 2.0 % and DeepFool from 100.0 % to 10.0 %" in said
    assert "those failures are the attacks' own" in said


def test_conclusion_distillation_holds():
    said = carlini_page.conclude(both(*L2, student=FAIL) + both("jsma_f", "l0_pixels", student=FAIL), "mnist")
    assert "Conclusion: distillation makes C&W L2 succeed clearly less often" in said
    assert "times as far" not in said
    assert "does not stop" not in said
    assert "attacks' own" not in said


def test_conclusion_undecided():
    said = carlini_page.conclude(both(*L2, base=(80, 60, 40), student=(80, 58, 40)), "mnist")
    assert "no clear difference" in said
    assert "not all of them succeed in 95 %" in said


def test_stopped_run(tmp_path):
    synthetic.save_run(tmp_path, "carlini", both(*L2)[:1])
    page = report.write(tmp_path).read_text()
    assert "Not measured on the distilled network: C&amp;W L2." in page
    assert "no conclusion" in page
    assert (tmp_path / "figures" / "comparison.png").exists()
    synthetic.save_run(tmp_path, "carlini", [])
    assert "no conclusion" in report.write(tmp_path).read_text()


def test_no_attack_succeeded(tmp_path):
    synthetic.save_run(tmp_path, "carlini", both(*L2, base=FAIL, student=FAIL))
    page = report.write(tmp_path).read_text()
    assert "no clear difference" in page
    assert "Nothing to show yet" in page


def test_single_image(tmp_path):
    synthetic.save_run(tmp_path, "carlini", both(*L2, base=(1, 9, 1), student=(1, 9, 1), n=9))
    synthetic.save_clean(tmp_path, size=1, shape=(5, 5, 3), wrong=())
    synthetic.save_images(tmp_path, "student_carlini_wagner_l2", targeted=True)
    assert 'alt="grid_student_carlini_wagner_l2"' in report.write(tmp_path).read_text()


def test_unknown_attack_is_escaped(tmp_path):
    synthetic.save_run(tmp_path, "carlini", both("<i>", "l7"))
    page = report.write(tmp_path).read_text()
    assert "<i>" not in page
    assert "<td>&lt;i&gt;</td><td>l7</td>" in page


def test_comparison_figure():
    row = {"norm": "L2", "attack": "a", "network": "undistilled"}
    ours = row | {"published": False, "best": 1.0, "average": 2.0, "worst": None}
    theirs = row | {"published": True, "best": 1.0, "average": None, "worst": None}
    figure = figures.comparison([ours, theirs, ours | {"norm": "Linf", "network": "distilled"}])
    assert figure is not None
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["L2", "Linf"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "undistilled", "undistilled, published", "distilled"
    ]  # fmt: skip
    assert figures.comparison([theirs]) is None
    assert figures.comparison([]) is None


def test_published_numbers():
    for networks in published.DISTANCES.values():
        assert set(networks["student"]) < set(networks["baseline"])
        assert all(case.percent == 100 for cases in networks["student"].values() for case in cases.values())
    mnist = published.DISTANCES["mnist"]
    assert mnist["student"]["carlini_wagner_l2"]["average"].distance == 2.2
    assert mnist["baseline"]["fgsm"]["worst"] == (None, 0)
    assert "average" not in mnist["baseline"]["deepfool"]
    for curves in published.TRANSFER.values():
        for points in curves.values():
            assert list(points) == sorted(points)
