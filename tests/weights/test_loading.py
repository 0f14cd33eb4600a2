"""Weights of NumPy, flax and orbax; and whether they fit."""

import pathlib
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import serialization

import ddjax
from ddjax.weights import check_match

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "guide" / "weights.md"
TREE = {
    "params": {
        "dense": {
            "kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
            "bias": np.asarray(jnp.zeros(3, jnp.bfloat16)),
        }
    },
    "step": np.asarray(3),
}


def check_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert type(one) is np.ndarray
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_reads_npz(save, tmp_path):
    arrays = {
        "layer/kernel": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "layer/bias": np.arange(3, dtype=">i4"),
        "mask": np.asarray([True, False]),
        "scale": np.float16(2),
        "empty": np.zeros((0, 3)),
    }
    save(tmp_path / "net.npz", **arrays)
    found = ddjax.load_weights(tmp_path / "net.npz")
    assert list(found) == list(arrays)
    for name, each in found.items():
        assert each.dtype == arrays[name].dtype.newbyteorder("=")
        np.testing.assert_array_equal(each, arrays[name])
    nested = ddjax.load_weights(tmp_path / "net.npz", separator="/")
    assert set(nested) == {"layer", "mask", "scale", "empty"}
    np.testing.assert_array_equal(nested["layer"]["bias"], [0, 1, 2])


def test_refuses_to_nest_a_name_below_an_array(tmp_path):
    np.savez(tmp_path / "net.npz", **{"layer": np.zeros(1), "layer.bias": np.zeros(1)})
    with pytest.raises(ValueError, match=r"layer\.bias is below the name of another array"):
        ddjax.load_weights(tmp_path / "net.npz", separator=".")


def test_reads_a_directory_of_npy(tmp_path):
    np.save(tmp_path / "W1.npy", np.eye(2))
    np.save(tmp_path / "B1.npy", np.zeros(2))
    (tmp_path / "README.md").write_text("two arrays")
    found = ddjax.load_weights(tmp_path)
    check_equal(found, {"W1": np.eye(2), "B1": np.zeros(2)})


def test_reads_msgpack_of_flax(tmp_path):
    path = tmp_path / "net.msgpack"
    path.write_bytes(serialization.msgpack_serialize(TREE))
    check_equal(ddjax.load_weights(path), TREE)
    path.write_bytes(serialization.msgpack_serialize({"name": "net"}))
    with pytest.raises(ValueError, match="something else than arrays of numbers"):
        ddjax.load_weights(path)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A directory of orbax, and one of its manager."""
    root = tmp_path_factory.mktemp("orbax")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(root / "tree", TREE)
    with ocp.CheckpointManager(root / "manager") as manager:
        manager.save(5, args=ocp.args.StandardSave(TREE))
    return root


@pytest.mark.parametrize("name", ["tree", "manager", "manager/5", "manager/5/default"])
def test_reads_directories_of_orbax(stored, name):
    check_equal(ddjax.load_weights(stored / name), TREE)


def test_refuses_directories_of_nothing_or_too_much(stored, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(stored / "tree", tmp_path / "two" / name)
    with pytest.raises(ValueError, match=r"more than one tree of arrays; give one of .*two/a, .*two/b"):
        ddjax.load_weights(tmp_path / "two")
    with open(tmp_path / "two" / "b" / "_METADATA", "w") as file:
        file.write("{}")
    with pytest.raises(ValueError, match="its checkpoint of orbax is damaged"):
        ddjax.load_weights(tmp_path / "two" / "b")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match=r"no weights; known: files of torch\.save"):
        ddjax.load_weights(empty)
    (empty / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="--checkpoint"):
        ddjax.load_weights(empty)
    with pytest.raises(ValueError, match=r"load_weights reads directories"):
        ddjax.load_state_dict(empty)
    with pytest.raises(FileNotFoundError):
        ddjax.load_weights(tmp_path / "nothing.pth")


def test_refuses_weights_that_do_not_fit():
    expected = {"a": np.zeros((2, 3)), "b": (4,), "c": jax.ShapeDtypeStruct((), jnp.float32)}
    check_match({"c": 1.0, "b": np.zeros(4), "a": jnp.zeros((2, 3))}, expected)
    check_match({"x": {"y": np.zeros(1)}}, {"x/y": (1,)})
    weights = {"a": np.zeros((3, 2)), **{f"d{number}": np.zeros(1) for number in range(6)}}
    with pytest.raises(ValueError) as refused:
        check_match(weights, expected, what="small_cnn")
    assert str(refused.value) == (
        "the weights do not fit small_cnn; missing: b, c; unexpected: d0, d1, d2, d3, and 2 more; "
        "of another shape: a (3, 2) instead of (2, 3)"
    )


def test_examples_of_the_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    # A reader has no strict promotion rules.
    with jax.numpy_rank_promotion("allow"):
        for block in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE):
            exec(block, namespace)
        np.testing.assert_array_equal(namespace["logits_fn"](np.ones((2, 4), np.float32)), np.full((2, 3), 4.0))
