"""The page of `launch.transfer`, from synthetic records."""

import csv

import numpy as np
import pytest

from ddjax import figures, report
from ddjax.report import transfer as transfer_page
from tests.report import synthetic
from tests.report.synthetic import accuracy, files, transfer

PLAIN = {0: 5, 10: 55, 20: 92}
DISTILLED = {0: 1, 10: 15, 20: 51}


def curve(target, rates, targeted=False, **settings):
    return [transfer(target, targeted, kappa, transferred, **settings) for kappa, transferred in rates.items()]


@pytest.fixture
def run(tmp_path):
    records = [accuracy("source", 99), accuracy("plain", 98), accuracy("student", 97, 100.0)]
    for targeted in (False, True):
        records += curve("plain", PLAIN, targeted) + curve("distilled", DISTILLED, targeted)
    synthetic.save_run(tmp_path, "transfer", records)
    return tmp_path


def test_page(run):
    page = report.write(run).read_text()
    for section in ("summary", "figure", "rates"):
        assert f'<section id="{section}">' in page
    assert [path.name for path in (run / "figures").iterdir()] == ["transfer.png"]
    assert "<td>5.0 %<span class=ends>2.2 to 11.2</span><span class=ends>n = 100, L2 2</span>" in page
    assert "<span class=ends>published 3 %</span>" in page
    assert "99.0&nbsp;% (source), 98.0&nbsp;% (plain target) and 97.0&nbsp;% (distilled target)" in page


def test_same_bytes_again(run):
    report.write(run)
    first = files(run)
    report.write(run)
    assert files(run) == first


def test_table(run):
    report.write(run)
    with (run / "table.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["measure"] == "transfer"]
    assert len(rows) == 12
    assert (rows[0]["kappa"], rows[0]["rate"], rows[0]["published_rate"]) == ("0.000000", "0.050000", "0.030000")
    assert rows[1]["published_rate"] == ""


def test_readme_table(run):
    header, _, first, second, _ = report.readme_table(run).split("\n")
    assert header == "| κ | plain, untargeted | plain, targeted | distilled, untargeted | distilled, targeted |"
    assert first.startswith("| 0 | 5.0 % [2.2, 11.2]; published 3 % | 5.0 % [2.2, 11.2]; published 3 % | 1.0 %")
    assert "published" not in second


@pytest.mark.parametrize(("settings", "temperature"), [({"dataset": "digits"}, 100.0), ({}, 20.0)])
def test_published_curves_belong_to_their_setting(tmp_path, settings, temperature):
    synthetic.save_run(tmp_path, "transfer", curve("distilled", DISTILLED, temperature=temperature), **settings)
    assert "published" not in report.readme_table(tmp_path)
    assert "published 3 %" not in report.write(tmp_path).read_text()
    assert "published" not in (tmp_path / "table.csv").read_text()


def test_conclusion_reads_the_thresholds():
    said = transfer_page.conclude(curve("plain", PLAIN) + curve("distilled", DISTILLED), "mnist")
    assert (
        "To the plain network, untargeted: half transfer first at κ = 10 (published: 11) and nine tenths transfer "
        "first at κ = 20 (published: 21); the highest rate is 92.0 %, at κ = 20."
    ) in said
    assert "nine tenths transfer at no κ measured (published: 37)" in said
    assert "does not stop the untargeted transfer: half of it takes κ = 20 instead of 10" in said


@pytest.mark.parametrize(
    ("distilled", "expected"),
    [
        ({0: 0, 10: 2, 20: 30}, "Distillation keeps the targeted transfer below one half at every κ up to 20."),
        ({0: 4, 10: 60, 20: 90}, "does not hinder the targeted transfer: half of it takes κ = 10, 10 without."),
        ({0: 60, 10: 60, 20: 90}, "does not hinder the targeted transfer: half of it takes κ = 0, 10 without."),
    ],
)
def test_conclusion_compares(distilled, expected):
    said = transfer_page.conclude(curve("plain", PLAIN, True) + curve("distilled", distilled, True), "digits")
    assert expected in said
    assert said.count("Distillation") == 1
    assert "published" not in said


def test_conclusion_without_transfer_to_compare():
    said = transfer_page.conclude(curve("plain", {0: 0, 20: 0}) + curve("distilled", {0: 0, 20: 0}), "mnist")
    assert "Distillation" not in said
    assert "half transfer at no κ measured" in said


@pytest.mark.parametrize("records", [[], [accuracy("source", 99)], curve("plain", {0: 0}, n=0)])
def test_nothing_measured(tmp_path, records):
    synthetic.save_run(tmp_path, "transfer", records)
    page = report.write(tmp_path).read_text()
    assert "No transfer has been measured yet." in page
    assert "Nothing to show yet" in page


def test_stopped_run(tmp_path):
    synthetic.save_run(tmp_path, "transfer", curve("plain", {0: 1}) + curve("distilled", {0: 0, 5: 0}, True))
    report.write(tmp_path)
    assert report.readme_table(tmp_path).split("\n")[3] == "| 5 |  | 0.0 % [0.0, 3.7] |"


def test_figure():
    ours = {"target": "plain", "targeted": True, "published": False, "kappas": [0.0, 1.0], "rates": [0.0, 0.5]}
    ours |= {"lows": [0.0, 0.4], "highs": [0.1, 0.6]}
    theirs = {"target": "plain", "targeted": True, "published": True, "kappas": [0.0], "rates": [0.1]}
    figure = figures.transfer_curves([ours, theirs])
    assert figure is not None
    (axes,) = figure.axes
    labels = [str(line.get_label()) for line in axes.lines]
    assert labels == ["plain, targeted", "plain, targeted, published"]
    assert axes.lines[0].get_linestyle() == "--"
    np.testing.assert_allclose(np.asarray(axes.lines[0].get_ydata()), [0, 50])
    assert len(axes.collections) == 1
    assert figures.transfer_curves([theirs]) is None
