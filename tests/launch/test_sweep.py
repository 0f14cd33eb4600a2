import csv
import random
import signal
import time

import pytest

from ddjax import runs
from tests.launch.processes import SMALL

SWEEP = ["--temperatures=1,40", "--checkpoint_seconds=0", *SMALL]
COLUMNS = (
    "temperature,accuracy,accuracy_variation,jsma_success,jsma_tempered_success,fgsm_success,robustness,mean_abs_logit,"
    "zero_gradient_share,log10_adversarial_gradient"
)


@pytest.fixture(scope="module")
def finished(launch, tmp_path_factory):
    """A sweep that ran undisturbed."""
    workdir = tmp_path_factory.mktemp("sweep")
    launch("sweep", f"--workdir={workdir}", *SWEEP)
    return workdir


def test_writes_everything(finished):
    table = (finished / "table.csv").read_text()
    assert table.startswith(COLUMNS)
    rows = list(csv.DictReader(table.splitlines()))
    assert [row["temperature"] for row in rows] == ["none", "1", "40"]
    for row in rows:
        for name in COLUMNS.split(",")[1:]:
            assert row[name], name
        assert int(row["accuracy_n"]) == 100
        assert float(row["accuracy_low"]) <= float(row["accuracy"]) <= float(row["accuracy_high"])
    assert float(rows[2]["mean_abs_logit"]) > 1.5 * float(rows[1]["mean_abs_logit"])
    assert float(rows[2]["log10_adversarial_gradient"]) < float(rows[1]["log10_adversarial_gradient"])
    assert (finished / "report.html").stat().st_size > 10_000
    figures = {path.name for path in (finished / "figures").iterdir()}
    assert figures >= {"success.png", "accuracy.png", "gradients.png", "jsma_grid.png"}
    config = runs.read_config(finished)
    assert config["flags"]["temperatures"] == [1.0, 40.0]
    assert config["resolved"]["jsma_features"] == 12


def test_a_finished_sweep_measures_nothing_again_and_other_flags_are_refused(launch, finished):
    before = {name: (finished / name).read_bytes() for name in ("results.jsonl", "table.csv", "config.json")}
    launch("sweep", f"--workdir={finished}", *SWEEP)
    done = launch("sweep", f"--workdir={finished}", *SWEEP, "--seed=1", ok=False)
    assert "--seed: 0 there, 1 now" in done.stderr
    assert {name: (finished / name).read_bytes() for name in before} == before


def test_killed_again_and_again_it_ends_with_the_same_table(finished, launch, start, tmp_path):
    chance = random.Random(0)
    killed = 0
    for _ in range(2):
        process = start("sweep", f"--workdir={tmp_path}", *SWEEP)
        deadline = time.monotonic() + 60
        size = lambda: sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
        before = size()
        # From the moment it writes again, at any time within the next second.
        while size() == before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 1))
        killed += process.kill() == -signal.SIGKILL
    assert killed >= 1
    launch("sweep", f"--workdir={tmp_path}", *SWEEP)
    assert (tmp_path / "table.csv").read_bytes() == (finished / "table.csv").read_bytes()


def test_truncated_entries_of_the_compilation_cache_are_tolerated(launch, tmp_path):
    results = []
    for workdir in (tmp_path / "run", tmp_path / "again"):
        launch("train", f"--workdir={workdir}", *SMALL[:3], jax_compilation_cache_dir=str(tmp_path / "cache"))
        results.append(runs.read_results(workdir))
        entries = [path for path in (tmp_path / "cache").iterdir() if path.is_file()]
        assert entries
        for path in entries:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    assert results[0] == results[1]
