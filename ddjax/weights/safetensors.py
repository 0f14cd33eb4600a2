"""Files of the safetensors format: 8 bytes of a length, a JSON header, and the numbers.

Reference:
  github.com/huggingface/safetensors, "Format".
"""

import json
import struct
import sys
from typing import Any

import ml_dtypes
import numpy as np

from ddjax.weights import arrays

_MOST_HEADER = 2**24
_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U64": np.uint64,
    "U32": np.uint32,
    "U16": np.uint16,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def read(file: arrays.File) -> dict[str, np.ndarray]:
    """Reads the arrays of a file.

    Raises:
      ValueError: for a file that is damaged, or has a dtype that NumPy does not know.
    """
    start, tensors = _header(file)
    # Every byte belongs to one array, and none to two.
    end = 0
    for begin, stop, _, _ in sorted(tensors.values(), key=lambda entry: entry[:2]):
        if begin != end:
            raise ValueError("its arrays overlap, or leave bytes between them")
        end = stop
    if start + end != file.size:
        raise ValueError(f"its arrays have {end} bytes by its header, and {file.size - start} are there")
    found = {}
    for name, (begin, stop, dtype, shape) in tensors.items():
        file.seek(start + begin)
        found[name] = arrays.typed(arrays.read_bytes(file, stop - begin), dtype, swap=sys.byteorder == "big").reshape(
            shape
        )
    return found


_Entry = tuple[int, int, np.dtype, list[int]]


def _header(file: arrays.File) -> tuple[int, dict[str, _Entry]]:
    """Where the numbers start, and for each name where its own are, their dtype and their shape."""
    if file.size < 8:
        raise ValueError("it has no header")
    (length,) = struct.unpack("<Q", file.read(8))
    if length > min(file.size - 8, _MOST_HEADER):
        raise ValueError(f"its header has {length} bytes by its first number; {file.size - 8} are there")
    try:
        header = json.loads(file.read(length).decode(), object_pairs_hook=_without_doubles)
    except RecursionError:
        raise ValueError("its header is nested too deeply") from None
    if not isinstance(header, dict):
        raise ValueError("its header is no table of arrays")
    header.pop("__metadata__", None)
    return 8 + length, {name: _entry(entry) for name, entry in header.items()}


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("its header has a name twice")
    return found


def _entry(entry: Any) -> _Entry:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError("its header describes an array by other words than dtype, shape and data_offsets")
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in _DTYPES:
        raise ValueError(f"it has an array of a dtype that is not read; known: {', '.join(_DTYPES)}")
    dtype, offsets = np.dtype(_DTYPES[entry["dtype"]]), entry["data_offsets"]
    count = arrays.check_shape(entry["shape"])
    arrays.check_shape(offsets)
    if len(offsets) != 2 or offsets[1] - offsets[0] != count * dtype.itemsize:
        raise ValueError(f"it has an array of shape {entry['shape']} with too many or too few bytes for it")
    return offsets[0], offsets[1], dtype, entry["shape"]
