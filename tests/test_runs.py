import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from ddjax import runs

FLAGS = {"recipe": "digits", "seed": 0, "temperatures": [1.0, 2.0]}


class TestRun:
    def test_records_survive_and_are_found(self, tmp_path):
        run = runs.Run(tmp_path / "new" / "run", FLAGS, {"note": 1})
        assert run.find(measure="accuracy") is None
        run.append(measure="accuracy", temperature=None, accuracy=0.5)
        run.append(measure="accuracy", temperature=2.0, accuracy=0.75)
        run.close()
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
        run.close()
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

    def test_second_run_in_one_directory_is_refused_while_the_first_lives(self, tmp_path):
        program = (
            "import sys; from ddjax import runs; run = runs.Run(sys.argv[1], {'seed': 0}, {}); "
            "print('open', flush=True); sys.stdin.readline()"
        )
        command = [sys.executable, "-c", program, str(tmp_path)]
        root = pathlib.Path(__file__).resolve().parents[1]
        with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
            assert other.stdout.readline() == "open\n"
            with pytest.raises(runs.RunError, match="is in use by another run"):
                runs.Run(tmp_path, {"seed": 0}, {})
            other.kill()
            other.wait()
        # The lock dies with its process.
        assert runs.Run(tmp_path, {"seed": 0}, {}).find(measure="one") is None

    def test_bucket_paths_are_refused_in_a_sentence(self):
        with pytest.raises((runs.RunError, ValueError), match="gs://"):
            runs.Run("gs://bucket/run", FLAGS, {})

    def test_a_home_directory_is_expanded(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        run = runs.Run("~/run", FLAGS, {})
        assert run.workdir == tmp_path / "run"
