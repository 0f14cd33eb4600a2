import contextlib
import dataclasses
import json
import pathlib
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddjax import checkpoints, data, models, runs, training

pytestmark = pytest.mark.usefixtures("optax_promotion")
NETWORK = models.build("digits", 10)
ADAM = optax.adam(1e-2)
SPEC = checkpoints.NetworkSpec.of(
    NETWORK,
    recipe="digits",
    dataset="digits",
    num_classes=10,
    image_shape=(8, 8, 1),
    role="baseline",
    temperature=1.0,
    seed=0,
    epochs=4,
    num_train=64,
    batch_size=32,
)
OLD_RUN = pathlib.Path(__file__).parent / "fixtures" / "old_run"
RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (64, 8, 8, 1)).astype(np.uint8)
LABELS = RNG.integers(0, 10, 64)


def fresh(seed=0):
    return training.create_state(NETWORK, ADAM, (8, 8, 1), jax.random.key(seed))


def trained(epochs, directory=None, **settings):
    given = {"epochs": epochs, "batch_size": 32, "key": jax.random.key(0), "checkpoints": directory}
    return training.train(NETWORK, ADAM, IMAGES, LABELS, **given, **settings)


class Narrow(nn.Module):
    """A network of a user, with an argument that is a function."""

    width: int = 4
    activation: object = nn.relu

    @nn.compact
    def __call__(self, inputs):
        return nn.Dense(10)(self.activation(nn.Dense(self.width)(inputs.reshape(inputs.shape[0], -1))))


class Stop(Exception):
    """What ends a training in its middle."""


@contextlib.contextmanager
def stopping_after_two(total, description, unit):
    """A progress display that stops the training after its second epoch was kept."""

    class Bar:
        count = 0

        def update(self, n=1):
            self.count += n
            if self.count == 3:
                raise Stop

        def set_postfix(self, **values):
            pass

    yield Bar()


def test_training_stopped_in_the_middle_ends_as_if_it_were_not(tmp_path):
    whole = trained(4)
    with pytest.raises(Stop):
        trained(4, tmp_path / "net", checkpoint_seconds=0.0, progress=stopping_after_two)
    assert [path.name for path in (tmp_path / "net").iterdir() if path.name.isdigit()] == ["2"]
    with pytest.raises(checkpoints.CheckpointError, match="stopped after 2 of 4 epochs"):
        checkpoints.load_network(tmp_path / "net")
    with pytest.raises(checkpoints.CheckpointError, match="epochs 4 there, 5 now"):
        trained(5, tmp_path / "net")
    resumed = trained(4, tmp_path / "net")
    jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)
    loaded, spec = checkpoints.load_network(tmp_path / "net")
    assert spec.network == "ddjax.models:ConvNet"
    images = data.to_float(jnp.asarray(IMAGES))
    np.testing.assert_array_equal(loaded.logits_fn(images), whole.logits_fn(images))


@pytest.mark.parametrize("network", [NETWORK, Narrow(), Narrow(width=7, activation=nn.softplus)])
def test_a_network_is_built_again_from_its_import_path_and_arguments(network):
    described = checkpoints.describe(network)
    assert checkpoints.build(json.loads(json.dumps(described))) == network


def test_a_network_without_a_name_is_refused():
    with pytest.raises(ValueError, match="lambda"):
        checkpoints.describe(Narrow(activation=lambda x: x))


def test_checkpoints_of_earlier_versions_classify_as_then():
    state, spec = checkpoints.load_network(OLD_RUN / "checkpoints" / "seed0_T20" / "student")
    assert (spec.recipe, spec.role, spec.temperature) == ("digits", "student", 20.0)
    expected = np.load(OLD_RUN / "expected.npz")
    logits = np.asarray(state.logits_fn(data.to_float(jnp.asarray(expected["images"]))))
    np.testing.assert_allclose(logits, expected["logits"], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(logits.argmax(1), expected["logits"].argmax(1))
    assert runs.read_config(OLD_RUN)["flags"]["temperature"] == 20.0
    assert [record["measure"] for record in runs.read_results(OLD_RUN)] == ["accuracy", "accuracy"]


class TestCheckpoints:
    def save(self, directory, state, epoch):
        with contextlib.closing(checkpoints.Checkpoints(directory, SPEC)) as kept:
            kept.save(epoch, state)

    def test_nothing_stored_is_the_start(self, tmp_path):
        start = fresh(9)
        with contextlib.closing(checkpoints.Checkpoints(tmp_path / "net", SPEC)) as kept:
            state, epoch = kept.restore(start)
        assert epoch == 0
        assert state is start

    def test_a_network_of_another_run_is_refused(self, tmp_path):
        self.save(tmp_path / "net", fresh(), 4)
        other = dataclasses.replace(SPEC, temperature=5.0, role="student")
        with pytest.raises(
            checkpoints.CheckpointError, match=r"role baseline there, student now; temperature 1\.0 there, 5\.0 now"
        ):
            checkpoints.Checkpoints(tmp_path / "net", other)

    def test_missing_unfinished_and_empty(self, tmp_path):
        with pytest.raises(checkpoints.CheckpointError, match="there is no checkpoint directory"):
            checkpoints.load_network(tmp_path / "nothing")
        with pytest.raises(checkpoints.CheckpointError, match="holds no checkpoint"):
            checkpoints.load_network(tmp_path)
        self.save(tmp_path / "run" / "net", fresh(), 3)
        with pytest.raises(checkpoints.CheckpointError, match=r"holds no checkpoint; it contains .*run/net"):
            checkpoints.load_network(tmp_path / "run")
        with pytest.raises(checkpoints.CheckpointError, match="stopped after 3 of 4 epochs"):
            checkpoints.load_network(tmp_path / "run" / "net")

    @pytest.mark.parametrize("damage", ["truncate data", "truncate manifest", "remove state", "truncate spec"])
    def test_damage_is_told(self, tmp_path, damage):
        directory = tmp_path / "net"
        self.save(directory, fresh(), 4)
        what, part = damage.split()
        if what == "remove":
            shutil.rmtree(directory / "4" / part)
        else:
            pattern = {"data": "state/**/d/*", "manifest": "state/**/manifest*", "spec": "spec/*"}[part]
            files = [path for path in (directory / "4").glob(pattern) if path.is_file()]
            assert files
            for path in files:
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(checkpoints.CheckpointError, match=r"damaged"):
            checkpoints.load_network(directory)

    def test_another_networks_parameters_under_this_name(self, tmp_path):
        self.save(tmp_path / "net", fresh(), 4)
        path = next((tmp_path / "net" / "4" / "spec").glob("metadata*"))
        stored = json.loads(path.read_text())
        stored["arguments"]["num_classes"] = 7
        path.write_text(json.dumps(stored))
        with pytest.raises(checkpoints.CheckpointError, match="damaged"):
            checkpoints.load_network(tmp_path / "net")

    def test_parameters_that_are_not_finite(self, tmp_path):
        state = fresh()
        self.save(tmp_path / "net", state.replace(params=jax.tree.map(lambda leaf: leaf * jnp.nan, state.params)), 4)
        with pytest.raises(checkpoints.CheckpointError, match="not finite"):
            checkpoints.load_network(tmp_path / "net")
