import numpy as np
import pytest

from ddjax import runs
from launch import attack


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
    saved = np.load(tmp_path / "images" / "0_jsma.npz")
    assert saved["images"].shape == (180, 8, 8, 1)
    assert (tmp_path / "report.html").exists()
    before = (tmp_path / "results.jsonl").read_bytes()
    launch("attack", *arguments, *attacks, "--attack=fgsm:epsilon=0.1")
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
        (["--checkpoint=CHECKPOINT"], "--attack must name at least one attack; known: fgsm, jsma"),
        (["--checkpoint=CHECKPOINT", "--attack=pgd9"], "unknown attack 'pgd9'; known: fgsm, jsma"),
        (["--checkpoint=CHECKPOINT", "--attack=jsma:eps=1"], "attack jsma has no setting 'eps'; known: theta, gamma"),
        (["--checkpoint=CHECKPOINT", "--attack=jsma:gamma=2.0"], "gamma is a share of the features"),
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
    assert "the network takes images of shape (8, 8, 1) in 10 classes; mnist has (28, 28, 1) in 10" in done.stderr


@pytest.mark.parametrize("how", ["all", "random", "next", "least_likely"])
def test_targets_are_never_the_label(how):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(50, 5)), rng.integers(0, 5, 50).astype(np.int32)
    rows, targets = attack.choose_targets(how, logits, labels, 3)
    assert (targets != labels[rows]).all()
    assert len(rows) == (200 if how == "all" else 50)
    if how == "all":
        assert len({*zip(rows.tolist(), targets.tolist(), strict=True)}) == 200
    if how == "next":
        np.testing.assert_array_equal(targets, (labels + 1) % 5)
    if how == "least_likely":
        masked = np.where(np.arange(5) == labels[:, None], np.inf, logits)
        np.testing.assert_array_equal(masked[np.arange(50), targets], masked.min(1))
    if how == "random":
        np.testing.assert_array_equal(targets, attack.choose_targets(how, logits, labels, 3)[1])
        assert len(set((targets - labels) % 5)) == 4


def test_settings_are_parsed_as_numbers_or_words():
    _, settings = attack.parse_attack("jsma:score_space=tempered,theta=-1.0,gamma=0.25")
    assert settings == {"score_space": "tempered", "theta": -1.0, "gamma": 0.25}
    with pytest.raises(ValueError, match="'theta' needs a value"):
        attack.parse_attack("jsma:theta")
