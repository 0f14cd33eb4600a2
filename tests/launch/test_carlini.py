import csv

import numpy as np
import pytest

from ddjax import runs
from tests.launch.processes import SMALL

ARGUMENTS = ["--num_train=600", "--num_test=100", "--epochs=8", "--num_examples=1", "--quick", "--temperature=20"]
ARGUMENTS += ["--num_steps=60"]


@pytest.fixture(scope="module")
def workdir(launch, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("carlini")
    launch("carlini", *ARGUMENTS, f"--workdir={workdir}")
    return workdir


def test_both_networks_meet_all_attacks(workdir):
    records = [record for record in runs.read_results(workdir) if record["measure"] == "carlini"]
    assert len({(record["attack"], record["network"]) for record in records}) == len(records) == 16
    for record in records:
        targeted = record["attack"] != "deepfool"
        assert record["n"] == (9 if targeted else 1)
        assert record["best_n"] == 1
        assert (record["worst_n"] == 1) if targeted else record["worst_n"] is None
        if record["attack"].startswith("carlini_wagner_l2"):
            assert record["average_success"] == 1
            assert record["best_distance"] <= record["average_distance"] <= record["worst_distance"]


def test_distances_are_those_of_the_images(workdir):
    clean = np.load(workdir / "images" / "clean.npz")
    saved = np.load(workdir / "images" / "student_carlini_wagner_linf.npz")
    change = np.abs(saved["images"] - clean["images"][saved["rows"]] / np.float32(255))
    record = next(
        r for r in runs.read_results(workdir) if r.get("attack") == "carlini_wagner_linf" and r["network"] == "student"
    )
    assert record["average_distance"] == pytest.approx(change.max((1, 2, 3))[saved["success"]].mean(), rel=1e-5)


def test_a_second_run_repeats_nothing_and_the_report_is_there(launch, workdir):
    before = (workdir / "results.jsonl").read_bytes()
    table = (workdir / "table.csv").read_bytes()
    done = launch("carlini", *ARGUMENTS, f"--workdir={workdir}")
    assert (workdir / "results.jsonl").read_bytes() == before
    assert (workdir / "table.csv").read_bytes() == table
    assert "C&W L2" in done.stdout
    assert "C&amp;W L2" in (workdir / "report.html").read_text()
    assert not any(column.startswith("seconds") for column in next(csv.reader((workdir / "table.csv").open())))


def test_too_many_examples(launch, tmp_path):
    done = launch("carlini", *SMALL[:3], "--num_examples=101", f"--workdir={tmp_path / 'run'}", ok=False)
    assert "num_examples must be from 1 to 100, the examples of digits (test) that there are, got 101" in done.stderr
    assert not (tmp_path / "run").exists()
