"""Networks that ddjax did not train, through the launchers."""

import numpy as np
import pytest

from ddjax import runs

MODULE = """
import flax.linen as nn
import jax
import jax.numpy as jnp
import ddjax

def stack(state):
    return ddjax.sequential(["flatten", "linear", "relu", "linear"], state)

def function(weights):
    return two_layers, weights

def two_layers(weights, x):
    hidden = jax.nn.relu(x.reshape(len(x), -1) @ weights["0.weight"].T + weights["0.bias"][None])
    return hidden @ weights["1.weight"].T + weights["1.bias"][None]

def probabilities(weights):
    return lambda weights, x: jax.nn.softmax(two_layers(weights, x)), weights

class Module(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(nn.Dense(24, name="first")(x.reshape(len(x), -1)))
        return nn.Dense(10, name="second")(nn.Dropout(0.5, deterministic=not train)(x))

def normalized(weights):
    # The network of inputs 2 x - 1.
    kernel = weights["0.weight"] / 2
    return two_layers, {**weights, "0.weight": kernel, "0.bias": weights["0.bias"] + kernel.sum(1)}

def five_classes(weights):
    return lambda weights, x: two_layers(weights, x)[:, :5], weights

def torch_stack():
    import torch
    stack = torch.nn.Sequential(torch.nn.Linear(64, 24), torch.nn.Linear(24, 10))
    # Between the two, so that the names of the parameters are those of the file.
    stack.forward = lambda x: stack[1](torch.relu(stack[0](x.flatten(1))))
    return stack

def broken():
    raise RuntimeError("no such layer")

not_callable = 3
"""


def train_two_layers(seed=0):
    """A small network on the digits, trained by gradient descent in NumPy."""
    from sklearn import datasets

    draw = np.random.default_rng(seed)
    inputs, labels = datasets.load_digits(return_X_y=True)
    inputs, targets = (inputs / 16).astype(np.float32), np.eye(10, dtype=np.float32)[labels]
    first, second = draw.normal(size=(64, 24)) / 8, draw.normal(size=(24, 10)) / 5
    for _ in range(400):
        hidden = np.maximum(inputs @ first, 0)
        odds = np.exp(hidden @ second)
        error = (odds / odds.sum(1, keepdims=True) - targets) / len(inputs)
        back = error @ second.T * (hidden > 0)
        first, second = first - 0.5 * inputs.T @ back, second - 0.5 * hidden.T @ error
    zero = lambda size: np.zeros(size, np.float32)
    first, second = first.astype(np.float32), second.astype(np.float32)
    return {"0.weight": first.T, "0.bias": zero(24), "1.weight": second.T, "1.bias": zero(10)}


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A directory with a user's module and weights."""
    directory = tmp_path_factory.mktemp("own")
    (directory / "own_networks.py").write_text(MODULE)
    weights = train_two_layers()
    np.savez(directory / "weights.npz", **weights)
    np.savez(
        directory / "linen.npz",
        **{f"{name}/kernel": weights[f"{number}.weight"].T for number, name in enumerate(("first", "second"))},
        **{f"{name}/bias": weights[f"{number}.bias"] for number, name in enumerate(("first", "second"))},
    )
    return directory


ATTACK = ["--dataset=digits", "--attack=fgsm:epsilon=0.1", "--num_examples=40", "--num_test=60"]


def test_one_network_in_five_forms_gives_one_result(launch, own):
    found = {}
    forms = {
        "stack": ["weights.npz"],
        "function": ["weights.npz"],
        "Module": ["linen.npz"],
        "probabilities": ["weights.npz", "--outputs=probabilities"],
        "normalized": ["weights.npz", "--mean=0.5", "--std=0.5"],
    }
    for name, (weights, *more) in forms.items():
        given = [f"--model=own_networks:{name}", f"--weights={weights}", *more, f"--workdir={name}"]
        done = launch("attack", *given, *ATTACK, cwd=own)
        *notes, accuracy, rates = done.stdout.splitlines()[:-1]
        assert bool(notes) == (name == "probabilities")
        found[name] = [accuracy, rates]
        (record,) = runs.read_results(own / name)
        assert 0.8 * 40 < record["n"] <= 40
        assert record["successes"] > 0
    # Rates and distances as they are printed.
    told = {name: [line.split("; zero")[0] for line in lines] for name, lines in found.items()}
    assert all(lines == told["stack"] for lines in told.values()), told
    again = launch("attack", given[0], "--weights=linen.npz", *more, given[-1], *ATTACK, cwd=own, ok=False)
    assert "--weights: " in again.stderr


def test_pytorch_module_gives_the_same(launch, own):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    found = []
    for flag, name in (("torch_model", "torch_stack"), ("model", "stack")):
        given = [f"--{flag}=own_networks:{name}", "--weights=weights.npz", f"--workdir={name}"]
        found.append(launch("attack", *given, *ATTACK, cwd=own).stdout.splitlines()[:2])
    assert found[0] == found[1]
    done = launch("attack", "--torch_model=own_networks:stack", *ATTACK, "--workdir=wrong", cwd=own, ok=False)
    assert "raised TypeError" in done.stderr
    given = ["--torch_model=own_networks:torch_stack", "--weights=linen.npz", "--workdir=wrong"]
    assert "missing" in launch("attack", *given, *ATTACK, cwd=own, ok=False).stderr


def test_own_network_behind_a_defense(launch, own):
    given = ["--model=own_networks:stack", "--weights=weights.npz", "--workdir=evaluated", "--defense=bit_depth"]
    launch("evaluate", *given, *ATTACK, cwd=own)
    records = runs.read_results(own / "evaluated")
    assert {record["measure"] for record in records} == {"network", "clean", "evaluate", "worst"}
    assert records[0]["title"] == "model"
    assert (own / "evaluated" / "report.html").exists()


def test_own_network_takes_the_place_of_trained_ones_in_comparisons(launch, own):
    small = ["--num_train=200", "--num_test=60", "--epochs=1", "--num_examples=6"]
    given = ["--model=own_networks:stack", "--weights=weights.npz", *small]
    quick = ["--kappas=0", "--search_steps=1", "--num_steps=3", "--workdir=transferred"]
    launch("transfer", *given, *quick, cwd=own)
    records = runs.read_results(own / "transferred")
    assert {record["network"] for record in records if record["measure"] == "accuracy"} == {"source", "model"}
    assert {record["target"] for record in records if record["measure"] == "transfer"} == {"model"}
    # Other weights in the same file are another network.
    before = (own / "weights.npz").read_bytes()
    np.savez(own / "weights.npz", **train_two_layers(seed=1))
    other = launch("transfer", *given, *quick, cwd=own, ok=False)
    (own / "weights.npz").write_bytes(before)
    assert "parameters_fingerprint" in other.stderr
    launch("carlini", *given, "--quick", "--num_steps=3", "--workdir=compared", cwd=own)
    records = runs.read_results(own / "compared")
    assert {record["network"] for record in records} == {"model"}
    assert "undistilled" not in (own / "compared" / "table.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--checkpoint must name the directory of a network's checkpoints, or --model your own network"),
        (["--model=own_networks:stack", "--checkpoint=x"], "give one of them"),
        (["--model=own_networks:stack", "--torch_model=a:B"], "--model and --torch_model name one network"),
        (["--weights=weights.npz"], "--weights belongs to --model or --torch_model"),
        (["--model=own_networks:stack"], "--model=own_networks:stack takes weights: give --weights"),
        (["--model=own_networks:stack", "--weights=no.npz"], "no.npz"),
        (["--model=own_networks"], "must be an import path, package.module:name, got 'own_networks'"),
        (["--model=own_network:stack"], "cannot import 'own_network'"),
        (["--model=own_networks:heap"], "has no function or class 'heap'; it has: "),
        (["--model=own_networks:not_callable"], "has no function or class 'not_callable'"),
        (["--model=own_networks:broken"], "raised RuntimeError: no such layer"),
        (["--model=own_networks:probabilities", "--weights=weights.npz"], "returns probabilities"),
        (["--model=own_networks:five_classes", "--weights=weights.npz"], "returns 5 logits, and digits has 10 classes"),
        (["--model=own_networks:stack", "--weights=linen.npz"], "the state misses weight"),
        (["--model=own_networks:stack", "--weights=weights.npz", "--mean=0.5"], "--mean and --std go together"),
        (["--model=own_networks:stack", "--weights=weights.npz", "--mean=a", "--std=1"], "--mean must be numbers"),
    ],
)
def test_mistakes_are_told(launch, own, arguments, message):
    done = launch("attack", *ATTACK, *arguments, "--workdir=mistaken", cwd=own, ok=False)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (own / "mistaken").exists()


def test_own_network_needs_a_data_set(launch, own):
    done = launch("attack", "--model=own_networks:stack", "--attack=fgsm", cwd=own, ok=False)
    assert "a network of your own needs --dataset" in done.stderr
