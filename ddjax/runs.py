"""A run's directory: `config.json`, `results.jsonl`, checkpoints. What is on disk is never lost and never repeated.

With several processes, all call the same functions and process 0 alone reads and writes: the others learn from it what
is there, so that only process 0 must see the directory.
"""

import dataclasses
import importlib.metadata
import io
import json
import math
import os
import pathlib
import subprocess
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from ddjax import parallel, recipes, training
from ddjax.generative import recipes as generative_recipes
from ddjax.version import __version__

PathLike = str | os.PathLike[str]


class RunError(RuntimeError):
    """A run's directory that cannot be used as asked; the message says why and what to do."""


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, damaged or of another network."""


def write_atomically(path: PathLike, content: bytes) -> None:
    """Writes a file whole or not at all."""
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    os.replace(temporary, path)


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
    if not (here.parent / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", here, "rev-parse", "HEAD"], capture_output=True, text=True, check=False, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


class Run:
    """One directory of results, open for appending.

    Attributes:
      workdir: the directory.
    """

    def __init__(self, workdir: PathLike, flags: Mapping[str, Any], resolved: Mapping[str, Any]) -> None:
        """Opens a new directory, or one that was begun with the same flags.

        Args:
          workdir: where; made if it is not there.
          flags: what determines the numbers; JSON values.
          resolved: what else a reader of `config.json` should know.

        Raises:
          RunError: when the directory cannot be written, is not a run's, or belongs to a run with other flags, data or
            recipe; the message names what differs.
        """
        self.workdir = pathlib.Path(workdir)
        self._records: list[dict[str, Any]] = parallel.on_primary(lambda: self._open(flags, resolved))

    def _open(self, flags: Mapping[str, Any], resolved: Mapping[str, Any]) -> list[dict[str, Any]]:
        flags, resolved = (json.loads(json.dumps(part)) for part in (flags, resolved))
        config_path = self.workdir / "config.json"
        try:
            self.workdir.mkdir(parents=True, exist_ok=True)
            _check_workdir(self.workdir, flags, resolved)
            if not config_path.exists():
                config = {"flags": flags, "resolved": resolved, "environment": environment()}
                write_atomically(config_path, (json.dumps(config, indent=2) + "\n").encode())
            self._drop_unfinished_line()
        except OSError as error:
            raise RunError(f"cannot write to {self.workdir}: {error.strerror or error}") from error
        return read_results(self.workdir)

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
        for record in self._records:
            if all(key in record and record[key] == value for key, value in fields.items()):
                return record
        return None

    def append(self, **fields: Any) -> None:
        """Adds one measurement to `results.jsonl`, at once and for good.

        Args:
          **fields: a flat object of JSON values.

        Raises:
          ValueError: for a number that is not finite, which JSON cannot hold.
        """
        line = json.dumps(fields, allow_nan=False)
        if parallel.is_primary():
            with open(self.workdir / "results.jsonl", "ab") as file:
                file.write(line.encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        # Times differ between processes; nothing is decided by them.
        self._records.append(json.loads(line))

    def save_arrays(self, name: str, **arrays: np.ndarray | np.generic) -> pathlib.Path:
        """Writes `name`.npz in the directory, whole or not at all."""
        path = self.workdir / f"{name}.npz"
        if not parallel.is_primary():
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # pyright: ignore[reportArgumentType]
        write_atomically(path, buffer.getvalue())
        return path

    def load_arrays(self, name: str) -> dict[str, np.ndarray]:
        """Reads what `save_arrays` wrote."""
        return parallel.on_primary(lambda: self._read_arrays(name))

    def _read_arrays(self, name: str) -> dict[str, np.ndarray]:
        with np.load(self.workdir / f"{name}.npz") as arrays:
            return dict(arrays)


def check_workdir(workdir: PathLike, flags: Mapping[str, Any], resolved: Mapping[str, Any] | None = None) -> None:
    """Refuses a directory that a run cannot use, before any work is done.

    Args:
      workdir: where the run is to be written.
      flags: as for `Run`.
      resolved: as for `Run`; None where it is not known yet.

    Raises:
      RunError: as `Run` does.
    """
    parallel.on_primary(lambda: _check_workdir(pathlib.Path(workdir), flags, resolved))


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
    path = pathlib.Path(workdir) / "config.json"
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
    path = pathlib.Path(workdir) / "results.jsonl"
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


@dataclasses.dataclass(frozen=True)
class NetworkSpec:
    """What it takes to build a network again; stored beside its parameters.

    Attributes:
      recipe: the name of the recipe it was trained with.
      network: of the recipe; a name for `ddjax.models.build`, or the kind of a generative model.
      dataset: a name for `ddjax.data.load`.
      num_classes: K.
      image_shape: (H, W, C).
      role: what the network is in its run, such as `"baseline"`, `"teacher"` or `"student"`.
      temperature: the T it was trained at.
      seed: of its training.
      epochs: of its whole training.
      num_train: the examples it was trained on.
      batch_size: examples of a step.
    """

    recipe: str
    network: str
    dataset: str
    num_classes: int
    image_shape: tuple[int, int, int]
    role: str
    temperature: float
    seed: int
    epochs: int
    num_train: int
    batch_size: int

    def build(self, key: jax.Array) -> Any:
        """The network before training."""
        if self.recipe in generative_recipes.RECIPES:
            return generative_recipes.create_state(generative_recipes.RECIPES[self.recipe], self.image_shape, key)
        recipe = recipes.get(self.recipe)
        module = recipes.make_network(recipe, self.num_classes, self.image_shape[2])
        optimizer = recipes.make_optimizer(recipe, training.steps_per_epoch(self.num_train, self.batch_size))
        return training.create_state(module, optimizer, self.image_shape, key)


class Checkpoints:
    """The checkpoints of one network's training, by epoch; only the newest is kept."""

    def __init__(self, directory: PathLike, spec: NetworkSpec, *, read_only: bool = False) -> None:
        """Opens or makes the directory.

        Args:
          directory: of this network alone.
          spec: what the network is.
          read_only: leaves everything as it is, also what another process may be writing just now.

        Raises:
          CheckpointError: when it holds another network.
        """
        self._directory = pathlib.Path(directory).absolute()
        self._spec = spec
        self._manager: Any = None
        parallel.on_primary(lambda: self._open(read_only))

    def _open(self, read_only: bool) -> None:
        if self._directory.exists() and _steps(self._directory):
            stored = _read_spec(self._directory)
            if stored != self._spec:
                raise CheckpointError(f"{self._directory} holds another network: {_differences(stored, self._spec)}")
        # Only this process takes part; orbax would else wait for the others.
        alone = ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(),
            active_processes={jax.process_index()},
            barrier_sync_key_prefix="ddjax",
        )
        if read_only:
            options = ocp.CheckpointManagerOptions(read_only=True, multiprocessing_options=alone)
        else:
            self._directory.mkdir(parents=True, exist_ok=True)
            options = ocp.CheckpointManagerOptions(
                max_to_keep=1, cleanup_tmp_directories=True, create=False, multiprocessing_options=alone
            )
        self._manager = ocp.CheckpointManager(self._directory, options=options)

    def save(self, epoch: int, state: Any) -> None:
        """Stores the state after an epoch, whole or not at all."""
        if not parallel.is_primary():
            return
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(_to_plain(state)),  # pyright: ignore[reportCallIssue]
            spec=ocp.args.JsonSave(dataclasses.asdict(self._spec)),  # pyright: ignore[reportCallIssue]
        )
        self._manager.save(epoch, args=items)
        self._manager.wait_until_finished()

    def restore(self, like: Any) -> tuple[Any, int]:
        """The newest state and its epoch, or `like` and 0 where there is none.

        Raises:
          CheckpointError: when the newest is damaged.
        """
        leaves, epoch = parallel.on_primary(lambda: self._restore(like))
        if leaves is None:
            return like, 0
        plain = jax.tree.unflatten(jax.tree.structure(_to_plain(like)), map(jnp.asarray, leaves))
        return like.replace(**plain | {"key": jax.random.wrap_key_data(plain["key"])}), epoch

    def _restore(self, like: Any) -> tuple[list[np.ndarray] | None, int]:
        epoch = self._manager.latest_step()
        if epoch is None:
            return None, 0
        return _restore_leaves(self._manager, epoch, like, self._directory), epoch

    def close(self) -> None:
        """Frees what orbax holds."""
        if self._manager is not None:
            self._manager.close()


def _to_plain(state: Any) -> dict[str, Any]:
    """The arrays of a state, on the host; typed keys as the integers they are."""
    plain = {
        **state.variables,
        "opt_state": state.opt_state,
        "step": state.step,
        "key": jax.random.key_data(state.key),
    }
    return jax.tree.map(np.asarray, plain)


def _restore_leaves(manager: ocp.CheckpointManager, epoch: int, like: Any, directory: pathlib.Path) -> list[np.ndarray]:
    wanted = _to_plain(like)
    try:
        plain = manager.restore(
            epoch,
            args=ocp.args.Composite(state=ocp.args.StandardRestore(wanted)),  # pyright: ignore[reportCallIssue]
        )["state"]
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(plain)]
        shapes = [(leaf.shape, leaf.dtype) for leaf in leaves]
        if shapes != [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(wanted)]:
            raise ValueError("its arrays have other shapes")
    except Exception as error:  # orbax raises whatever its storage layers do
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"the checkpoint {directory} is damaged or of another network: {reason}") from error
    return leaves


def _steps(directory: pathlib.Path) -> list[int]:
    return sorted(int(entry.name) for entry in directory.iterdir() if entry.name.isdigit())


def read_spec(directory: PathLike) -> NetworkSpec:
    """Reads what network a checkpoint directory holds.

    Raises:
      CheckpointError: when the directory is missing, holds no checkpoint, or a damaged one.
    """
    return parallel.on_primary(lambda: _read_spec(pathlib.Path(directory)))


def _read_spec(directory: pathlib.Path) -> NetworkSpec:
    if not directory.is_dir():
        raise CheckpointError(f"there is no checkpoint directory {directory}")
    steps = _steps(directory)
    if not steps:
        inside = sorted(path.parent.parent for path in directory.glob("**/spec") if path.is_dir())
        hint = f"; it contains {', '.join(map(str, inside))}" if inside else ""
        raise CheckpointError(f"{directory} holds no checkpoint{hint}")
    try:
        (path,) = (directory / str(steps[-1]) / "spec").glob("metadata*")
        fields = json.loads(path.read_text())
        return NetworkSpec(**fields | {"image_shape": tuple(fields["image_shape"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"the checkpoint {directory} is damaged: its network cannot be read: {error}") from error


def _differences(stored: NetworkSpec, wanted: NetworkSpec) -> str:
    return "; ".join(
        f"{field.name} {getattr(stored, field.name)} there, {getattr(wanted, field.name)} now"
        for field in dataclasses.fields(NetworkSpec)
        if getattr(stored, field.name) != getattr(wanted, field.name)
    )


def load_network(directory: PathLike) -> tuple[Any, NetworkSpec]:
    """Loads a trained network.

    Args:
      directory: of one network's checkpoints, as a launcher wrote it.

    Returns:
      Its state, a `TrainState` or that of a generative model, and what it is.

    Raises:
      CheckpointError: when the directory is missing, empty, damaged, or its training did not finish.
    """
    spec = read_spec(directory)
    checkpoints = Checkpoints(directory, spec, read_only=True)
    try:
        state, epoch = checkpoints.restore(spec.build(jax.random.key(spec.seed)))
    finally:
        checkpoints.close()
    if epoch < spec.epochs:
        raise CheckpointError(
            f"the training of {directory} stopped after {epoch} of {spec.epochs} epochs; "
            "run its launcher again to finish it"
        )
    if not all(math.isfinite(float(abs(leaf).sum())) for leaf in jax.tree.leaves(state.variables)):
        raise CheckpointError(f"the checkpoint {directory} is damaged: it holds parameters that are not finite")
    return state, spec
