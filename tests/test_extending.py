"""What docs/extending.md says works: its files, code and commands, from a directory outside of the repository."""

import os
import pathlib
import re
import shlex

import jax
import numpy as np
import pytest

import ddjax
from ddjax import evaluation, runs
from tests.attacks import checks
from tests.attacks.conftest import as_a_user  # noqa: F401
from tests.launch import processes
from tests.launch.conftest import environment  # noqa: F401

PAGE = (pathlib.Path(__file__).parents[1] / "docs" / "extending.md").read_text()
BLOCKS = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FILES = dict(re.findall(r"^`(\w+\.py)`:\n\n```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))
EXAMPLES = [body for language, body in BLOCKS.findall(PAGE) if language == "python" and body not in FILES.values()]
COMMANDS = [line for language, body in BLOCKS.findall(PAGE) if language == "bash" for line in body.strip().splitlines()]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """The files of the page, where Python finds them."""
    directory = tmp_path_factory.mktemp("users")
    for name, source in FILES.items():
        (directory / name).write_text(source)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(directory)
        yield directory


@pytest.fixture(scope="module")
def command(directory, environment, tmp_path_factory):  # noqa: F811
    """Runs a command of the page with further flags, and returns what it prints."""
    path = os.pathsep.join([str(directory), *filter(None, [os.environ.get("PYTHONPATH")])])
    output = tmp_path_factory.mktemp("output")
    with processes.serve(environment | {"PYTHONPATH": path}, output) as start:

        def run(line, *more):
            _, _, module, *arguments = shlex.split(line)
            process = start(module.removeprefix("launch."), *arguments, *more)
            assert process.wait() == 0, process.outputs()
            return process.outputs()[0]

        yield run


@pytest.fixture(scope="module")
def checkpoint(command, tmp_path_factory):
    """The network of the page's command that trains on its data set."""
    workdir = tmp_path_factory.mktemp("train")
    command(
        _command("launch.train", "my_data").replace("RUN", str(workdir)),
        "--num_train=200",
        "--num_test=100",
        "--epochs=3",
    )
    (found,) = (workdir / "checkpoints").glob("*/*")
    return found


def _command(*parts):
    (found,) = [line for line in COMMANDS if all(part in line for part in parts)]
    return found


def _example(part):
    (found,) = [body for body in EXAMPLES if part in body]
    return found


def _run_examples(*parts):
    namespace = {}
    # A reader has no strict promotion rules.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for part in parts:
            exec(_example(part), namespace)
    return namespace


def test_attack_file_is_about_40_lines():
    assert len(FILES["my_attacks.py"].splitlines()) <= 50


def test_attack_runs_in_the_library(directory):
    found = _run_examples("ddjax.evaluate(")
    result, report = found["result"], found["report"]
    assert result.success.all()
    assert np.abs(result.inputs - found["inputs"]).max() <= 0.2 + 1e-6
    assert [row.attack for row in report.rows] == ["my_attacks:sign_line", "pgd"]
    assert not report.warnings
    # PGD with the same radius finds at least as much.
    assert report.rows[0].broken.value > 0.5


def test_attack_finds_the_closed_form_distance(directory):
    attack = ddjax.attacks.ATTACKS.find("my_attacks:sign_line")
    weights = jax.random.normal(jax.random.key(0), (64, 2))
    inputs = 0.5 + 0.05 * jax.random.normal(jax.random.key(1), (8, 8, 8, 1))
    logits_fn = lambda x: x.reshape(x.shape[0], -1) @ weights
    logits = logits_fn(inputs)
    labels = logits.argmax(1)
    # Of a linear classifier with two classes: the margin over the L1 norm of the difference of the weights.
    wanted = np.abs(logits[:, 0] - logits[:, 1]) / np.abs(weights[:, 0] - weights[:, 1]).sum()
    result = attack.function(logits_fn, inputs, labels, epsilon=0.1, num_steps=200)
    assert result.success.all()
    found = np.abs(result.inputs - inputs).max((1, 2, 3))
    assert (found >= wanted - 1e-6).all()
    assert (found <= wanted + 0.1 / 200 + 1e-6).all()


def test_attack_settings_are_read_from_text(directory):
    found = evaluation.parse_attack("my_attacks:sign_line:epsilon=8/255,num_steps=20")
    assert found.norm == "linf"
    assert dict(found.numbers) == {"epsilon": 8 / 255}
    assert dict(found.words) == {"num_steps": 20}
    with pytest.raises(ValueError, match="has no setting 'eps'; known: epsilon=None, num_steps=40"):
        evaluation.parse_attack("my_attacks:sign_line:eps=1")
    with pytest.raises(ValueError, match="my_attacks declares no attack 'other'; it declares: sign_line"):
        evaluation.parse_attack("my_attacks:other")


@pytest.mark.parametrize("check", checks.CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_attack_passes_the_contract(as_a_user, directory, check):  # noqa: F811
    check(ddjax.attacks.ATTACKS.find("my_attacks:sign_line"))


def test_attack_runs_in_launch_attack(command, checkpoint, tmp_path):
    line = _command("launch.attack").replace("DIR", str(checkpoint))
    printed = command(line, f"--workdir={tmp_path}", "--num_examples=10")
    text = "my_attacks:sign_line:epsilon=0.2,num_steps=20"
    assert f"{text}: success" in printed
    (record,) = runs.read_results(tmp_path)
    assert record["attack"] == text
    assert record["n"] + record["misclassified"] == 10


def test_attack_runs_in_launch_evaluate(command, checkpoint, tmp_path):
    line = _command("launch.evaluate", "my_attacks").replace("DIR", str(checkpoint))
    command(line, f"--workdir={tmp_path}", "--num_examples=10")
    attacked = {record.get("attack") for record in runs.read_results(tmp_path)}
    assert {"my_attacks:sign_line", "pgd:epsilon=8/255"} <= attacked


def test_defense_has_the_declared_gradient(directory):
    found = _run_examples("ddjax.evaluate(", "ddjax.defenses.parse")
    inputs, deployed = found["inputs"], found["deployed"]
    np.testing.assert_allclose(deployed(inputs), found["logits_fn"](np.round(inputs * 2) / 2), atol=1e-5)
    # Rounding has a zero gradient, which the result counts; BPDA has the identity's.
    assert found["naive"].zero_gradients.all()
    assert not found["aware"].zero_gradients.any()


def test_defense_runs_in_launch_evaluate(command, checkpoint, tmp_path):
    line = _command("my_defenses").replace("DIR", str(checkpoint))
    command(line, f"--workdir={tmp_path}", "--num_examples=10")
    defended = {record.get("defense") for record in runs.read_results(tmp_path)}
    assert {"none", "my_defenses:levels:count=3"} <= defended


def test_network_is_distilled_in_the_library(directory):
    found = _run_examples("ddjax.evaluate(", "ddjax.distill(")
    assert found["accuracy"] > 0.9
    # The temperature of the training scales the logits of the student.
    sizes = [np.abs(state.logits_fn(found["images"])).mean() for state in (found["teacher"], found["student"])]
    assert min(sizes) > 20


def test_network_runs_in_launchers(command, tmp_path):
    trained, attacked, swept = (tmp_path / name for name in ("trained", "attacked", "swept"))
    line = _command("launch.train", "my_networks").replace("NETWORK", str(trained))
    command(line, "--num_train=300", "--num_test=100", "--epochs=5")
    (found,) = (trained / "checkpoints").glob("*/*")
    command(f"python -m launch.attack --checkpoint={found} --attack=fgsm --workdir={attacked}", "--num_examples=10")
    (record,) = runs.read_results(attacked)
    assert record["n"] + record["misclassified"] == 10
    line = _command("launch.sweep", "my_networks").replace("SWEEP", str(swept))
    command(line, "--num_train=300", "--num_test=100", "--epochs=2", "--num_examples=10")
    assert {record.get("temperature") for record in runs.read_results(swept)} == {None, 20.0}


def test_data_set_is_loaded_by_its_import_path(directory):
    test = _run_examples("my_data:")["test"]
    assert test.name == "my_data:stripes:noise=0.2"
    assert test.images.shape == (20, 8, 8, 1)
    assert np.bincount(test.labels).tolist() == [10, 10]


def test_data_set_trains_a_network(checkpoint):
    workdir = checkpoint.parents[2]
    accuracy = [record["correct"] / record["n"] for record in runs.read_results(workdir) if "correct" in record]
    assert accuracy
    assert accuracy[-1] > 0.9
