"""The page of `launch.attack`, from synthetic records."""

import csv
from typing import Any

import numpy as np
import pytest

from ddjax import figures, report
from ddjax.report import attack as attack_page
from tests.report import synthetic
from tests.report.synthetic import attack, certify, files


@pytest.fixture
def run(tmp_path):
    records = [
        attack(),
        attack("fgsm:epsilon=0.01", successes=0),
        certify(),
        attack("jsma", "all", successes=97, l0=5.0),
        certify("l2", proved=0, attacked=0),
    ]
    synthetic.save_run(tmp_path, "attack", records)
    synthetic.save_clean(tmp_path)
    synthetic.save_images(tmp_path, "0_pgd", targeted=False)
    synthetic.save_images(tmp_path, "1_fgsm", targeted=False, success=False)
    synthetic.save_images(tmp_path, "3_jsma", targeted=True)
    labels = np.arange(4)
    linf = {"proved": np.array([0.01, 0.0, 0.02, 0.03]), "attacked": np.array([0.05, 0.04, np.inf, 0.06])}
    np.savez(tmp_path / "images" / "certify_linf.npz", **linf, labels=labels)
    l2 = {"proved": np.zeros(4), "attacked": np.full(4, np.inf)}
    np.savez(tmp_path / "images" / "certify_l2.npz", **l2, labels=labels)
    return tmp_path


def test_page(run):
    page = report.write(run).read_text()
    for section in ("summary", "attacks", "best,-average-and-worst-case", "certified-distances", "examples"):
        assert f'<section id="{section}">' in page
    assert sorted(path.name for path in (run / "figures").iterdir()) == [
        "certify_linf.png", "gallery_0_pgd.png", "gallery_1_fgsm.png", "gallery_3_jsma.png"
    ]  # fmt: skip
    assert page.count('<img alt="') == page.count('src="data:image/png;base64,') == 4
    assert "<td>90.0 %<span class=ends>82.6 to 94.5</span><span class=ends>n = 100</span></td>" in page
    assert "<td>1.5<span class=ends>median 1.35</span><span class=ends>worst 3</span></td>" in page
    assert "L0, values" not in page
    assert '<th colspan="4" style="text-align: center">worst case</th>' in page
    assert "cpu &lt;&amp;&gt;" in page
    for outside in ('src="http', "<script", "<link", "url(", "@import"):
        assert outside not in page


def test_same_bytes_again(run):
    report.write(run)
    first = files(run)
    report.write(run)
    assert files(run) == first


def test_table_has_no_seconds(run):
    report.write(run)
    with (run / "table.csv").open() as file:
        pgd, fgsm, linf, jsma, _ = csv.DictReader(file)
    assert not any("seconds" in column for column in pgd)
    assert (pgd["success"], pgd["successes"], pgd["l2_worst"]) == ("0.900000", "90", "3.000000")
    assert (fgsm["success"], fgsm["l2_mean"]) == ("0.000000", "")
    assert (linf["measure"], linf["mean_proved"], linf["success"]) == ("certify", "0.012300", "")
    assert (jsma["worst_l0_pixels"], pgd["worst_l0_pixels"]) == ("10.000000", "")


def test_values_count_apart_from_pixels_where_they_differ(tmp_path):
    synthetic.save_run(tmp_path, "attack", [attack() | {"l0_values_mean": 60.0}])
    assert "<th>L0, values</th>" in report.write(tmp_path).read_text()


@pytest.mark.parametrize("records", [[], [attack(n=0, successes=0)]])
def test_nothing_measured(tmp_path, records):
    synthetic.save_run(tmp_path, "attack", records)
    page = report.write(tmp_path).read_text()
    assert "No attack has been measured on a correctly classified image yet." in page
    assert "<img" not in page
    assert report.readme_table(tmp_path).count("\n") == 1


def test_stopped_run_without_its_images(run):
    report.write(run)
    (run / "images" / "clean.npz").unlink()
    (run / "images" / "certify_linf.npz").unlink()
    page = report.write(run).read_text()
    assert page.count("Nothing to show yet") == 2
    assert not (run / "figures" / "certify_linf.png").exists()


def test_markup_is_escaped(tmp_path):
    synthetic.save_run(tmp_path, "attack", [attack("pgd:<b>&=1")], class_names=["<0>"])
    page = report.write(tmp_path).read_text()
    assert "<b>" not in page
    assert "&lt;b&gt;&amp;=1" in page


def test_single_image(tmp_path):
    synthetic.save_run(
        tmp_path, "attack", [attack("jsma", "all", successes=1, n=1), certify(proved=1, attacked=1, n=1)]
    )
    synthetic.save_clean(tmp_path, size=1, shape=(5, 4, 3), wrong=())
    synthetic.save_images(tmp_path, "0_jsma", targeted=True)
    np.savez(tmp_path / "images" / "certify_linf.npz", proved=[0.1], attacked=[0.2], labels=[0])
    assert report.write(tmp_path).read_text().count("<img") == 2


def test_only_misclassified_images(tmp_path):
    synthetic.save_run(tmp_path, "attack", [attack(n=0, successes=0)])
    synthetic.save_clean(tmp_path, size=2, wrong=(0, 1))
    synthetic.save_images(tmp_path, "0_pgd", targeted=False)
    assert "Nothing to show yet" in report.write(tmp_path).read_text()


def test_readme_table(run):
    header, _, pgd, fgsm, jsma = report.readme_table(run).split("\n")
    assert header.startswith("| attack | targets | success | after 8-bit rounding | mean L0, pixels |")
    assert pgd == "| pgd:epsilon=0.3 | untargeted | 90.0 % [82.6, 94.5] | 90.0 % | 20 | 1.5 | 0.3 |"
    assert fgsm.endswith("| 0.0 % [0.0, 3.7] | 0.0 % |  |  |  |")
    assert "| all targets |" in jsma


def test_without_the_launchers_name_it_stays_a_plain_table(run):
    config = (run / "config.json").read_text()
    (run / "config.json").write_text(config.replace('"launcher": "attack", ', ""))
    page = report.write(run).read_text()
    assert 'id="summary"' not in page
    assert "<th>misclassified</th>" in page
    assert report.readme_table(run).startswith("| measure | attack |")


def test_conclusion_names_the_strongest():
    said = attack_page.conclude(
        [attack("a", successes=95, l2=2.0), attack("b", successes=93, l2=1.0), attack("c", successes=5, l2=0.1)]
    )
    assert "Untargeted: of 3 attacks a succeeds most often, in 95.0 % of 100 attempts." in said
    # c is nearer on the few images it reaches, which says nothing.
    assert "Among the 2 that succeed about as often" in said
    assert "b in L2 (1)" in said
    assert "robustness" not in said
    assert "8 bits" not in said


def test_conclusion_with_one_that_stands_out_and_one_alone():
    said = attack_page.conclude(
        [attack("a", successes=95), attack("b", successes=5), attack("c", "next", successes=50)]
    )
    assert "the others succeed clearly less often" in said
    assert (
        "The next class: c succeeds in 50.0 % of 100 attempts, at a mean distance of 20 in L0, 1.5 in L2 and 0.3"
        in said
    )


def test_failure_is_no_robustness():
    said = attack_page.conclude([attack("a", successes=0), attack("b", successes=98)])
    assert "a never succeeds. That alone is no robustness" in said
    assert "The same network is fooled by b in 98.0 % of the attempts." in said
    alone = attack_page.conclude([attack("a", successes=0), attack("b", successes=0)])
    assert "a and b never succeed." in alone
    assert "fooled" not in alone
    assert "most often" not in alone


def test_rounding_is_told_where_it_matters():
    said = attack_page.conclude([attack("a", successes=98, rounded=10), attack("b", successes=98, rounded=97)])
    assert "lose their effect: a from 98.0 % to 10.0 %." in said


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (certify(), "the attacks succeed on 100, at a mean of 0.0456. No attack is nearer than a proof."),
        (certify(violations=3), "On 3 of the images an attack is nearer than the proof allows"),
        (certify(attacked=0), "no attack succeeded on any"),
        (certify("l2", proved=0), "In L2, crown proves a distance for 0 of 100 images; the attacks"),
    ],
)
def test_conclusion_on_proofs(record, expected):
    said = attack_page.conclude([attack(), record])
    assert expected in said
    assert ("No attack is nearer" in said) == (record["violations"] == 0 and record["attacked"] > 0)


def test_brackets():
    figure = figures.brackets(np.array([0.1, 0.0, 0.2]), np.array([0.3, np.inf, 0.15]), "Linf")
    assert figure is not None
    (axes,) = figure.axes
    assert axes.get_yscale() == "log"
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [
        "proved: none is nearer", "nothing proved", "nearest found by an attack", "no attack succeeded",
        "attack nearer than the proof",
    ]  # fmt: skip
    assert figures.brackets(np.zeros(2), np.full(2, np.inf), "L2") is None


def test_strip_tells_where_each_attempt_led():
    images = np.random.default_rng(0).random((3, 4, 4, 1))
    examples: dict[str, Any] = {
        "clean": images, "adversarial": images[::-1], "labels": np.array([7, 1, 2]), "predictions": np.array([3, 1, 0]),
        "success": np.array([True, False, False]), "targets": np.array([3, 4, 5]),
    }  # fmt: skip
    figure = figures.strip(examples, [str(digit) for digit in range(10)], "jsma $x")
    assert figure is not None
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["7 to 3", "✗ 1 to 1\nnot 4", "✗ 2 to 0\nnot 5"]
    assert len(axes.patches) == 3
    assert figures.to_png(figure).startswith(b"\x89PNG")
    assert figures.strip({name: array[:0] for name, array in examples.items()}, [], "none") is None


def test_gallery_shows_each_class_and_no_misclassified_image():
    labels = np.array([0, 0, 1, 1, 2])
    correct = np.array([False, True, True, True, True])
    chosen = attack_page._choose(labels, np.arange(5), correct)
    assert chosen.tolist() == [1, 2, 4, 3]
    many = attack_page._choose(np.repeat(labels, 9), np.repeat(np.arange(5), 9), correct)
    assert (many // 9).tolist() == [1, 2, 4, 3]
    assert len(set(many % 9)) == 4
