"""Arrays from bytes of a file, without memory for what the file only claims to have."""

import io
import math
import os
import pathlib
import zipfile
from collections.abc import Sequence
from typing import IO, Any

import numpy as np

# Files, and members of archives, which have no type in common.
Stream = IO[bytes] | io.BufferedIOBase
_CHUNK = 2**20
# Compressed numbers may be so many times larger than the file, and this much more.
_COMPRESSION, _CONSTANT = 16, 2**24


class File(io.BufferedReader):
    """A file to read, of `size` bytes: none of its reads takes memory for more, whatever a header asks for."""

    def __init__(self, path: pathlib.Path) -> None:
        super().__init__(io.FileIO(path))
        self.size = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        """Reads so many bytes, or all that are left."""
        rest = max(self.size - self.tell(), 0)
        return super().read(rest if size is None or size < 0 else min(size, rest))


def check_total(total: int, size: int, *, compressed: bool = True) -> None:
    """Refuses arrays that are too large for the file they are in.

    Args:
      total: their bytes.
      size: of the file in bytes.
      compressed: they may be larger than the file, but not by more than compression explains.

    Raises:
      ValueError: with both numbers.
    """
    if total > (_COMPRESSION * size + _CONSTANT if compressed else size):
        raise ValueError(f"it describes {total} bytes of arrays, and has {size} bytes itself")


def check_shape(shape: Any) -> int:
    """The number of elements of a shape, which may be anything that a file can say.

    Raises:
      ValueError: for what is no shape.
    """
    fits = isinstance(shape, list | tuple) and len(shape) <= 64
    if not fits or not all(type(size) is int and 0 <= size < 2**62 for size in shape):
        raise ValueError("it has an array whose shape is not a few natural numbers")
    return math.prod(shape)


def read_bytes(stream: Stream, size: int) -> np.ndarray:
    """So many bytes of a stream. That it can have as many is checked before.

    Raises:
      ValueError: when it ends before.
    """
    content = np.empty(size, np.uint8)
    view, done = content.data, 0
    while done < size:
        # In parts, as members of archives read into a second buffer.
        part = stream.read(min(_CHUNK, size - done))
        if not part:
            raise ValueError("it ends before its last array does")
        view[done : done + len(part)] = part
        done += len(part)
    return content


def typed(content: np.ndarray, dtype: np.dtype, *, swap: bool = False) -> np.ndarray:
    """The array that bytes are; `swap` for those of the other byte order."""
    if dtype == np.bool_:
        np.minimum(content, 1, out=content)
    if swap and dtype.itemsize > 1:
        content = content.view(f"u{dtype.itemsize}").byteswap(inplace=True)
    return content.view(dtype)


def members(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """The members of an archive in a file of `size` bytes, which are not too large for it.

    Raises:
      ValueError: when they are, or are compressed in another way than NumPy's.
    """
    found: Sequence[zipfile.ZipInfo] = archive.infolist()
    kinds = {member.compress_type for member in found}
    # bzip2 and LZMA expand a few bytes to any number in one step.
    if not kinds <= {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise ValueError("it is compressed by another method than deflate")
    total = sum(member.file_size for member in found)
    check_total(total, size, compressed=zipfile.ZIP_DEFLATED in kinds)
    return {member.filename: member for member in found}
