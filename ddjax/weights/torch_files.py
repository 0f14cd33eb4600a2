"""What `torch.save` writes: a zip archive since PyTorch 1.6, and a row of pickles before."""

import contextlib
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ddjax.weights import arrays, pickles

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_NOT_TORCH = "it is not a file of torch.save"
# What zipfile raises for archives that are damaged or encrypted, or of a later version.
_OF_ZIPFILE = (zipfile.BadZipFile, zlib.error, struct.error, RuntimeError, EOFError, OverflowError)
_OF_ZIPFILE += (OSError, LookupError)
# The bytes of a storage.
_Fetch = Callable[[pickles.Storage], np.ndarray]


def read(file: arrays.File) -> tuple[Any, Callable[[pickles.Tensor], np.ndarray]]:
    """Reads the structure of a file.

    Returns:
      What was saved, with `Tensor` in the place of tensors; and a function that reads one, while the file is open.

    Raises:
      ValueError: for a file that is damaged, or holds anything but tensors, numbers, strings and containers of them;
        so does the function.
    """
    is_zip = file.read(2) == b"PK"
    file.seek(0)
    value, fetch = (_zip if is_zip else _legacy)(file)
    fetched: dict[str, np.ndarray] = {}
    copied = 0

    def array(tensor: pickles.Tensor) -> np.ndarray:
        nonlocal copied
        storage = tensor.storage
        if storage.key not in fetched:
            fetched[storage.key] = fetch(storage)
        if 0 in tensor.shape:
            return np.empty(tensor.shape, storage.dtype)
        numbers = fetched[storage.key][storage.start + tensor.offset : storage.start + storage.count]
        strides = [stride * numbers.itemsize for stride in tensor.strides]
        view = np.lib.stride_tricks.as_strided(numbers, tensor.shape, strides)
        if view.flags.c_contiguous:
            return view
        # Tensors that share memory, or repeat it by a stride of zero, could ask for any amount.
        copied += view.nbytes
        arrays.check_total(copied, file.size)
        return view.copy(order="C")

    return value, array


@contextlib.contextmanager
def damage_of_archives() -> Iterator[None]:
    """Turns what `zipfile` raises into an error of value."""
    try:
        yield
    except _OF_ZIPFILE as error:
        raise ValueError(f"its zip archive is damaged ({type(error).__name__}: {error})") from error


def _zip(file: arrays.File) -> tuple[Any, _Fetch]:
    with damage_of_archives():
        archive = zipfile.ZipFile(file)
    members = arrays.members(archive, file.size)
    roots = [name.removesuffix("data.pkl") for name in members if f"/{name}".endswith("/data.pkl")]
    if any(f"{root}constants.pkl" in members for root in roots):
        raise ValueError("it is a TorchScript archive, which holds a program")
    if len(roots) != 1:
        raise ValueError(_NOT_TORCH)
    (root,) = roots

    def member(name: str, most: int) -> bytes:
        if members[root + name].file_size > most:
            raise ValueError(f"its {name} has more than {most} bytes")
        with damage_of_archives():
            return archive.read(members[root + name])

    order = member("byteorder", 16).decode() if f"{root}byteorder" in members else "little"

    def fetch(storage: pickles.Storage) -> np.ndarray:
        found = members.get(f"{root}data/{storage.key}")
        length = storage.numel * storage.dtype.itemsize
        if found is None or found.file_size != length:
            there = 0 if found is None else found.file_size
            raise ValueError(f"it has a storage of {length} bytes by its pickle, and {there} are there")
        with damage_of_archives(), archive.open(found) as stream:
            return arrays.typed(arrays.read_bytes(stream, length), storage.dtype, swap=order != sys.byteorder)

    return pickles.read(member("data.pkl", pickles.MOST_BYTES)).value, fetch


def _legacy(file: arrays.File) -> tuple[Any, _Fetch]:
    head = file.read(pickles.MOST_BYTES)
    # The magic number, the protocol, the machine, what was saved, and the storages' keys in the order of their numbers.
    found, position = [], 0
    for wanted in (_MAGIC, _PROTOCOL, None, None, None):
        found.append(pickles.read(head[position:]))
        position += found[-1].length
        if wanted is not None and found[-1].value != wanted:
            raise ValueError(_NOT_TORCH)
    (saved, keys), starts = found[3:], {}
    for key in keys.value if isinstance(keys.value, list) else ():
        storage = saved.storages.get(key) if isinstance(key, str) else None
        file.seek(position)
        numel = file.read(8)
        position += 8
        if storage is None or len(numel) < 8 or struct.unpack("<q", numel)[0] != storage.numel:
            raise ValueError("it ends early, or its storages are others than its pickle names")
        starts[key] = position
        position += storage.numel * storage.dtype.itemsize
        if position > file.size:
            raise ValueError(f"it should have {position} bytes or more, and has {file.size}")

    def fetch(storage: pickles.Storage) -> np.ndarray:
        if storage.key not in starts:
            raise ValueError("it names a storage that it does not hold")
        file.seek(starts[storage.key])
        content = arrays.read_bytes(file, storage.numel * storage.dtype.itemsize)
        return arrays.typed(content, storage.dtype, swap=sys.byteorder == "big")

    return saved.value, fetch
