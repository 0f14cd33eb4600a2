"""A run's directory: `config.json`, `results.jsonl`, checkpoints. What is on disk is never lost and never repeated."""

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
import numpy as np
import orbax.checkpoint as ocp

from ddjax import models, recipes, training

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
        "ddjax": importlib.metadata.version("ddjax"),
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
        flags, resolved = (json.loads(json.dumps(part)) for part in (flags, resolved))
        config_path = self.workdir / "config.json"
        try:
            self.workdir.mkdir(parents=True, exist_ok=True)
            check_workdir(self.workdir, flags, resolved)
            if not config_path.exists():
                config = {"flags": flags, "resolved": resolved, "environment": environment()}
                write_atomically(config_path, (json.dumps(config, indent=2) + "\n").encode())
            self._drop_unfinished_line()
        except OSError as error:
            raise RunError(f"cannot write to {self.workdir}: {error.strerror or error}") from error
        self._records = read_results(self.workdir)

    def _drop_unfinished_line(self) -> None:
        """Cuts off what a killed process left of a line, so that the next one starts clean."""
        with open(self.workdir / "results.jsonl", "a+b") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)

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
        with open(self.workdir / "results.jsonl", "ab") as file:
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._records.append(json.loads(line))

    def save_arrays(self, name: str, **arrays: np.ndarray | np.generic) -> pathlib.Path:
        """Writes `name`.npz in the directory, whole or not at all."""
        path = self.workdir / f"{name}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)  # pyright: ignore[reportArgumentType]
        write_atomically(path, buffer.getvalue())
        return path


def check_workdir(workdir: PathLike, flags: Mapping[str, Any], resolved: Mapping[str, Any] | None = None) -> None:
    """Refuses a directory that a run cannot use, before any work is done.

    Args:
      workdir: where the run is to be written.
      flags: as for `Run`.
      resolved: as for `Run`; None where it is not known yet.

    Raises:
      RunError: as `Run` does.
    """
    workdir = pathlib.Path(workdir)
    existing = next(path for path in (workdir, *workdir.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise RunError(f"cannot write to {workdir}: {existing} is not a directory that can be written to")
    if not (workdir / "config.json").exists():
        if workdir.exists() and any(not entry.name.startswith(".") for entry in workdir.iterdir()):
            raise RunError(f"{workdir} holds other files and no run; choose another --workdir")
        return
    config = read_config(workdir)
    differing = _differing(config["flags"], json.loads(json.dumps(flags)), "--")
    if resolved is not None:
        differing += _differing(config.get("resolved", {}), json.loads(json.dumps(resolved)), "")
    if differing:
        raise RunError(
            f"{workdir} belongs to a run with other flags; choose another --workdir. Different: {'; '.join(differing)}"
        )


def _differing(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str) -> list[str]:
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
      network: a name for `ddjax.models.build`.
      dataset: a name for `ddjax.data.load`.
      num_classes: K.
      image_shape: (H, W, C).
      role: `"baseline"`, `"start"`, `"teacher"` or `"student"`.
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

    def build(self, key: jax.Array) -> training.TrainState:
        """The network before training."""
        recipe = recipes.get(self.recipe)
        module = models.build(self.network, self.num_classes)
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
        if self._directory.exists() and _steps(self._directory):
            stored = read_spec(self._directory)
            if stored != spec:
                raise CheckpointError(f"{self._directory} holds another network: {_differences(stored, spec)}")
        if read_only:
            options = ocp.CheckpointManagerOptions(read_only=True)
        else:
            options = ocp.CheckpointManagerOptions(max_to_keep=1, cleanup_tmp_directories=True)
        self._manager = ocp.CheckpointManager(self._directory, options=options)

    def save(self, epoch: int, state: training.TrainState) -> None:
        """Stores the state after an epoch, whole or not at all."""
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(_to_plain(state)),  # pyright: ignore[reportCallIssue]
            spec=ocp.args.JsonSave(dataclasses.asdict(self._spec)),  # pyright: ignore[reportCallIssue]
        )
        self._manager.save(epoch, args=items)
        self._manager.wait_until_finished()

    def restore(self, like: training.TrainState) -> tuple[training.TrainState, int]:
        """The newest state and its epoch, or `like` and 0 where there is none.

        Raises:
          CheckpointError: when the newest is damaged.
        """
        epoch = self._manager.latest_step()
        if epoch is None:
            return like, 0
        return _restore(self._manager, epoch, like, self._directory), epoch

    def close(self) -> None:
        """Frees what orbax holds."""
        self._manager.close()


def _to_plain(state: training.TrainState) -> dict[str, Any]:
    """The arrays of a state; typed keys as the integers they are."""
    return {
        "params": state.params,
        "opt_state": state.opt_state,
        "step": jax.numpy.asarray(state.step),
        "key": jax.random.key_data(state.key),
    }


def _restore(
    manager: ocp.CheckpointManager, epoch: int, like: training.TrainState, directory: pathlib.Path
) -> training.TrainState:
    wanted = jax.eval_shape(_to_plain, like)
    try:
        plain = manager.restore(
            epoch,
            args=ocp.args.Composite(state=ocp.args.StandardRestore(wanted)),  # pyright: ignore[reportCallIssue]
        )["state"]
        shapes = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(plain)]
        if shapes != [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(wanted)]:
            raise ValueError("its arrays have other shapes")
    except Exception as error:  # orbax raises whatever its storage layers do
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"the checkpoint {directory} is damaged or of another network: {reason}") from error
    return like.replace(
        params=plain["params"],
        opt_state=plain["opt_state"],
        step=plain["step"],
        key=jax.random.wrap_key_data(plain["key"]),
    )


def _steps(directory: pathlib.Path) -> list[int]:
    return sorted(int(entry.name) for entry in directory.iterdir() if entry.name.isdigit())


def read_spec(directory: PathLike) -> NetworkSpec:
    """Reads what network a checkpoint directory holds.

    Raises:
      CheckpointError: when the directory is missing, holds no checkpoint, or a damaged one.
    """
    directory = pathlib.Path(directory)
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


def load_network(directory: PathLike) -> tuple[training.TrainState, NetworkSpec]:
    """Loads a trained network.

    Args:
      directory: of one network's checkpoints, as a launcher wrote it.

    Returns:
      Its state and what it is.

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
    if not all(math.isfinite(float(abs(leaf).sum())) for leaf in jax.tree.leaves(state.params)):
        raise CheckpointError(f"the checkpoint {directory} is damaged: it holds parameters that are not finite")
    return state, spec
