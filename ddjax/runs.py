"""A run's directory: `config.json`, `results.jsonl`, checkpoints. What is on disk is never lost and never repeated.

With several processes, all call the same functions and process 0 alone reads and writes: the others learn from it what
is there, so that only process 0 must see the directory.
"""

import contextlib
import errno
import fcntl
import importlib.metadata
import io
import json
import os
import pathlib
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from ddjax import parallel
from ddjax.files import PathLike, local_path, write_atomically
from ddjax.version import __version__


class RunError(RuntimeError):
    """A run's directory that cannot be used as asked; the message says why and what to do."""


def environment() -> dict[str, Any]:
    """The versions, the device and the settings that results depend on, for `config.json`."""
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")}
    devices = jax.devices()
    return versions | {
        "ddjax": __version__,
        "backend": jax.default_backend(),
        "device_kind": devices[0].device_kind,
        "num_devices": len(devices),
        "matmul_precision": str(jax.config.values["jax_default_matmul_precision"]),
        "git_revision": _git_revision(),
    }


def _git_revision() -> str | None:
    """The commit of the checkout that this file belongs to; None where it was installed from elsewhere."""
    here = pathlib.Path(__file__).resolve().parent
    command = ["git", "-C", here, "rev-parse", "HEAD"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        if (here.parent / ".git").exists():
            return subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True, timeout=10).strip()
    return None


class Run:
    """One directory of results, open for appending.

    The directory is locked until the run is closed or its process ends, however it ends; a second run of the same
    directory is refused.

    Attributes:
      workdir: the directory.
    """

    _lock: int | None = None

    def __init__(self, workdir: PathLike, flags: Mapping[str, Any], resolved: Mapping[str, Any]) -> None:
        """Opens a new directory, or one that was begun with the same flags.

        Args:
          workdir: where; made if it is not there.
          flags: what determines the numbers; JSON values.
          resolved: what else a reader of `config.json` should know.

        Raises:
          RunError: when the directory cannot be written, is not a run's, is in use by another process, or belongs to a
            run with other flags, data or recipe; the message names what differs.
          ValueError: for a path that is no local one.
        """
        self.workdir = local_path(workdir)
        self._records: list[dict[str, Any]] = parallel.on_primary(lambda: self._open(flags, resolved))

    def _open(self, flags: Mapping[str, Any], resolved: Mapping[str, Any]) -> list[dict[str, Any]]:
        config_path = self.workdir / "config.json"
        try:
            with _writing(self.workdir):
                self.workdir.mkdir(parents=True, exist_ok=True)
                # Before the lock, so that a directory that is refused stays as it is; and after it, for what another
                # run did.
                _check_workdir(self.workdir, flags, resolved)
                self._acquire_lock()
                _check_workdir(self.workdir, flags, resolved)
                if not config_path.exists():
                    config = {"flags": flags, "resolved": resolved, "environment": environment()}
                    write_atomically(config_path, (json.dumps(config, indent=2) + "\n").encode())
                self._drop_unfinished_line()
        except RunError:
            self.close()
            raise
        return read_results(self.workdir)

    def _acquire_lock(self) -> None:
        """Locks the directory for this process. The system releases the lock when the process ends."""
        self._lock = os.open(self.workdir / ".lock", os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"{self.workdir} is in use by another run that has not ended; wait for it or choose another --workdir"
            ) from None
        except OSError as error:
            # Some network file systems have no locks; a run must be possible there.
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise

    def close(self) -> None:
        """Releases the directory for other runs."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _drop_unfinished_line(self) -> None:
        """Cuts off what a killed process left of a line, so that the next one starts clean."""
        with open(self.workdir / "results.jsonl", "a+b") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)

    @property
    def records(self) -> tuple[dict[str, Any], ...]:
        """All measurements so far, in order."""
        return tuple(self._records)

    def find(self, **fields: Any) -> dict[str, Any] | None:
        """The first record with these fields, or None."""
        return next((record for record in self._records if fields.items() <= record.items()), None)

    def append(self, **fields: Any) -> None:
        """Adds one measurement to `results.jsonl`, at once and for good.

        Args:
          **fields: a flat object of JSON values.

        Raises:
          ValueError: for a number that is not finite, which JSON cannot hold.
          RunError: when it cannot be written, as on a full disk; the file is then as it was before.
        """
        line = json.dumps(fields, allow_nan=False)
        if parallel.is_primary():
            self._append_line(line.encode() + b"\n")
        # Times differ between processes; nothing is decided by them.
        self._records.append(json.loads(line))

    def _append_line(self, line: bytes) -> None:
        path = self.workdir / "results.jsonl"
        with _writing(self.workdir):
            size = path.stat().st_size
            try:
                with open(path, "ab") as file:
                    file.write(line)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError:
                os.truncate(path, size)
                raise

    def save_arrays(self, name: str, **arrays: np.ndarray | np.generic) -> pathlib.Path:
        """Writes `name`.npz in the directory, whole or not at all.

        Raises:
          RunError: when it cannot be written, as on a full disk.
        """
        path = self.workdir / f"{name}.npz"
        if parallel.is_primary():
            buffer = io.BytesIO()
            np.savez_compressed(buffer, **arrays)  # pyright: ignore[reportArgumentType]
            with _writing(self.workdir):
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(path, buffer.getvalue())
        return path

    def load_arrays(self, name: str) -> dict[str, np.ndarray]:
        """Reads what `save_arrays` wrote."""

        def read() -> dict[str, np.ndarray]:
            with np.load(self.workdir / f"{name}.npz") as arrays:
                return dict(arrays)

        return parallel.on_primary(read)


@contextlib.contextmanager
def _writing(workdir: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot write to {workdir}: {error.strerror or error}") from error


def check_workdir(workdir: PathLike, flags: Mapping[str, Any], resolved: Mapping[str, Any] | None = None) -> None:
    """Refuses a directory that a `Run` cannot use, before any work is done; `resolved` may not be known yet.

    Raises:
      RunError: as `Run` does.
    """
    parallel.on_primary(lambda: _check_workdir(local_path(workdir), flags, resolved))


def _check_workdir(workdir: pathlib.Path, flags: Mapping[str, Any], resolved: Mapping[str, Any] | None) -> None:
    existing = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise RunError(f"cannot write to {workdir}: {existing} is not a directory that can be written to")
    if not (workdir / "config.json").exists():
        if workdir.exists() and any(not entry.name.startswith(".") for entry in workdir.iterdir()):
            raise RunError(f"{workdir} holds other files and no run; choose another --workdir")
        return
    config = read_config(workdir)
    if config.get("merged"):
        raise RunError(f"{workdir} holds the merged results of a job array; choose another --workdir")
    differs = differing(config["flags"], json.loads(json.dumps(flags)), "--")
    if resolved is not None:
        differs += differing(config.get("resolved", {}), json.loads(json.dumps(resolved)))
    if differs:
        raise RunError(
            f"{workdir} belongs to a run with other flags; choose another --workdir. Different: {'; '.join(differs)}"
        )


def differing(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Names each setting that differs, with both values."""
    return [
        f"{prefix}{name}: {before.get(name, 'nothing')} there, {now.get(name, 'nothing')} now"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]


def read_config(workdir: PathLike) -> dict[str, Any]:
    """Reads `config.json`.

    Raises:
      RunError: when there is none, or it is no config of a run.
    """
    path = local_path(workdir) / "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise RunError(f"{workdir} is not the directory of a run: it has no config.json") from None
    except (OSError, json.JSONDecodeError) as error:
        raise RunError(f"cannot read {path}: {error}") from error
    if not isinstance(config, dict) or "flags" not in config:
        raise RunError(f"{path} is not the config of a run")
    return config


def read_results(workdir: PathLike) -> list[dict[str, Any]]:
    """Reads `results.jsonl`; a last line without its end, of a killed process, does not count.

    Raises:
      RunError: when there is none, or a line is damaged.
    """
    path = local_path(workdir) / "results.jsonl"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RunError(f"cannot read {path}: {error.strerror}") from error
    records = []
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), 1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise RunError(f"line {number} of {path} is damaged: {error}") from error
    return records
