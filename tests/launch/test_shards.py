import json

import numpy as np
import pytest

from ddjax import runs
from launch import shards


def piece(workdir, text, flags=None, resolved=None):
    shard = shards.parse(text)
    run = runs.Run(workdir / shard.directory, {"shard": text} | (flags or {"epochs": 3}), resolved or {"n": 1})
    run.append(measure="accuracy", index=shard.index)
    run.save_arrays(f"examples/{shard.index}", image=np.ones(2) * shard.index)
    return run


def test_rows_are_dealt_out_once_each():
    rows = list(range(10))
    dealt = [shards.parse(f"{index}/4").take(rows) for index in range(4)]
    assert sorted(row for rows_of_one in dealt for row in rows_of_one) == rows
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1


@pytest.mark.parametrize("text", ["4/4", "1", "-1/4", "1/4/2", "a/b", ""])
def test_bad_shard(text):
    with pytest.raises(ValueError, match="from 0 to n - 1"):
        shards.parse(text)


def test_merge_is_one_run_and_may_be_repeated(tmp_path):
    piece(tmp_path, "0/3")
    piece(tmp_path, "2/3")
    assert shards.are_in(tmp_path)
    assert shards.merge(tmp_path) == [shards.Shard(1, 3)]
    assert [record["index"] for record in runs.read_results(tmp_path)] == [0, 2]
    piece(tmp_path, "1/3")
    assert shards.merge(tmp_path) == []
    assert [record["index"] for record in runs.read_results(tmp_path)] == [0, 1, 2]
    config = runs.read_config(tmp_path)
    assert config["flags"] == {"epochs": 3}
    assert len(config["merged"]) == 3
    assert sorted(path.name for path in (tmp_path / "examples").iterdir()) == ["0.npz", "1.npz", "2.npz"]
    with pytest.raises(runs.RunError, match="merged results of a job array"):
        runs.check_workdir(tmp_path, {"epochs": 3})


def test_pieces_that_do_not_belong_together(tmp_path):
    with pytest.raises(runs.RunError, match="no pieces"):
        shards.merge(tmp_path)
    piece(tmp_path / "counts", "0/2")
    piece(tmp_path / "counts", "0/3")
    with pytest.raises(runs.RunError, match="different job arrays"):
        shards.merge(tmp_path / "counts")
    piece(tmp_path / "flags", "0/2", {"epochs": 3})
    piece(tmp_path / "flags", "1/2", {"epochs": 4})
    with pytest.raises(runs.RunError, match="epochs: 3 there, 4 now"):
        shards.merge(tmp_path / "flags")
    piece(tmp_path / "own", "0/2")
    (tmp_path / "own/config.json").write_text(json.dumps({"flags": {}}))
    with pytest.raises(runs.RunError, match="run of its own"):
        shards.merge(tmp_path / "own")
