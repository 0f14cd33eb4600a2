"""Weights from files and directories of any known format."""

import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization, traverse_util

from ddjax.checks import first_line, listed, printable
from ddjax.files import PathLike, local_path
from ddjax.weights import arrays, torch_files
from ddjax.weights.state_dict import load_state_dict

FORMATS = (
    "files of torch.save, .safetensors, .npz, flax's .msgpack, directories of orbax, and directories of .npy files"
)
# The dtypes of weights, by the letters that NumPy has for their kinds.
_KINDS = "biuf"


def load_weights(path: PathLike, *, separator: str | None = None) -> dict[str, Any]:
    """Reads a network's weights from a file or a directory.

    The formats are those of `load_state_dict`; `.npz`; `.msgpack` as `flax.serialization` writes it; a directory of
    orbax, or of its `CheckpointManager` with one step; and a directory of `.npy` files, whose names are those of the
    arrays. Nothing that a file holds is run, and pickled objects in NumPy's files are refused.

    Args:
      path: of the file or the directory.
      separator: splits the names, such as "layer/kernel" at "/", and makes nested dictionaries of them, as flax has
        them; default: names stay as they are.

    Returns:
      The arrays by their names; nested dictionaries of them where the file nests them, as orbax and flax do.

    Raises:
      OSError: when there is no such file, or it cannot be read.
      ValueError: for a file that is damaged or of another format, and for the checkpoints of ddjax itself, which
        `ddjax.checkpoints.load_network` and the flag `--checkpoint` read.
    """
    path = local_path(path)
    readers = {".npz": _npz, ".msgpack": _msgpack}
    if path.is_dir():
        found = _guarded(_directory, path)
    elif path.suffix in readers:
        found = _guarded(readers[path.suffix], path)
    else:
        found = load_state_dict(path)
    if separator is None:
        return found
    names = traverse_util.flatten_dict(found, sep=separator)
    for name in names:
        if any(name.startswith(f"{other}{separator}") for other in names):
            raise ValueError(f"{path}: {printable(name)} is below the name of another array")
    return traverse_util.unflatten_dict(names, sep=separator)


def _guarded(read: Any, path: pathlib.Path) -> dict[str, Any]:
    try:
        return read(path)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {printable(first_line(error), most=400)}") from error


def _npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    with arrays.File(path) as file:
        with torch_files.damage_of_archives():
            archive = zipfile.ZipFile(file)
        members, found = arrays.members(archive, file.size), {}
        for name, member in members.items():
            if not name.endswith(".npy"):
                raise ValueError(f"it holds {printable(name)}, which is no array")
            with torch_files.damage_of_archives(), archive.open(member) as stream:
                found[name.removesuffix(".npy")] = _npy(stream, member.file_size)
    return found


def _npy(stream: arrays.Stream, size: int) -> np.ndarray:
    """An array in NumPy's format, of `size` bytes with its header."""
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"it has an array in version {version} of NumPy's format, which holds no numbers alone")
    name = f"read_array_header_{version[0]}_0"
    shape, fortran, dtype = getattr(np.lib.format, name)(stream)
    if dtype.kind not in _KINDS:
        raise ValueError(f"it has an array of {dtype}, which are no numbers; save bfloat16 as float32")
    rest = size - stream.tell()
    if arrays.check_shape(shape) * dtype.itemsize != rest:
        raise ValueError(f"it has an array of shape {shape} by its header, and {rest} bytes for it")
    content = arrays.typed(arrays.read_bytes(stream, rest), dtype)
    found = content.reshape(shape[::-1]).T if fortran else content.reshape(shape)
    return found.astype(dtype.newbyteorder("="), copy=False)


def _msgpack(path: pathlib.Path) -> dict[str, Any]:
    content = path.read_bytes()
    try:
        return _numbers(serialization.msgpack_restore(content))
    except Exception as error:  # msgpack has its own errors, and flax raises whatever its values lead it to
        raise ValueError(f"it is damaged, or not of flax ({type(error).__name__}: {first_line(error)})") from error


def _numbers(tree: Any) -> dict[str, Any]:
    """A tree of arrays, as NumPy has them."""
    if not isinstance(tree, Mapping):
        raise ValueError("it holds no dictionary of arrays")
    found = jax.tree.map(np.asarray, dict(tree))
    if any(leaf.dtype.kind in "OSUM" for leaf in jax.tree.leaves(found)):
        raise ValueError("it holds something else than arrays of numbers")
    return found


def _directory(path: pathlib.Path) -> dict[str, Any]:
    if files := sorted(path.glob("*.npy")):
        found = {}
        for name in files:
            with arrays.File(name) as file:
                found[name.stem] = _npy(file, file.size)
        return found
    if (path / "config.json").is_file() or any(path.glob("*/spec")) or (path / "spec").is_dir():
        raise ValueError(
            "it is a run or a checkpoint of ddjax; give the network's directory, RUN/checkpoints/..., to "
            "ddjax.checkpoints.load_network or to the flag --checkpoint"
        )
    # The directory itself, an item of a step, or a manager's only step.
    trees = [each.parent for pattern in ("", "*/", "*/*/") for each in sorted(path.glob(f"{pattern}_METADATA"))]
    if not trees:
        raise ValueError(f"it holds no weights; known: {FORMATS}")
    if trees[0] != path and len(trees) > 1:
        raise ValueError(f"it holds more than one tree of arrays; give one of {listed(map(str, trees), most=4)}")
    return _orbax(trees[0])


def _orbax(path: pathlib.Path) -> dict[str, Any]:
    checkpointer = ocp.PyTreeCheckpointer()
    size = sum(each.stat().st_size for each in path.rglob("*") if each.is_file())
    try:
        tree: Any = checkpointer.metadata(path.absolute()).item_metadata
        tree = getattr(tree, "tree", tree)
        leaves = jax.tree.leaves(tree)
        total = sum(arrays.check_shape(leaf.shape) * np.dtype(leaf.dtype).itemsize for leaf in leaves)
        arrays.check_total(total, size)
        # As NumPy arrays, whatever devices they were on.
        how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return _numbers(checkpointer.restore(path.absolute(), args=ocp.args.PyTreeRestore(restore_args=how)))  # pyright: ignore[reportCallIssue]
    except Exception as error:  # orbax raises whatever its storage layers do
        raise ValueError(f"its checkpoint of orbax is damaged: {first_line(error)}") from error
    finally:
        checkpointer.close()
