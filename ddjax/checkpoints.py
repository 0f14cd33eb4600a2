"""Checkpoints of networks. A checkpoint names its network by import path and arguments, so that anyone can load it."""

import contextlib
import dataclasses
import json
import operator
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from ddjax import parallel
from ddjax.binding.modes import evaluation_arguments
from ddjax.checks import first_line
from ddjax.files import PathLike, local_path
from ddjax.old_checkpoints import described_by_recipe
from ddjax.registry import import_module
from ddjax.state import TrainState


class CheckpointError(RuntimeError):
    """A checkpoint that is missing, damaged or of another network."""


@dataclasses.dataclass(frozen=True)
class NetworkSpec:
    """What a network is and how it was trained; stored beside its parameters.

    Attributes:
      network: the import path of its class, `package.module:Name`.
      arguments: of the class, as `describe` makes them; JSON values.
      dataset: the name of the data set; empty for arrays that a caller gave.
      num_classes: K.
      image_shape: of one example, (H, W, C) for images.
      role: what the network is in its run, such as `"baseline"`, `"teacher"` or `"student"`.
      temperature: the T it was trained at.
      seed: of its training.
      epochs: of its whole training.
      num_train: the examples it was trained on.
      batch_size: examples of a step.
      recipe: the name of the settings it was trained with; empty for none. It is not needed to load the network.
    """

    network: str
    arguments: Mapping[str, Any]
    dataset: str
    num_classes: int
    image_shape: tuple[int, ...]
    role: str
    temperature: float
    seed: int
    epochs: int
    num_train: int
    batch_size: int
    recipe: str = ""

    @classmethod
    def of(cls, network: Any, **fields: Any) -> "NetworkSpec":
        """The spec of a network that is at hand.

        Args:
          network: a flax.linen module, or another frozen dataclass with `init`.
          **fields: the other attributes.

        Raises:
          ValueError: when the network cannot be named by import path and arguments.
        """
        return cls(**describe(network), **fields)

    def build(self) -> Any:
        """The network, without parameters.

        Raises:
          ValueError: when it cannot be imported or made.
        """
        return build({"network": self.network, "arguments": self.arguments})


def describe(value: Any) -> Any:
    """Describes a network, or an argument of one, by JSON values.

    Args:
      value: a flax.linen module or another dataclass; as arguments also numbers, strings, booleans, None, sequences
        and dictionaries of them, dtypes, and functions and classes at the top level of a module.

    Returns:
      For a network `{"network": "package.module:Name", "arguments": {...}}` without the arguments that have their
      defaults.

    Raises:
      ValueError: for anything that cannot be imported by name, such as a lambda.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple):
        return [describe(each) for each in value]
    if isinstance(value, Mapping):
        return {"mapping": {str(key): describe(each) for key, each in value.items()}}
    if isinstance(value, np.dtype):
        return {"dtype": value.name}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        own = [field for field in dataclasses.fields(value) if field.init]
        if isinstance(value, nn.Module):
            own = [field for field in own if field.name not in _FLAX]
        given = {field.name: getattr(value, field.name) for field in own if not _has_default(value, field)}
        return {"network": _path_of(type(value)), "arguments": {name: describe(each) for name, each in given.items()}}
    if callable(value):
        return {"object": _path_of(value)}
    raise ValueError(f"a checkpoint cannot store an argument of type {type(value).__name__} of a network")


# Fields that all flax modules have.
_FLAX = ("parent", "name")


def _has_default(value: Any, field: dataclasses.Field[Any]) -> bool:
    make, given = field.default_factory, getattr(value, field.name)
    default = field.default if make is dataclasses.MISSING else make()
    return type(given) is type(default) and given == default


def _path_of(thing: Any) -> str:
    path = f"{getattr(thing, '__module__', '')}:{getattr(thing, '__qualname__', '')}"
    with contextlib.suppress(ValueError, AttributeError):
        if _find(path) is thing:
            return path
    raise ValueError(
        f"a checkpoint stores a network by import path, and {path.strip(':') or thing!r} cannot be imported: "
        "define it at the top level of a module"
    )


def _find(path: str) -> Any:
    module, _, name = path.partition(":")
    return operator.attrgetter(name)(import_module(module, "network"))


def build(description: Any) -> Any:
    """Makes what `describe` described. It imports the modules that the description names.

    Raises:
      ValueError: when something cannot be imported or made.
    """
    if isinstance(description, list):
        return tuple(build(each) for each in description)
    if not isinstance(description, Mapping):
        return description
    if "mapping" in description:
        return {key: build(each) for key, each in description["mapping"].items()}
    if "dtype" in description:
        return jnp.dtype(description["dtype"])
    path = description.get("network") or description["object"]
    try:
        found = _find(path)
        if "object" in description:
            return found
        return found(**{name: build(each) for name, each in description["arguments"].items()})
    except (AttributeError, TypeError) as error:
        raise ValueError(f"the network {path} cannot be made: {error}") from error


class Checkpoints:
    """The checkpoints of one network's training, by epoch; only the newest is kept."""

    def __init__(self, directory: PathLike, spec: NetworkSpec, *, read_only: bool = False) -> None:
        """Opens or makes the directory.

        Args:
          directory: of this network alone.
          spec: what the network is.
          read_only: leaves everything as it is, also what another process may be writing just now.

        Raises:
          CheckpointError: when it holds another network, or cannot be written.
        """
        self._directory = local_path(directory).absolute()
        self._spec = spec
        self._manager: Any = None
        parallel.on_primary(lambda: self._open(read_only))

    def _open(self, read_only: bool) -> None:
        if self._directory.exists() and _steps(self._directory):
            there, now = dataclasses.asdict(_read_spec(self._directory)), dataclasses.asdict(self._spec)
            differ = [f"{name} {there[name]} there, {now[name]} now" for name in now if there[name] != now[name]]
            if differ:
                raise CheckpointError(f"{self._directory} holds another network: {'; '.join(differ)}")
        # Only this process takes part; orbax would else wait for the others.
        alone = ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(), active_processes={jax.process_index()}, barrier_sync_key_prefix="ddjax"
        )
        how: dict[str, Any] = {"read_only": True}
        if not read_only:
            how = {"max_to_keep": 1, "cleanup_tmp_directories": True, "create": False}
            try:
                self._directory.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise CheckpointError(f"cannot write to {self._directory}: {error.strerror or error}") from error
        options = ocp.CheckpointManagerOptions(**how, multiprocessing_options=alone)
        self._manager = ocp.CheckpointManager(self._directory, options=options)

    def save(self, epoch: int, state: TrainState) -> None:
        """Stores the state after an epoch, whole or not at all.

        Raises:
          CheckpointError: when it cannot be written, as on a full disk.
        """
        if not parallel.is_primary():
            return
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(_on_host(state)),  # pyright: ignore[reportCallIssue]
            spec=ocp.args.JsonSave(dataclasses.asdict(self._spec)),  # pyright: ignore[reportCallIssue]
        )
        try:
            self._manager.save(epoch, args=items)
            self._manager.wait_until_finished()
        except Exception as error:  # orbax raises whatever its storage layers do
            raise CheckpointError(f"cannot write the checkpoint {self._directory}: {first_line(error)}") from error

    def restore(self, like: TrainState) -> tuple[TrainState, int]:
        """The newest state and its epoch, or `like` and 0 where there is none.

        Raises:
          CheckpointError: when the newest is damaged, or of another network or optimizer.
        """
        leaves, epoch = parallel.on_primary(lambda: self._newest_leaves(like))
        if not epoch:
            return like, 0
        return like.with_stored(jax.tree.unflatten(jax.tree.structure(like.stored()), map(jnp.asarray, leaves))), epoch

    def _newest_leaves(self, like: TrainState) -> tuple[list[np.ndarray], int]:
        # Without their structure, which a process may be unable to send to others.
        stored, epoch = self._newest(_on_host(like))
        return jax.tree.leaves(stored), epoch

    def read(self) -> tuple[dict[str, Any], int]:
        """All that the newest checkpoint holds, as NumPy arrays, and its epoch.

        Raises:
          CheckpointError: when it is damaged, or there is none.
        """
        stored, epoch = parallel.on_primary(lambda: self._newest(None))
        if not epoch:
            raise CheckpointError(f"{self._directory} holds no checkpoint")
        return stored, epoch

    def _newest(self, like: dict[str, Any] | None) -> tuple[dict[str, Any], int]:
        """The newest checkpoint, of the shapes of `like` where that is given, and its epoch; 0 where there is none."""
        epoch = self._manager.latest_step()
        if epoch is None:
            return {}, 0
        how = ocp.args.StandardRestore(like)  # pyright: ignore[reportCallIssue]
        try:
            stored = self._manager.restore(epoch, args=ocp.args.Composite(state=how))["state"]
            stored = jax.tree.map(np.asarray, stored)
            if like is not None:
                _check_same_shapes(stored, like)
        except Exception as error:  # orbax raises whatever its storage layers do
            raise _damaged(self._directory, error) from error
        return stored, epoch

    def close(self) -> None:
        """Frees what orbax holds."""
        if self._manager is not None:
            self._manager.close()


def _on_host(state: TrainState) -> dict[str, Any]:
    return jax.tree.map(np.asarray, state.stored())


def _check_same_shapes(found: Any, wanted: Any) -> None:
    shapes = [[(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)] for tree in (found, wanted)]
    if shapes[0] != shapes[1]:
        raise ValueError("its arrays have other shapes")


def _damaged(directory: pathlib.Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"the checkpoint {directory} is damaged or of another network: {first_line(error)}")


def _steps(directory: pathlib.Path) -> list[int]:
    return sorted(int(entry.name) for entry in directory.iterdir() if entry.name.isdigit())


def read_spec(directory: PathLike) -> NetworkSpec:
    """Reads what network a checkpoint directory holds.

    Raises:
      CheckpointError: when the directory is missing, holds no checkpoint, or a damaged one.
    """
    return parallel.on_primary(lambda: _read_spec(local_path(directory)))


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
        if "arguments" not in fields:
            fields |= describe(build(described_by_recipe(fields)))
        return NetworkSpec(**fields | {"image_shape": tuple(fields["image_shape"])})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"the checkpoint {directory} is damaged: its network cannot be read: {error}") from error


def load_network(directory: PathLike, network: Any = None) -> tuple[TrainState, NetworkSpec]:
    """Loads a trained network for use.

    Args:
      directory: of one network's checkpoints, as `train` or a launcher wrote it.
      network: the network; default: the one that the checkpoint names, whose module is imported.

    Returns:
      Its state without the optimizer's, and what it is.

    Raises:
      CheckpointError: when the directory is missing, empty, damaged, its network cannot be imported, or its training
        did not finish.
    """
    spec = read_spec(directory)
    try:
        network = spec.build() if network is None else network
    except ValueError as error:
        raise CheckpointError(f"cannot load the network of {directory}: {error}") from error
    with contextlib.closing(Checkpoints(directory, spec, read_only=True)) as checkpoints:
        stored, epoch = checkpoints.read()
    if epoch < spec.epochs:
        raise CheckpointError(
            f"the training of {directory} stopped after {epoch} of {spec.epochs} epochs; "
            "run its launcher again to finish it"
        )
    try:
        state = _for_use(network, spec, stored)
    except Exception as error:  # whatever a network raises that does not fit
        raise _damaged(local_path(directory), error) from error
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.variables, state.ema_params))):
        raise CheckpointError(f"the checkpoint {directory} is damaged: it holds parameters that are not finite")
    return state, spec


def _for_use(network: Any, spec: NetworkSpec, stored: dict[str, Any]) -> TrainState:
    inputs = jax.ShapeDtypeStruct((1, *spec.image_shape), jnp.float32)
    init = lambda inputs: network.init(jax.random.key(0), inputs, **evaluation_arguments(network))
    wanted = dict(jax.eval_shape(init, inputs))
    # Older checkpoints have the moving average under another name.
    ema_params = stored.get("ema_params", stored.get("averages", {}))
    found = {name: stored.get(name, {}) for name in wanted}
    if jax.tree.structure(found) != jax.tree.structure(wanted):
        raise ValueError("it has other parameters")
    _check_same_shapes(found, wanted)
    found, ema_params = jax.tree.map(jnp.asarray, (found, ema_params))
    params = found.pop("params", {})
    key = jax.random.wrap_key_data(jnp.asarray(stored["key"]))
    return TrainState(params, (), jnp.asarray(stored["step"]), key, found, ema_params, network)
