"""The harness on sides whose times are known, the launcher without its peers, and, where they are installed, these."""

import configparser
import dataclasses
import gc
import time

import jax
import numpy as np
import pytest

from ddjax import data, evaluation, models, runs, training
from ddjax.attacks import jsma
from launch import recipes
from launch.benchmarks import adapters, attacks, measure, peers
from tests.launch.processes import ROOT, SMALL


@pytest.fixture(scope="module", autouse=True)
def frozen():
    """Memory is measured after a full garbage collection, which goes through all that earlier tests left."""
    gc.freeze()


@pytest.fixture
def run(tmp_path):
    return runs.Run(tmp_path / "run", {"launcher": "benchmark"}, {})


def compare(run, sides, repetitions, batch=1, **settings):
    unused = {field.name: None for field in dataclasses.fields(measure.Context)}
    context = measure.Context(**unused | {"run": run, "recipe": recipes.get("digits"), "repetitions": repetitions})
    measure.compare(context, "sleep", sides, batch=batch, **settings)


def sleeping(seconds, units=1, calls=None, **fields):
    def call():
        if calls is not None:
            calls.append(seconds)
        time.sleep(seconds)
        return seconds

    return measure.Side(call, units, fields)


def records_of(run, name="benchmark"):
    return {record["side"]: record for record in runs.read_results(run.workdir) if record["measure"] == name}


def test_compare_tells_times_and_ratios(run, capsys):
    sides = {"slow": sleeping(0.12, units=3), "ddjax": sleeping(0.06, success=1.0, norm="l2", mean_distance=0.5)}
    compare(run, sides, 3, unit="nap")
    records = records_of(run)
    for side, record in records.items():
        assert record["work"] == "sleep"
        assert record["batch"] == 1
        assert record["base"] == "ddjax"
        assert record["unit"] == "nap"
        assert record["repetitions"] == 3
        assert record["seconds_low"] <= record["seconds"] <= record["seconds_high"]
        assert record["speedup_low"] <= record["speedup"] <= record["speedup_high"]
        assert record["first_seconds"] >= record["units"] * record["seconds_low"] / 2, side
    assert records["ddjax"]["seconds"] == pytest.approx(0.06, rel=0.5)
    assert records["ddjax"]["speedup"] == 1
    assert records["ddjax"]["success"] == 1
    # Three naps in twice the time: more for its time than the base.
    assert records["slow"]["seconds"] == pytest.approx(0.04, rel=0.5)
    assert records["slow"]["speedup"] == pytest.approx(2 / 3, rel=0.5)
    assert "slow: 4" in capsys.readouterr().out


def test_compare_counts_what_makes_a_side_as_its_first_call(run):
    def make():
        time.sleep(0.2)
        return measure.Side(lambda: 7, 1, lambda result: {"success": result})

    compare(run, {"ddjax": make}, 2)
    record = records_of(run)["ddjax"]
    assert record["first_seconds"] >= 0.2
    assert record["seconds"] < 0.01
    assert record["success"] == 7


def test_compare_names_broken_sides_and_goes_on(run, capsys):
    def broken():
        raise RuntimeError("no such kernel\nmore")

    late = iter([0, 0])
    sides = {
        "ddjax": sleeping(0.05),
        "unmakable": broken,
        "uncallable": measure.Side(broken, 1),
        "late": measure.Side(lambda: next(late), 1),
        "undescribable": measure.Side(lambda: 0, 1, lambda result: {"success": 1 / result}),
        "good": sleeping(0.05),
    }
    compare(run, sides, 2)
    assert set(records_of(run)) == {"ddjax", "good"}
    named = records_of(run, "peer_broken")
    assert set(named) == {"unmakable", "uncallable", "late", "undescribable"}
    assert named["unmakable"]["error"] == "RuntimeError: no such kernel"
    assert named["undescribable"]["error"].startswith("ZeroDivisionError")
    assert "unmakable is broken and left out: RuntimeError: no such kernel" in capsys.readouterr().out


def test_compare_raises_what_the_base_raises(run):
    def broken():
        raise RuntimeError("ours")

    with pytest.raises(RuntimeError, match="ours"):
        compare(run, {"ddjax": broken, "peer": sleeping(0.01)}, 1)


def test_compare_takes_the_first_side_as_the_base_where_ours_is_not_there(run):
    compare(run, {"one": sleeping(0.06), "two": sleeping(0.06)}, 1)
    assert {record["base"] for record in records_of(run).values()} == {"one"}


def test_compare_goes_on_where_it_was_stopped(run):
    first, second = [], []
    compare(run, {"ddjax": sleeping(0.06, calls=first)}, 2)
    done = len(first)
    sides = {"ddjax": sleeping(0.06, calls=first), "peer": sleeping(0.06, calls=second)}
    compare(run, sides, 2)
    # The base runs again beside the new side, and its record stays.
    assert len(first) > done
    done = len(first), len(second)
    run.close()
    again = runs.Run(run.workdir, {"launcher": "benchmark"}, {})
    compare(again, sides, 2)
    assert (len(first), len(second)) == done
    assert [record["side"] for record in runs.read_results(run.workdir)] == ["ddjax", "peer"]
    compare(again, sides, 2, batch=2)
    assert len(first) > done[0]


def test_rate_of_the_machine_and_share_of_it(run):
    measure.machine_rate(run)
    measure.machine_rate(run)
    (machine,) = (record for record in runs.read_results(run.workdir) if record["measure"] == "machine")
    assert machine["jax_gflops"] > 0
    assert machine["torch_gflops"] is None
    compare(run, {"ddjax": sleeping(0.06, flops=1e6)}, 1)
    record = records_of(run)["ddjax"]
    assert record["gflops"] == pytest.approx(1e-3 / record["seconds"])
    assert record["matmul_share"] == pytest.approx(record["gflops"] / machine["jax_gflops"])


def test_flops_and_memory_of_a_program():
    compiled = jax.jit(lambda a, b: a @ b).lower(np.ones((64, 32), np.float32), np.ones((32, 16), np.float32)).compile()
    assert measure.flops_of(compiled) == pytest.approx(2 * 64 * 32 * 16, rel=0.1)
    assert measure.bytes_of(compiled) >= 4 * (64 * 32 + 32 * 16 + 64 * 16)


def test_memory_of_a_call(run):
    if measure.free_bytes() is None:
        pytest.skip("the kernel tells nothing about memory")
    size = 200 * 2**20
    side = measure.Side(lambda: np.ones(size, np.uint8).sum(), 1)
    compare(run, {"ddjax": side}, 1)
    assert 0.8 * size < records_of(run)["ddjax"]["peak_bytes"] < 1.5 * size


def test_pinned_versions_are_those_of_the_extra():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extra = config["options.extras_require"]["peers"].split()
    assert f"torch=={peers.PINNED['torch']}" in extra
    assert all("==" in requirement for requirement in extra)
    text = (ROOT / "setup.cfg").read_text() + (ROOT / "launch" / "benchmark.py").read_text()
    for name, version in peers.PINNED.items():
        assert f"{name}=={version}" in text
        assert name == "torch" or f"{name}=={version}" in peers.COMMAND


def test_launcher_measures_and_names_what_is_missing(launch, tmp_path):
    arguments = [*SMALL[:3], f"--workdir={tmp_path / 'run'}", "--batches=4", "--repetitions=2", "--quick"]
    done = launch("benchmark", "--work=fgsm", "--work=jsma_step", *arguments)
    records = runs.read_results(tmp_path / "run")
    ours = [record for record in records if record["measure"] == "benchmark" and record["side"] == "ddjax"]
    assert {(record["work"], record["batch"]) for record in ours} == {("fgsm", 4)}
    for record in ours:
        assert record["seconds"] > 0
        assert 0 <= record["success"] <= 1
        assert record["norm"] == "linf"
        assert record["flops"] > 0
        assert 0 < record["matmul_share"] < 2
    missing = [record["side"] for record in records if record["measure"] == "peer_missing"]
    for name in missing:
        assert f"no comparison with {name}" in done.stdout
    if missing:
        assert f"to compare with all: {peers.COMMAND}" in done.stdout
    present = {record["side"] for record in records if record["measure"] == "peer"}
    assert present | set(missing) == {"torch", "foolbox", "torchattacks", "adv_lib", "art"}
    assert f"report: {tmp_path / 'run' / 'report.html'}" in done.stdout
    # Everything is on disk: nothing is measured again.
    again = launch("benchmark", "--work=fgsm", "--work=jsma_step", *arguments)
    assert "first call" not in again.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batches=0"], "--batches must be whole numbers from 1, or the word largest, got '0'"),
        (["--batches=many"], "--batches must be whole numbers from 1, or the word largest, got 'many'"),
        (["--batches=1000000"], "has more than the 100 test images there are"),
        (["--cores=100000"], "--cores=100000: this process may use"),
        (["--batches=1", "--checkpoint=nowhere"], "there is no checkpoint directory nowhere"),
        (["--work=purify", "--batches=1", "--density=nowhere"], "python -m launch.train --recipe=pixelcnn_mnist"),
        (["--work=reconstruct", "--batches=1", "--generator=nowhere"], "python -m launch.train --recipe=gan_mnist"),
    ],
)
def test_launcher_refuses(launch, tmp_path, arguments, message):
    done = launch("benchmark", *arguments, *SMALL[:3], f"--workdir={tmp_path / 'run'}", ok=False)
    assert message in done.stderr
    assert done.returncode == 2
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def there():
    """What is installed; PyTorch is needed at least."""
    found = peers.load(1)
    if found.torch is None:
        pytest.skip(f"no PyTorch to compare with: {found.missing['torch']}; {peers.COMMAND}")
    return found


@pytest.fixture(scope="module")
def trained():
    """A network that knows the digits."""
    train = data.load("digits", "train")
    optimizer = recipes.make_optimizer(recipes.get("digits"), training.steps_per_epoch(len(train), 64))
    network, key = models.build("digits", 10), jax.random.key(0)
    # optax mixes integers and floats, which the tests forbid elsewhere.
    with jax.numpy_dtype_promotion("standard"):
        return training.train(network, optimizer, train.images, train.labels, epochs=4, batch_size=64, key=key)


@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
@pytest.mark.parametrize(
    ("network", "shape"), [("papernot_mnist", (28, 28, 1)), ("papernot_cifar10", (32, 32, 3)), ("digits", (8, 8, 1))]
)
def test_converted_network_is_the_same_function(there, network, shape, memory_format):
    optimizer = recipes.make_optimizer(recipes.get("papernot_mnist"), 1)
    state = training.create_state(models.build(network, 10), optimizer, shape, jax.random.key(1))
    images = np.random.default_rng(0).random((5, *shape), np.float32)
    converted = peers.convert(state, shape, memory_format)
    with there.torch.no_grad():
        theirs = converted.module(converted.images(images)).numpy()
    ours = np.asarray(state.logits_fn(jax.numpy.asarray(images)))
    np.testing.assert_allclose(theirs, ours, rtol=1e-4, atol=1e-4 * np.abs(ours).max())


SETTINGS = {
    "fgsm": {"epsilon": 0.2},
    "pgd": {"epsilon": 0.2, "step_size": 0.05, "num_steps": 10},
    "ddn": {"num_steps": 60},
    "deepfool": {"num_steps": 20, "overshoot": 0.02},
    "jsma": {"theta": 1.0, "gamma": 12 / 64},
    "carlini_wagner_l2": {
        "learning_rate": 0.1,
        "initial_const": 1.0,
        "search_steps": 3,
        "num_steps": 60,
        "abort_early": False,
    },
    "carlini_wagner_linf": {"learning_rate": 0.1, "decrease_factor": 0.7, "num_steps": 60},
}
SETTINGS["carlini_wagner_l2_compacted"] = SETTINGS["carlini_wagner_l2"] | {"abort_early": True}


def test_every_attack_that_is_measured_has_peers():
    assert set(adapters.ADAPTERS) == set(SETTINGS)
    assert set(adapters.ADAPTERS) == set(attacks.WORK) - {"jsma_step"}


@pytest.mark.parametrize(("name", "peer"), [(name, peer) for name, of in adapters.ADAPTERS.items() for peer in of])
@pytest.mark.filterwarnings("ignore")
def test_adapters_do_their_work(there, trained, name, peer):
    if not there.has(peer):
        pytest.skip(f"no {peer}: {there.missing[peer]}; {peers.COMMAND}")
    settings = SETTINGS[name] | {"batch": 4}
    if (name, peer) == ("carlini_wagner_linf", "art"):
        settings["num_steps"] = 5
    test = data.load("digits", "test")
    clean = data.to_float(test.images)
    rows = np.flatnonzero(evaluation.judge(trained.logits_fn, clean, test.labels).predictions[0] == test.labels)[:4]
    clean, labels = clean[rows], test.labels[rows]
    targets = (labels + 1) % 10
    network = peers.convert(trained, (8, 8, 1))
    there.torch.manual_seed(0)
    targeted = name == "jsma" or name.startswith("carlini")
    call = adapters.make_call(name, peer, network, settings, targeted)
    found = peers.on_host(call(network.images(clean), network.classes(labels), network.classes(targets)))
    assert found.shape == clean.shape
    assert np.isfinite(found).all()
    assert found.min() >= 0
    assert found.max() <= 1
    change = np.abs(found - clean)
    # Something was found, and more than the image itself. Not by art's Linf attack in so few steps: it starts again
    # from the clean image with each constant, where saturated tanh variables hardly move.
    success = evaluation.judge(trained.logits_fn, found, labels, targets if targeted else None).success
    if (name, peer) != ("carlini_wagner_linf", "art"):
        assert success.any()
        assert change.max() > 0.01
    if "epsilon" in settings:
        assert change.max() <= settings["epsilon"] + 1e-6
    if "gamma" in settings:
        assert (change > 0).sum((1, 2, 3)).max() <= 12


def test_batched_jsma_takes_the_pairs_that_ours_takes(there, trained):
    test = data.load("digits", "test")
    clean = data.to_float(test.images)
    rows = np.flatnonzero(evaluation.judge(trained.logits_fn, clean, test.labels).predictions[0] == test.labels)[:8]
    clean, labels = clean[rows], test.labels[rows]
    targets = ((labels + 3) % 10).astype(np.int32)
    network = peers.convert(trained, (8, 8, 1))
    call = adapters.make_call("jsma", "batched_torch", network, SETTINGS["jsma"] | {"batch": 8}, True)
    found = peers.on_host(call(network.images(clean), network.classes(labels), network.classes(targets)))
    ours = jax.jit(lambda f, x, y, t: jsma(f, x, y, targets=t, gamma=12 / 64, score_space="logits"))(
        trained.logits_fn, clean, labels, targets
    )
    np.testing.assert_array_equal(found, np.asarray(ours.inputs))
