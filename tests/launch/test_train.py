import jax
import pytest

from ddjax import checkpoints, runs
from tests.launch.processes import SMALL


def test_train_and_report(launch, tmp_path):
    done = launch("train", f"--workdir={tmp_path}", *SMALL[:3])
    assert "seed0_none/baseline: accuracy" in done.stdout
    (record,) = runs.read_results(tmp_path)
    assert record["n"] == 100
    assert record["accuracy"] > 0.5
    _, spec = checkpoints.load_network(tmp_path / "checkpoints" / "seed0_none" / "baseline")
    assert (spec.role, spec.epochs, spec.num_train) == ("baseline", 3, 200)
    assert launch("train", f"--workdir={tmp_path}", *SMALL[:3]).stdout == done.stdout
    assert "report:" in launch("report", f"--workdir={tmp_path}").stdout


def test_distill_trains_teacher_and_student(distilled):
    records = runs.read_results(distilled)
    assert [(record["network"], record["temperature"]) for record in records] == [("teacher", 20.0), ("student", 20.0)]
    _, spec = checkpoints.load_network(distilled / "checkpoints" / "seed0_T20" / "teacher")
    assert (spec.role, spec.temperature) == ("teacher", 20.0)


@pytest.mark.parametrize(
    ("launcher", "arguments", "message"),
    [
        ("train", ["--recipe=lenet"], "unknown recipe 'lenet'; known: digits, breast_cancer, wine"),
        ("train", ["--dataset=no_such_set"], "no_such_set"),
        # What a recipe skips of its own data set is not skipped of another one, which may be smaller.
        (
            "train",
            ["--recipe=mnist_quick", "--dataset=digits", "--num_train=300", "--num_test=50"],
            "too small for the stages",
        ),
        ("train", ["--temperature=0"], "a temperature must be positive and finite, got 0.0"),
        ("train", ["--epochs=0"], "--epochs must be at least 1, got 0"),
        ("train", ["--num_train=0"], "0"),
        ("train", ["--num_train=999999"], "999999"),
        ("train", ["somewhere"], "no positional arguments are taken, got somewhere"),
        ("train", ["--workdir=/proc/nothing"], "cannot write to /proc/nothing"),
        ("distill", ["--temperature=-1"], "a temperature must be positive and finite, got -1.0"),
        ("distill", ["--label_noise=-1"], "--label_noise must be at least 0 and finite, got -1.0"),
        ("distill", ["--finetune_epochs=2"], "goes with --label_noise"),
        ("sweep", ["--temperatures=1,hot"], "--temperatures must be numbers separated by commas, got 1,hot"),
        ("sweep", ["--temperatures=5,5"], "one or more different numbers"),
        ("sweep", ["--temperatures=0,5"], "a temperature must be positive and finite, got 0.0"),
        ("sweep", ["--num_examples=3"], "less than one image for each of 10 classes"),
        ("report", [], "--workdir must name the directory of a run"),
        ("report", ["--workdir=/nothing/here"], "/nothing/here is not the directory of a run"),
    ],
)
def test_bad_use_ends_in_one_line(launch, tmp_path, launcher, arguments, message):
    if launcher != "report" and not any("--workdir" in argument for argument in arguments):
        arguments = [*arguments, f"--workdir={tmp_path / 'run'}"]
    done = launch(launcher, *arguments, ok=False)
    assert message in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "results.jsonl").exists() or not (tmp_path / "run" / "results.jsonl").read_bytes()


def test_a_student_of_noisy_images_and_its_last_epochs_on_the_true_labels(launch, tmp_path):
    arguments = ["--temperature=20", "--label_noise=0.1", "--finetune_epochs=2", *SMALL[:3], f"--workdir={tmp_path}"]
    done = launch("distill", *arguments)
    records = runs.read_results(tmp_path)
    assert [record["network"] for record in records] == ["teacher", "student"]
    folder = tmp_path / "checkpoints" / "seed0_T20"
    assert {path.name for path in folder.iterdir()} == {"teacher", "noisy_student", "finetuned"}
    _, spec = checkpoints.load_network(folder / "finetuned")
    assert (spec.role, spec.epochs, spec.temperature) == ("finetuned", 2, 20.0)
    # The last epochs go on from the noisy student.
    before, after = (checkpoints.load_network(folder / role)[0].params for role in ("noisy_student", "finetuned"))
    norm = lambda tree: sum(float(abs(leaf).sum()) for leaf in jax.tree.leaves(tree))
    assert 0 < norm(jax.tree.map(lambda a, b: a - b, before, after)) < norm(before)
    assert launch("distill", *arguments).stdout == done.stdout
    other = [argument.replace("label_noise=0.1", "label_noise=0.2") for argument in arguments]
    assert "--label_noise: 0.1 there, 0.2 now" in launch("distill", *other, ok=False).stderr


def test_real_mnist(launch, tmp_path, tfds_data_dir):
    sizes = ["--num_train=600", "--num_test=50", "--epochs=2"]
    launch("train", "--recipe=mnist_quick", f"--data_dir={tfds_data_dir}", f"--workdir={tmp_path}", *sizes)
    (record,) = runs.read_results(tmp_path)
    assert record["n"] == 50
    assert record["accuracy"] > 0.2
