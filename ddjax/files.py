"""Paths that users give, and files that are written whole or not at all."""

import os
import pathlib
import re

PathLike = str | os.PathLike[str]


def local_path(path: PathLike) -> pathlib.Path:
    """The path with `~` expanded.

    Raises:
      ValueError: for the address of remote storage such as `gs://bucket/run`, for an empty path, and for `~` where the
        home directory is not known.
    """
    text = os.fspath(path)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:/", text):
        raise ValueError(f"{text} is remote storage; give a local directory, or mount the storage and give its path")
    if not text or "\0" in text:
        raise ValueError(f"{text!r} is not the path of a directory")
    try:
        return pathlib.Path(text).expanduser()
    except RuntimeError:
        raise ValueError(f"{text} needs the home directory, which is not known: set HOME or give a full path") from None


def write_atomically(path: PathLike, content: bytes) -> None:
    """Writes a file whole or not at all.

    Raises:
      OSError: when it cannot be written, as on a full disk; what was there before stays.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
