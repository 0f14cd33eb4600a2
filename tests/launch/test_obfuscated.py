import shutil

import numpy as np
import pytest

from ddjax import runs

SIZES = ["--num_examples=12", "--num_clean=40", "--num_steps=4", "--samples=2", "--num_held_out=168", "--batch_size=20"]
SIZES += ["--num_queries=40", "--substitute_epochs=2", "--dataset=digits", "--quick"]
TRAINING = ["--dataset=digits", "--num_train=300", "--num_test=100", "--epochs=6"]
ROWS = ["none", "thermometer", "lid", "quilting"]
# Lights are the longest part of a row.
LIT = "thermometer"
TRAINED = {
    # The recipe's own network is larger than such small images need.
    "undefended": ["--recipe=digits", *TRAINING],
    "thermometer_adversarial": ["--recipe=thermometer_adversarial_quick", *TRAINING],
    "quilting": ["--recipe=quilting_quick", *TRAINING, "--epochs=2"],
}


@pytest.fixture(scope="module")
def trained(launch, tmp_path_factory):
    """Networks for digits, where `launch.obfuscated` looks for them."""
    directory = tmp_path_factory.mktemp("runs")
    for name, arguments in TRAINED.items():
        launch("train", *arguments, f"--workdir={directory}/train_{name}_quick")
    # To the launcher any network of codes will do.
    shutil.copytree(directory / "train_thermometer_adversarial_quick", directory / "train_thermometer_quick")
    return directory


@pytest.fixture(scope="module")
def table(launch, trained, tmp_path_factory):
    """A run of two commands, the second of which adds rows without lights; with what the first one wrote."""
    workdir = tmp_path_factory.mktemp("obfuscated") / "run"
    command = [f"--runs={trained}", f"--workdir={workdir}", *SIZES]
    launch("obfuscated", *command, f"--defense={LIT}")
    before = (workdir / "results.jsonl").read_bytes()
    done = launch("obfuscated", *command, "--nolights", *(f"--defense={row}" for row in ROWS))
    return workdir, before, done.stdout


def of(records, measure, **fields):
    return [r for r in records if r["measure"] == measure and all(r[key] == value for key, value in fields.items())]


def test_every_row_is_whole(table):
    workdir, before, printed = table
    records = runs.read_results(workdir)
    assert (workdir / "results.jsonl").read_bytes().startswith(before)
    for row in ROWS:
        for measure in ("network", "clean", "gradient", "transfer"):
            assert len(of(records, measure, row=row)) == 1, (row, measure)
        assert len(of(records, "masking", row=row)) == (row == LIT)
        assert len(of(records, "light", row=row)) == 6 * (row == LIT)
        (clean,) = of(records, "clean", row=row)
        assert clean["accuracy_n"] == 40
        unaware, aware = (of(records, "worst", row=row, aware=knows)[0]["accuracy"] for knows in (False, True))
        cells = of(records, "attack", row=row)
        assert aware == min(aware, unaware, *(cell["accuracy"] for cell in cells))
        assert f"| {row} |" in printed
    attacks = {record["attack"] for record in of(records, "attack", row="thermometer", aware=True)}
    assert attacks == {"pgd margin", "pgd cross_entropy", "ls_pga", "dga"}
    attacks = {record["attack"] for record in of(records, "attack", row="quilting", aware=True)}
    assert attacks == {"pgd margin", "pgd cross_entropy", "pgd margin, network"}
    assert (workdir / "report.html").exists()
    assert {path.stem for path in (workdir / "figures").iterdir()} == {"accuracy", "gallery"}


def test_images_are_within_the_radius(table):
    workdir, _, _ = table
    for record in of(runs.read_results(workdir), "attack", norm="linf"):
        clean = np.load(workdir / "images" / f"{record['row']}_clean.npz")["images"].astype(np.float32) / 255
        found = np.load(workdir / record["file"])["images"]
        assert np.abs(found - clean).max() <= 0.031 + 1e-5
        assert found.min() >= 0
        assert found.max() <= 1


def test_hidden_gradients_are_zero_until_one_looks_through(table):
    records = runs.read_results(table[0])
    for row in ("thermometer", "quilting"):
        (gradient,) = of(records, "gradient", row=row)
        assert gradient["zero_unaware"] == 1
        assert gradient["zero_aware"] < 1
        assert gradient["norm_aware"] > 0
    assert of(records, "light", row=LIT, name="zero_gradient")[0]["color"] in ("red", "unknown")
    (gradient,) = of(records, "gradient", row="none")
    assert gradient["zero_unaware"] == 0
    assert gradient["norm_unaware"] == pytest.approx(gradient["norm_aware"])


def test_a_finished_run_repeats_nothing(table, launch, trained):
    workdir, _, printed = table
    before = (workdir / "results.jsonl").read_bytes()
    command = [f"--runs={trained}", f"--workdir={workdir}", *SIZES, "--nolights", *(f"--defense={row}" for row in ROWS)]
    assert launch("obfuscated", *command).stdout == printed
    assert (workdir / "results.jsonl").read_bytes() == before


def test_another_network_is_refused(table, launch, trained, tmp_path):
    shutil.copytree(trained / "train_quilting_quick", tmp_path / "train_undefended_quick")
    command = [f"--runs={tmp_path}", f"--workdir={table[0]}", *SIZES, "--defense=none"]
    assert "is another network than the one" in launch("obfuscated", *command, ok=False).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--defense=hope"], "unknown defense 'hope'; known: none, thermometer"),
        (["--defense=none", "--defense=none"], "--defense must be different ones"),
        (["--epsilon=0"], "--epsilon must be a finite number above 0"),
        (["--defense=jpeg"], "python -m launch.train --recipe=undefended_quick"),
    ],
)
def test_bad_flags_end_in_one_line(launch, tmp_path, arguments, message):
    done = launch("obfuscated", "--quick", f"--runs={tmp_path}", f"--workdir={tmp_path}/run", *arguments, ok=False)
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()
