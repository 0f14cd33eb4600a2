import csv

import numpy as np
import pytest

from ddjax import runs


def student(workdir):
    return workdir / "checkpoints" / "seed0_T20" / "student"


def test_attacks_a_checkpoint_and_repeats_nothing(launch, distilled, tmp_path):
    arguments = [f"--checkpoint={student(distilled)}", f"--workdir={tmp_path}", "--num_examples=20"]
    attacks = ["--attack=jsma:score_space=tempered,temperature=20,gamma=0.2", "--attack=fgsm:epsilon=0.3"]
    done = launch("attack", *arguments, *attacks)
    assert "fgsm:epsilon=0.3: success" in done.stdout
    records = runs.read_results(tmp_path)
    assert [record["attack"] for record in records] == [
        "jsma:score_space=tempered,temperature=20,gamma=0.2",
        "fgsm:epsilon=0.3",
    ]
    jsma, fgsm = records
    assert jsma["n"] + jsma["misclassified"] == 20 * 9
    assert jsma["l0_values_worst"] is None or jsma["l0_values_worst"] <= 12
    assert fgsm["n"] + fgsm["misclassified"] == 20
    assert fgsm["linf_worst"] is None or fgsm["linf_worst"] <= 0.3 + 1e-6
    exported = np.load(tmp_path / "adversarial" / "0_jsma.npz")
    assert set(exported) == {"inputs", "adversarial", "labels", "targets", "success"}
    assert not (tmp_path / "adversarial" / "0_jsma").exists()
    saved = np.load(tmp_path / "images" / "0_jsma.npz")
    np.testing.assert_array_equal(exported["adversarial"], saved["images"])
    assert saved["images"].shape == (180, 8, 8, 1)
    assert (tmp_path / "report.html").exists()
    before = (tmp_path / "results.jsonl").read_bytes()
    low = launch("attack", *arguments, *attacks, "--attack=fgsm:epsilon=0.3,forward=bfloat16")
    assert "in bfloat16 it believed" in low.stdout
    after = (tmp_path / "results.jsonl").read_bytes()
    assert after.startswith(before)
    assert len(after.splitlines()) == 3
    assert (
        "--targets: auto there, next now" in launch("attack", *arguments, *attacks, "--targets=next", ok=False).stderr
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--attack=jsma"], "--checkpoint must name"),
        (["--checkpoint=CHECKPOINT"], "--attack must name at least one attack; known: carlini_wagner_l0"),
        (["--checkpoint=CHECKPOINT", "--attack=pgd9"], "unknown attack 'pgd9'; known: carlini_wagner_l0"),
        (["--checkpoint=CHECKPOINT", "--attack=jsma:eps=1"], "jsma has no setting 'eps'; known: theta=None, gamma="),
        (
            ["--checkpoint=CHECKPOINT", "--attack=jsma:gamma=2.0"],
            "gamma must be a finite number at least 0 and at most 1",
        ),
        (["--checkpoint=CHECKPOINT", "--attack=pgd:norm=l7"], "unknown norm 'l7'; known: linf, l2, l1"),
        (["--checkpoint=CHECKPOINT", "--attack=ddn:num_steps=1.5"], "num_steps must be a whole number, got 1.5"),
        (["--checkpoint=CHECKPOINT", "--attack=deepfool", "--targets=all"], "deepfool has no targeted form"),
        (["--checkpoint=/nothing/here", "--attack=fgsm"], "there is no checkpoint directory /nothing/here"),
        (["--checkpoint=CHECKPOINT/../..", "--attack=fgsm"], "holds no checkpoint; it contains"),
        (["--checkpoint=CHECKPOINT", "--attack=fgsm", "--dataset=no_such_set"], "no_such_set"),
    ],
)
def test_bad_use_ends_in_one_line(launch, distilled, tmp_path, arguments, message):
    arguments = [argument.replace("CHECKPOINT", str(student(distilled))) for argument in arguments]
    done = launch("attack", *arguments, f"--workdir={tmp_path / 'run'}", ok=False)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "results.jsonl").exists()


def test_a_data_set_that_does_not_fit_the_network(launch, distilled, tmp_path, tfds_data_dir):
    done = launch(
        "attack",
        f"--checkpoint={student(distilled)}",
        "--attack=fgsm",
        "--dataset=mnist",
        f"--data_dir={tfds_data_dir}",
        f"--workdir={tmp_path / 'run'}",
        ok=False,
    )
    assert "takes inputs of shape (8, 8, 1) in 10 classes; mnist has (28, 28, 1) in 10" in done.stderr


def test_all_targets_give_cases_and_a_proof_brackets_the_truth(launch, tmp_path_factory, tmp_path):
    # Trained well enough that most images are classified correctly, and can be attacked.
    trained = tmp_path_factory.mktemp("train")
    launch("train", "--num_train=600", "--num_test=100", "--epochs=8", f"--workdir={trained}")
    (network,) = (trained / "checkpoints").glob("*/*")
    again = [f"--checkpoint={network}", f"--workdir={tmp_path}", "--num_examples=10", "--targets=all"]
    done = launch(
        "attack",
        *again,
        "--attack=carlini_wagner_l2:num_steps=30,search_steps=3,learning_rate=0.1,initial_const=0.1",
        "--attack=pgd:epsilon=0.5,num_steps=5,random_start=false,temperature=2",
        "--certify",
        "--certify_method=crown-ibp",
    )
    carlini, pgd, linf, l2 = runs.read_results(tmp_path)
    for record in (carlini, pgd):
        assert record["best_n"] == record["worst_n"] == 10
        assert record["average_n"] == 90
        assert record["best_successes"] >= record["worst_successes"]
        assert record["mean_gradients"] > 0
    assert carlini["best_success"] == 1
    assert carlini["best_l2"] <= carlini["average_l2"]
    assert 0 < pgd["linf_worst"] <= 0.5 + 1e-6
    for record, norm in ((linf, "linf"), (l2, "l2")):
        arrays = np.load(tmp_path / "images" / f"certify_{norm}.npz")
        right = np.load(tmp_path / "images" / "clean.npz")
        right = right["predictions"] == right["labels"]
        assert record["n"] == right.sum()
        assert record["proved"] == (arrays["proved"][right] > 0).sum() > 0
        assert record["violations"] == 0
        assert (arrays["proved"] <= arrays["attacked"]).all()
        assert (arrays["proved"][~right] == 0).all()
    assert "l2 image 9 of class" in done.stdout
    assert "linf image 0 of class" in done.stdout
    page = (tmp_path / "report.html").read_text()
    assert "certify_l2" in page
    # A closer attack later on: the proof stays, the comparison is made again.
    launch("attack", *again, "--attack=ddn:num_steps=60", "--certify", "--certify_method=crown-ibp")
    records = runs.read_results(tmp_path)
    assert [record["measure"] for record in records] == ["attack"] * 2 + ["certify"] * 2 + ["attack"] + ["certify"] * (
        len(records) - 5
    )
    newest = [record for record in records if record["measure"] == "certify" and record["norm"] == "l2"][-1]
    assert newest["mean_proved"] == l2["mean_proved"]
    assert newest["mean_attacked"] <= l2["mean_attacked"]
    columns = next(csv.reader((tmp_path / "table.csv").open()))
    assert "best_l2" in columns
    assert not any(column.startswith("seconds") for column in columns)
