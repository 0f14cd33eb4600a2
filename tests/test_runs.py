import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddjax import checkpoints, data, runs, training

pytestmark = pytest.mark.usefixtures("optax_promotion")
FLAGS = {"recipe": "digits", "seed": 0, "temperatures": [1.0, 2.0]}
SPEC = checkpoints.NetworkSpec(
    recipe="digits",
    network="digits",
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
EPOCH = jax.jit(functools.partial(training.train_epoch, batch_size=32))
RNG = np.random.default_rng(0)
IMAGES = jnp.asarray(RNG.integers(0, 256, (64, 8, 8, 1)), jnp.uint8)
TARGETS = jax.nn.one_hot(jnp.asarray(RNG.integers(0, 10, 64)), 10)


def fit(state, first, last):
    return training.fit(EPOCH, state, IMAGES, TARGETS, 1.0, num_epochs=last, first_epoch=first)


class TestRun:
    def test_records_survive_and_are_found(self, tmp_path):
        run = runs.Run(tmp_path / "new" / "run", FLAGS, {"note": 1})
        assert run.find(measure="accuracy") is None
        run.append(measure="accuracy", temperature=None, accuracy=0.5)
        run.append(measure="accuracy", temperature=2.0, accuracy=0.75)
        again = runs.Run(tmp_path / "new" / "run", FLAGS, {"note": 1})
        for one in (run, again):
            assert one.find(measure="accuracy", temperature=2.0)["accuracy"] == 0.75
            assert one.find(measure="accuracy", temperature=None)["accuracy"] == 0.5
            assert one.find(measure="accuracy", temperature=3.0) is None
        config = runs.read_config(run.workdir)
        assert config["flags"] == FLAGS
        assert config["resolved"] == {"note": 1}
        assert config["environment"]["jax"] == jax.__version__
        assert config["environment"].keys() >= {"jaxlib", "flax", "ddjax", "device_kind", "matmul_precision"}

    def test_other_flags_are_refused_by_name(self, tmp_path):
        runs.Run(tmp_path, FLAGS, {})
        before = (tmp_path / "config.json").read_bytes()
        with pytest.raises(
            runs.RunError, match=r"other flags.*--seed: 0 there, 1 now; --temperatures: .* there, \[5\] now"
        ):
            runs.Run(tmp_path, FLAGS | {"seed": 1, "temperatures": [5]}, {})
        assert (tmp_path / "config.json").read_bytes() == before

    def test_what_a_killed_writer_left_of_a_line_is_dropped(self, tmp_path):
        run = runs.Run(tmp_path, FLAGS, {})
        run.append(measure="one")
        with open(tmp_path / "results.jsonl", "ab") as file:
            file.write(b'{"measure": "tw')
        assert runs.read_results(tmp_path) == [{"measure": "one"}]
        again = runs.Run(tmp_path, FLAGS, {})
        again.append(measure="two")
        assert [record["measure"] for record in runs.read_results(tmp_path)] == ["one", "two"]

    def test_damaged_or_foreign_directories(self, tmp_path):
        with pytest.raises(runs.RunError, match=r"no config\.json"):
            runs.read_config(tmp_path)
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(runs.RunError, match="holds other files and no run"):
            runs.Run(tmp_path, FLAGS, {})
        assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
        run = runs.Run(tmp_path / "run", FLAGS, {})
        (run.workdir / "results.jsonl").write_text('{"measure": "one"}\nnonsense\n')
        with pytest.raises(runs.RunError, match="line 2 of .* is damaged"):
            runs.read_results(run.workdir)
        (run.workdir / "config.json").write_text("{")
        with pytest.raises(runs.RunError, match="cannot read"):
            runs.read_config(run.workdir)

    def test_an_unwritable_workdir(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(runs.RunError, match="cannot write to .*file/run"):
            runs.Run(tmp_path / "file" / "run", FLAGS, {})

    def test_numbers_that_json_cannot_hold(self, tmp_path):
        run = runs.Run(tmp_path, FLAGS, {})
        with pytest.raises(ValueError, match="JSON"):
            run.append(value=float("nan"))
        assert runs.read_results(tmp_path) == []

    def test_arrays_are_written_whole(self, tmp_path):
        run = runs.Run(tmp_path, FLAGS, {})
        path = run.save_arrays("examples/one", images=np.arange(6.0))
        np.testing.assert_array_equal(np.load(path)["images"], np.arange(6.0))
        assert [entry.name for entry in path.parent.iterdir()] == ["one.npz"]


class TestCheckpoints:
    def save(self, directory, state, epoch, spec=SPEC):
        kept = checkpoints.Checkpoints(directory, spec)
        kept.save(epoch, state)
        kept.close()

    def restore(self, directory, spec=SPEC):
        kept = checkpoints.Checkpoints(directory, spec)
        try:
            return kept.restore(SPEC.build(jax.random.key(9)))
        finally:
            kept.close()

    def test_training_resumed_from_disk_is_the_same_bit_for_bit(self, tmp_path):
        whole = fit(SPEC.build(jax.random.key(0)), 0, 4)
        self.save(tmp_path / "net", fit(SPEC.build(jax.random.key(0)), 0, 2), 2)
        half, epoch = self.restore(tmp_path / "net")
        assert epoch == 2
        resumed = fit(half, epoch, 4)
        for a, b in zip(jax.tree.leaves(resumed.params), jax.tree.leaves(whole.params), strict=True):
            np.testing.assert_array_equal(a, b)
        self.save(tmp_path / "net", resumed, 4)
        assert [path.name for path in (tmp_path / "net").iterdir() if path.name.isdigit()] == ["4"]
        loaded, spec = checkpoints.load_network(tmp_path / "net")
        assert spec == SPEC
        images = data.to_float(IMAGES)
        np.testing.assert_array_equal(loaded.logits_fn(images), whole.logits_fn(images))

    def test_nothing_stored_is_the_start(self, tmp_path):
        state, epoch = self.restore(tmp_path / "net")
        assert epoch == 0
        assert int(state.step) == 0

    def test_a_network_of_another_run_is_refused(self, tmp_path):
        self.save(tmp_path / "net", SPEC.build(jax.random.key(0)), 4)
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
        self.save(tmp_path / "run" / "net", SPEC.build(jax.random.key(0)), 3)
        with pytest.raises(checkpoints.CheckpointError, match=r"holds no checkpoint; it contains .*run/net"):
            checkpoints.load_network(tmp_path / "run")
        with pytest.raises(checkpoints.CheckpointError, match="stopped after 3 of 4 epochs"):
            checkpoints.load_network(tmp_path / "run" / "net")

    @pytest.mark.parametrize("damage", ["truncate data", "truncate manifest", "remove state", "truncate spec"])
    def test_damage_is_told(self, tmp_path, damage):
        directory = tmp_path / "net"
        self.save(directory, SPEC.build(jax.random.key(0)), 4)
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
        self.save(tmp_path / "net", SPEC.build(jax.random.key(0)), 4)
        path = next((tmp_path / "net" / "4" / "spec").glob("metadata*"))
        path.write_text(json.dumps(json.loads(path.read_text()) | {"num_classes": 7}))
        with pytest.raises(checkpoints.CheckpointError, match="damaged or of another network"):
            checkpoints.load_network(tmp_path / "net")

    def test_parameters_that_are_not_finite(self, tmp_path):
        state = SPEC.build(jax.random.key(0))
        self.save(tmp_path / "net", state.replace(params=jax.tree.map(lambda leaf: leaf * jnp.nan, state.params)), 4)
        with pytest.raises(checkpoints.CheckpointError, match="not finite"):
            checkpoints.load_network(tmp_path / "net")
