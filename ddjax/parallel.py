"""Devices and processes: examples and networks spread over them, and what one process does for all.

Two axes are spread, never both at once. Evaluation and attacks put the *examples* of a batch on a mesh axis `data`:
each device runs the program on its own share and stops when its own examples are done. Training puts the *networks* of
a sweep on a mesh axis `sweep`: each device goes through its share. No program needs another device's values, so there
are no collectives, and a network or an example computes what it would compute alone, up to the rounding of other
shapes.

A training step is not split over devices: its sums would round differently, and training amplifies that beyond what
counts as rounding.

With several processes, every process runs the same launcher on the same data. Results are gathered to all of them, so
that all take the same decisions; process 0 alone reads and writes the run's files.
"""

import contextlib
import dataclasses
import functools
import os
import pickle
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ddjax import layers
from ddjax.progress import Progress, silent

T = TypeVar("T")
STACKINGS = ("auto", "map", "unroll", "vmap")


def make_mesh(axis: str, most: int | None = None) -> Mesh:
    """All devices of all processes along one axis, `"data"` or `"sweep"`.

    Args:
      axis: its name.
      most: how many devices have work; a single process takes no more than that.
    """
    devices = jax.devices() if jax.process_count() > 1 else jax.devices()[:most]
    return jax.make_mesh((len(devices),), (axis,), axis_types=(AxisType.Auto,), devices=devices)


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_primary() -> bool:
    """Whether this is the process that reads and writes files."""
    return jax.process_index() == 0


def on_primary(function: Callable[[], T]) -> T:
    """Calls a function in process 0 and gives every process what it returned or raised.

    All processes must call this together, and none goes on before process 0 is done. What is returned must be possible
    to pickle; what is raised as well.
    """
    if jax.process_count() == 1:
        return function()
    outcome: tuple[bool, Any] = (True, None)
    if is_primary():
        try:
            outcome = (True, function())
        except Exception as error:  # every process must learn of it, or the others wait for ever
            outcome = (False, error)
    content = np.frombuffer(pickle.dumps(outcome), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(content.size)))
    padded = content if is_primary() else np.zeros(size, np.uint8)
    good, value = pickle.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes())
    if not good:
        raise value
    return value


def over_examples(fn: Callable[..., Any], mesh: Mesh, *, in_parts: bool = True) -> Callable[..., Any]:
    """Spreads a function of a batch over the devices of a mesh.

    Args:
      fn: `fn(shared, *batch)`, from a pytree that every example needs and arrays with the examples as first axis, to a
        pytree of such arrays; examples must not influence each other.
      mesh: with one axis, whose size divides that of the batch.
      in_parts: whether a device goes through its share by `layers.in_parts`; not for what does so itself, as the
        attacks that `refills` is declared of do.

    Returns:
      The same function.
    """

    def share(shared: Any, *batch: Any) -> Any:
        return layers.in_parts(functools.partial(fn, shared), *batch) if in_parts else fn(shared, *batch)

    if mesh.size == 1:
        return share
    spec = PartitionSpec(mesh.axis_names)

    def spread(shared: Any, *batch: Any) -> Any:
        specs = (PartitionSpec(), *(spec for _ in batch))
        # Custom derivatives have no rule for the type that `check_vma` checks.
        return jax.shard_map(share, mesh=mesh, in_specs=specs, out_specs=spec, check_vma=False)(shared, *batch)

    return spread


def over_members(fn: Callable[[Any, Any], Any], mesh: Mesh, stacking: str = "auto") -> Callable[[Any, Any], Any]:
    """Spreads a function of one network over a stack of them: each device takes its share.

    Args:
      fn: `fn(shared, member)`, from a pytree that all members need and one of the member's own, to a pytree.
      mesh: with one axis, whose size divides the number of members.
      stacking: how a device runs its share. `"map"`, one member after the other in a loop; `"unroll"`, the same written
        out; `"vmap"`, all at once. `"auto"` is the loop: on CPU one network keeps every core busy, and it compiles one
        network where the others compile all or turn convolutions into grouped ones. With nine MNIST networks on two
        cores, `"unroll"` took as long as the loop and compiled for twice as long, `"vmap"` took 1.9 and 2.1 times as
        long, on jaxlib 0.10.2 and 0.12.0.1 (`python -m launch.benchmark --work=stack` measures it).

    Returns:
      `fn` of a stack: takes and returns pytrees whose arrays have the members as first axis.

    Raises:
      ValueError: for an unknown `stacking`.
    """
    if stacking not in STACKINGS:
        raise ValueError(f"unknown stacking {stacking!r}; known: {', '.join(STACKINGS)}")

    def share(shared: Any, members: Any) -> Any:
        one = lambda member: fn(shared, member)
        if stacking == "vmap":
            return jax.vmap(one)(members)
        if stacking == "unroll":
            count = len(jax.tree.leaves(members)[0])
            outputs = [one(jax.tree.map(lambda leaf, i=i: leaf[i], members)) for i in range(count)]
            return jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)
        return lax.map(one, members)

    if mesh.size == 1:
        return share
    spec = PartitionSpec(mesh.axis_names)
    return jax.shard_map(share, mesh=mesh, in_specs=(PartitionSpec(), spec), out_specs=spec, check_vma=False)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts the same values on every device of the mesh."""
    return jax.tree.map(lambda leaf: _put(leaf, NamedSharding(mesh, PartitionSpec())), tree)


def split(tree: Any, mesh: Mesh) -> Any:
    """Spreads arrays over the devices of the mesh by their first axis, which its size must divide."""
    return jax.tree.map(lambda leaf: _put(leaf, NamedSharding(mesh, PartitionSpec(mesh.axis_names))), tree)


def _put(leaf: Any, sharding: NamedSharding) -> Any:
    if _is_key(leaf):
        return jax.random.wrap_key_data(_put(jax.random.key_data(leaf), sharding))
    if sharding.mesh.size == 1:
        return jnp.asarray(leaf)
    values = np.asarray(leaf)
    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])


def fetch(tree: Any) -> Any:
    """The values of arrays that may be spread over devices and processes, as NumPy arrays in every process."""
    return jax.tree.map(_fetch_leaf, tree)


def _fetch_leaf(leaf: Any) -> Any:
    if _is_key(leaf):
        return jax.random.wrap_key_data(jnp.asarray(_fetch_leaf(jax.random.key_data(leaf))))
    if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
    return np.asarray(leaf)


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def stack(members: Sequence[Any], mesh: Mesh) -> Any:
    """Stacks pytrees of equal structure and spreads them over the mesh.

    Where the number of members is no multiple of that of devices, the last member is repeated.
    """
    padded = [*members, *[members[-1]] * (-len(members) % mesh.size)]
    sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    join = lambda *leaves: jnp.stack(leaves) if _is_key(leaves[0]) else np.stack([np.asarray(x) for x in leaves])
    return jax.tree.map(lambda *leaves: _put(join(*leaves), sharding), *padded)


def unstack(stacked: Any, count: int) -> list[Any]:
    """The first members of a stack, their arrays on the default device of every process."""
    leaves, structure = jax.tree.flatten(stacked)
    fetched = fetch(leaves)
    return [jax.tree.unflatten(structure, [jnp.asarray(leaf[i]) for leaf in fetched]) for i in range(count)]


def batches(total: int, batch_size: int, devices: int = 1) -> tuple[int, int]:
    """Spreads examples evenly over the fewest batches that hold them.

    Args:
      total: how many examples, at least 1.
      batch_size: the largest size of a batch; it grows to the number of devices where it is smaller than that.
      devices: the size is a multiple of this.

    Returns:
      The number of batches and their common size.

    Raises:
      ValueError: for no examples, or a batch size below 1.
    """
    if total == 0:
        raise ValueError("there are no examples to evaluate")
    if batch_size < 1:
        raise ValueError(f"the batch size must be at least 1, got {batch_size}")
    largest = max(batch_size // devices, 1) * devices
    number = -(-total // largest)
    size = -(-total // (number * devices)) * devices
    return -(-total // size), size


def map_batches(
    fn: Callable[..., Any],
    shared: Any,
    *arrays: np.ndarray | jax.Array,
    batch_size: int,
    mesh: Mesh | None = None,
    progress: Callable[[int], Any] | None = None,
) -> Any:
    """Applies a function of a batch to any number of examples, in batches of one static size.

    The last batch is filled up with copies of its last example, whose results are dropped, so that every batch runs the
    same compiled program. The next batch starts before the results of the last are fetched, so that the device does not
    wait for the host.

    Args:
      fn: `fn(shared, *batch)` returns a pytree of arrays with the batch as first axis; usually compiled, and
        `over_examples` of the mesh.
      shared: a pytree that every batch needs, such as the network.
      *arrays: all with the same first axis, N >= 1.
      batch_size: the largest size of a batch; see `batches`.
      mesh: of the devices that share a batch; None for the default device alone.
      progress: called with the number of examples finished, after each batch.

    Returns:
      What `fn` returns, for all N examples, as NumPy arrays.

    Raises:
      ValueError: for no examples, first axes that differ, or a batch size below 1.
    """
    sizes = {len(array) for array in arrays}
    if len(sizes) != 1:
        raise ValueError(f"the arrays hold different numbers of examples: {[len(array) for array in arrays]}")
    (total,) = sizes
    _, size = batches(total, batch_size, 1 if mesh is None else mesh.size)
    if mesh is not None:
        shared = replicate(shared, mesh)
    pieces: list[Any] = []
    under_way: list[tuple[Any, int]] = []

    def finish() -> None:
        result, kept = under_way.pop(0)
        pieces.append(jax.tree.map(lambda leaf: leaf[:kept], fetch(result)))
        if progress is not None:
            progress(kept)

    for start in range(0, total, size):
        rows = np.minimum(np.arange(start, start + size), total - 1)
        batch = [jnp.asarray(array[rows]) if mesh is None else split(array[rows], mesh) for array in arrays]
        under_way.append((fn(shared, *batch), min(size, total - start)))
        if len(under_way) > 1:
            finish()
    finish()
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *pieces)


@functools.cache
def compiled_over_examples(
    function: Callable[..., Any], mesh: Mesh, *, donate: tuple[int, ...] = (), in_parts: bool = True
) -> Any:
    """Compiles `function(shared, *batch)` for batches that all devices of a mesh share; see `over_examples`."""
    return layers.jit(over_examples(function, mesh, in_parts=in_parts), donate_argnums=donate)


@functools.cache
def data_mesh() -> Mesh:
    """All devices along the axis `"data"`."""
    return make_mesh("data")


_programs: dict[Any, Any] = {}


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Applies functions of a batch to any number of examples, on all devices.

    Attributes:
      batch_size: the largest batch.
      mesh: of the devices that share a batch; None for all devices.
      progress: shows how many examples are done.
    """

    batch_size: int = 512
    mesh: Mesh | None = None
    progress: Progress = silent

    def __call__(
        self,
        function: Callable[..., Any],
        shared: Any,
        *columns: np.ndarray | jax.Array,
        batch_size: int | None = None,
        description: str = "",
        in_parts: bool = True,
    ) -> Any:
        """Applies `function(shared, *batch)` to all examples.

        Args:
          function: one object for each program, since it is compiled for it; see `over_examples`.
          shared: what all examples need, such as the network.
          *columns: the examples.
          batch_size: the largest batch; default: that of the evaluator.
          description: of the work, for its progress; empty for work that is not shown.
          in_parts: see `over_examples`.

        Returns:
          The results for all examples, as NumPy arrays, in every process.

        Raises:
          ValueError: as `map_batches` does.
        """
        mesh = self.mesh or data_mesh()
        program = compiled_over_examples(function, mesh, in_parts=in_parts)
        size = self.batch_size if batch_size is None else batch_size
        with contextlib.ExitStack() as stack:
            update = None
            if description:
                update = stack.enter_context(self.progress(len(columns[0]), description, "example")).update
            return map_batches(program, shared, *columns, batch_size=size, mesh=mesh, progress=update)

    def compiled(
        self, function: Callable[..., Any], shared: Any, *columns: np.ndarray | jax.Array, in_parts: bool = True
    ) -> Callable[[Callable[[int], Any] | None], Any]:
        """The same call, compiled before it starts, so that the time it takes is that of its work.

        Args:
          function: as for a call. Its results may take the memory of the first column's batch on the device.
          shared: as for a call.
          *columns: the examples.
          in_parts: see `over_examples`.

        Returns:
          What evaluates. Its argument is called with the number of examples finished, after each batch; or None.

        Raises:
          ValueError: as `map_batches` does.
        """
        mesh = self.mesh or data_mesh()
        _, size = batches(len(columns[0]), self.batch_size, mesh.size)
        shared = replicate(shared, mesh)
        shapes = ((column.shape[1:], column.dtype) for column in columns)
        key = (function, mesh, in_parts, jax.tree.structure(shared), size, *shapes)
        if key not in _programs:
            rows = np.zeros(size, np.int32)
            batch = [split(column[rows], mesh) for column in columns]
            program = compiled_over_examples(function, mesh, donate=(1,), in_parts=in_parts)
            _programs[key] = program.lower(shared, *batch).compile()
        return lambda progress=None: map_batches(
            _programs[key], shared, *columns, batch_size=self.batch_size, mesh=mesh, progress=progress
        )
