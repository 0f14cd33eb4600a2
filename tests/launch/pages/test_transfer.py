"""The page of `launch.transfer`, from synthetic records."""

import numpy as np
import pytest

from launch import pages
from launch.pages import transfer as page_of_transfer
from tests.launch.pages import reading
from tests.launch.pages.synthetic import accuracy, rows, run_of, save_run, transfer, write

PLAIN = {0: 5, 10: 55, 20: 92}
DISTILLED = {0: 1, 10: 15, 20: 51}


def curve(target, rates, targeted=False, **settings):
    return [transfer(target, targeted, kappa, transferred, **settings) for kappa, transferred in rates.items()]


@pytest.fixture
def run(tmp_path):
    records = [accuracy("source", 99), accuracy("plain", 98), accuracy("teacher", 50), accuracy("student", 97, 100.0)]
    for targeted in (False, True):
        # Not in order.
        records += curve("distilled", DISTILLED, targeted) + curve("plain", PLAIN, targeted)[::-1]
    save_run(tmp_path, "transfer", records)
    return tmp_path


def test_page_has_rates_and_networks(run):
    page = write(run)
    rates = page.sections["rates"]
    assert rates.column("κ") == ["0", "10", "20"]
    assert rates.column("plain, untargeted")[:2] == [
        "5.0 %\n2.2 to 11.2\nn = 100\nL2 2\npublished 3 %", "55.0 %\n45.2 to 64.4\nn = 100\nL2 3"
    ]  # fmt: skip
    assert page.sections["networks"].column("network") == ["source", "plain target", "distilled target"]
    assert page.sections["networks"].column("test accuracy")[2] == "97.0 %\n91.5 to 99.0\nn = 100"
    assert page.sections["figure"].figures == ["transfer"]


def test_csv_has_published_rates(run):
    write(run)
    table = [row for row in rows(run) if row["measure"] == "transfer"]
    assert len(table) == 12
    first = next(row for row in table if row["target"] == "plain" and row["kappa"] == "0.000000")
    assert (first["rate"], first["published_rate"]) == ("0.050000", "0.030000")
    assert {row["published_rate"] for row in table if row["kappa"] == "10.000000"} == {""}


@pytest.mark.parametrize(("settings", "temperature"), [({"dataset": "digits"}, 100.0), ({}, 20.0)])
def test_published_curves_belong_to_their_setting(tmp_path, settings, temperature):
    save_run(tmp_path, "transfer", curve("distilled", DISTILLED, temperature=temperature), **settings)
    page = write(tmp_path)
    assert not any("published" in cell for row in page.sections["rates"].rows for cell in row)
    assert "published_rate" not in rows(tmp_path)[0]


@pytest.mark.parametrize("records", [[accuracy("source", 99)], curve("plain", {0: 0}, n=0)])
def test_nothing_measured(tmp_path, records):
    save_run(tmp_path, "transfer", records)
    page = write(tmp_path)
    assert not {"figure", "rates"} & page.sections.keys()


def test_curves_of_a_stopped_run_may_have_different_points(tmp_path):
    save_run(tmp_path, "transfer", curve("plain", {0: 1}) + curve("distilled", {0: 0, 5: 0}, True))
    write(tmp_path)
    assert reading.markdown(pages.table(tmp_path))[2] == ["5", "", "0.0 % (0.0 to 3.7, n = 100, L2 2.5)"]


def test_figure_has_measured_and_published_curves():
    records = curve("plain", {0: 0, 1: 50}, True)
    figure = page_of_transfer.curves_figure(run_of(records, {"flags": {"dataset": "mnist"}}))
    assert figure is not None
    (axes,) = figure.axes
    assert [line.get_label() for line in axes.lines] == ["plain, targeted", "plain, targeted, published"]
    assert axes.lines[0].get_linestyle() == "--"
    np.testing.assert_allclose(np.asarray(axes.lines[0].get_ydata()), [0, 50])
    np.testing.assert_allclose(np.asarray(axes.lines[1].get_ydata())[:2], [3, 22])
    assert len(axes.collections) == 1
    assert page_of_transfer.curves_figure(run_of([])) is None
