import csv

import numpy as np
import pytest

from ddjax import runs

SIZES = ["--num_examples=20", "--num_calibration=100", "--batch_size=20", "--quick", "--budget_l2=1.5"]
FGSM, CARLINI = "fgsm:epsilon=0.3", "carlini_wagner_l2:num_steps=10,search_steps=2,learning_rate=0.2,initial_const=0.1"
# Of the detectors one that finds something on such small images.
DEFENSES = ["none", "squeezing:squeezers=bit_depth_1+bit_depth_3", "feature_distillation_grid:limit=0.01"]
# Most of the time goes into compiling attacks behind defenses: one of the two attacks is added behind some of them.
SOME = DEFENSES[:2]


@pytest.fixture(scope="module")
def pair(launch, tmp_path_factory):
    """Teacher and student, trained well enough that most images are classified correctly."""
    workdir = tmp_path_factory.mktemp("pair")
    launch("distill", "--temperature=20", "--num_train=600", "--num_test=100", "--epochs=8", f"--workdir={workdir}")
    return [workdir / "checkpoints" / "seed0_T20" / role for role in ("teacher", "student")]


@pytest.fixture(scope="module")
def matrix(launch, pair, tmp_path_factory):
    """A run to which a second command added an attack: its directory, that command, and what the first one wrote."""
    workdir = tmp_path_factory.mktemp("evaluate") / "run"
    common = [*(f"--checkpoint={directory}" for directory in pair), *SIZES, f"--workdir={workdir}"]
    first = launch("evaluate", *common, f"--attack={CARLINI}", *(f"--defense={defense}" for defense in DEFENSES))
    records = (workdir / "results.jsonl").read_bytes()
    second = [*common, f"--attack={CARLINI}", f"--attack={FGSM}", *(f"--defense={defense}" for defense in SOME)]
    launch("evaluate", *second)
    return workdir, second, (first.stdout, records)


def of(records, measure, **fields):
    return [r for r in records if r["measure"] == measure and all(r[key] == value for key, value in fields.items())]


def test_every_cell_is_there_and_the_worst_case_is_no_better_than_any(matrix):
    workdir, _, (printed, _) = matrix
    records = runs.read_results(workdir)
    cells = of(records, "evaluate")
    keys = {(r["network"], r["defense"], r["attack"], r["aware"]) for r in cells}
    assert len(keys) == len(cells) == 2 * (len(DEFENSES) + len(SOME)) * 2
    for record in of(records, "worst"):
        same = {name: record[name] for name in ("network", "defense")}
        (clean,) = of(records, "clean", **same)
        of_attacks = [r for r in of(records, "evaluate", **same) if r["attack"] in record["attacks"]]
        below = [r["accuracy"] for r in of_attacks if r["aware"] <= record["aware"]]
        assert record["accuracy"] <= min([clean["accuracy"], *below])
    # What is made on the bare network is made once.
    unaware = of(records, "evaluate", aware=False)
    assert len({r["file"] for r in unaware}) == len({(r["network"], r["attack"]) for r in unaware}) == 2 * 2
    assert f"| student T=20 | {DEFENSES[2]} |" in printed


def test_who_knows_the_defense_does_more(matrix):
    records = runs.read_results(matrix[0])
    worst = {(r["network"][:7], r["defense"], r["aware"]): r["accuracy"] for r in of(records, "worst")}
    for defense in DEFENSES:
        assert worst["teacher", defense, True] <= worst["teacher", defense, False]
    assert worst["student", "none", True] <= worst["student", "none", False]
    # On the bare network, and behind each transform as soon as it is known.
    assert worst["teacher", "none", False] < 0.3
    assert worst["teacher", DEFENSES[2], True] < 0.5
    cells = {(r["network"][:7], r["defense"], r["attack"], r["aware"]): r for r in of(records, "evaluate")}
    accuracy = {cell: record["accuracy"] for cell, record in cells.items()}
    # The gradients that distillation took come back at its temperature.
    assert accuracy["student", "none", FGSM, True] < accuracy["student", "none", FGSM, False] - 0.3
    # A detector finds some of the images made without it, and more of those made against it pass.
    assert cells["student", DEFENSES[1], CARLINI, False]["detection"] > 0.2
    assert accuracy["student", DEFENSES[1], CARLINI, True] < accuracy["student", DEFENSES[1], CARLINI, False]


def test_a_cell_is_what_its_files_say(matrix):
    workdir = matrix[0]
    records = runs.read_results(workdir)
    clean = np.load(workdir / "images" / "clean.npz")
    for record in of(records, "evaluate"):
        judged = np.load(workdir / record["judged"])
        assert record["accuracy"] == pytest.approx(1 - judged["broken"].mean())
        images = np.load(workdir / record["file"])
        if record["attack"] == FGSM:
            moved = np.abs(images["images"] - clean["images"][images["rows"]] / np.float32(255))
            assert moved.max() <= 0.3 + 1e-5
        elif record["mean_l2"] is not None:
            assert record["mean_l2"] <= 1.5 + 1e-4
    for record in of(records, "clean", defense=DEFENSES[1]):
        scores = np.load(workdir / record["scores"])["scores"]
        assert record["false_positive"] == pytest.approx(np.mean(scores > record["threshold"]))
        assert record["false_positive_n"] == 20
    for record in of(records, "evaluate", defense=DEFENSES[1]):
        assert record["auc"] is None or 0 <= record["auc"] <= 1


def test_report_and_a_second_run_that_adds_an_attack(launch, matrix):
    workdir, second, (_, before) = matrix
    rows = list(csv.DictReader((workdir / "matrix.csv").open()))
    assert [(row["network"], row["defense"]) for row in rows] == [
        (network, defense) for network in ("teacher T=20", "student T=20") for defense in DEFENSES
    ]
    assert all(float(row["clean"]) >= float(row["worst aware"]) for row in rows)
    page = (workdir / "report.html").read_text()
    for part in ("matrix", "gallery", "AUC"):
        assert part in page
    after = (workdir / "results.jsonl").read_bytes()
    assert after.startswith(before)
    added = runs.read_results(workdir)[before.count(b"\n") :]
    assert {(r["measure"], r["defense"]) for r in added} == {(m, d) for m in ("evaluate", "worst") for d in SOME}
    assert {r["attack"] for r in of(added, "evaluate")} == {FGSM}
    launch("evaluate", *second)
    assert (workdir / "results.jsonl").read_bytes() == after


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--checkpoint must name"),
        (["--checkpoint=PAIR"], "--attack must name at least one attack; known: carlini_wagner_l0"),
        (["--checkpoint=PAIR", "--checkpoint=PAIR", "--attack=ddn"], "--checkpoint must be different ones"),
        (["--checkpoint=PAIR", "--attack=ddn", "--defense=prayer"], "unknown defense 'prayer'; known: activation"),
        (
            ["--checkpoint=PAIR", "--attack=ddn", "--defense=median:rows=2"],
            "no setting 'rows'; known: height=2, width=2",
        ),
        (["--checkpoint=PAIR", "--attack=ddn", "--defense=none:a=1"], "no setting 'a'; known: none"),
        (["--checkpoint=PAIR", "--attack=ddn", "--defense=median:height=0"], "sides of at least 1, got 0 x 2"),
        (["--checkpoint=PAIR", "--attack=ddn", "--defense=squeezing:squeezers=blur"], "unknown squeezer 'blur'"),
        (["--checkpoint=PAIR", "--attack=ddn", "--defense=squeezing"], "nothing is published for digits"),
        (["--checkpoint=PAIR", "--attack=ddn", "--defense=thermometer"], "which this network does not take"),
        (
            ["--checkpoint=PAIR", "--attack=ddn", "--defense=squeezing:squeezers=median_2_2,false_positive_rate=1"],
            "false_positive_rate must be a finite number at least 0 and below 1, got 1",
        ),
        (["--checkpoint=PAIR", "--attack=ddn", "--budget_l2=-1"], "--budget_l2 must be a finite number above 0"),
        (["--checkpoint=PAIR", "--attack=ddn", "--samples=0"], "must be at least 1"),
    ],
)
def test_bad_use_ends_in_one_line(launch, pair, tmp_path, arguments, message):
    arguments = [argument.replace("PAIR", str(pair[0])) for argument in arguments]
    done = launch("evaluate", *arguments, f"--workdir={tmp_path / 'run'}", ok=False)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "results.jsonl").exists()


def test_lights_are_red_on_the_distilled_network(launch, pair, tmp_path):
    command = [f"--checkpoint={pair[1]}", "--masking", "--num_examples=60", "--batch_size=60", "--num_calibration=100"]
    command += ["--num_queries=60", "--substitute_epochs=10", f"--workdir={tmp_path}/run"]
    done = launch("evaluate", *command)
    records = runs.read_results(tmp_path / "run")
    assert of(records, "masking")[0]["color"] == "red"
    assert len(of(records, "light")) == 6
    assert "| student T=20 | none |" in done.stdout
    assert "🔴" in done.stdout
    page = (tmp_path / "run" / "report.html").read_text()
    assert of(records, "light")[0]["explanation"] in page
    assert launch("evaluate", *command).stdout == done.stdout
