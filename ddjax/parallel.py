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
from ddjax.checks import check_choice
from ddjax.progress import Progress, silent

T = TypeVar("T")
STACKINGS = ("auto", "map", "unroll", "vmap")


def make_mesh(axis: str, most: int | None = None) -> Mesh:
    """All devices of all processes along one axis, `"data"` or `"sweep"`; of a single process `most` at the most."""
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
    outcome: Any = None
    if is_primary():
        try:
            outcome = True, function()
        except Exception as error:  # every process must learn of it, or the others wait for ever
            outcome = False, error
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
    """

    def share(shared: Any, *batch: Any) -> Any:
        return layers.in_parts(functools.partial(fn, shared), *batch) if in_parts else fn(shared, *batch)

    return _spread(share, mesh)


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
    check_choice("stacking", stacking, STACKINGS)

    def share(shared: Any, members: Any) -> Any:
        one = functools.partial(fn, shared)
        if stacking == "vmap":
            return jax.vmap(one)(members)
        if stacking == "unroll":
            count = len(jax.tree.leaves(members)[0])
            outputs = [one(_member(members, i)) for i in range(count)]
            return jax.tree.map(lambda *leaves: jnp.stack(leaves), *outputs)
        return lax.map(one, members)

    return _spread(share, mesh)


def _spread(share: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """Applies `share(shared, *arrays)` on each device of a mesh to its part of the arrays."""
    if mesh.size == 1:
        return share
    spec = PartitionSpec(mesh.axis_names)

    def spread(shared: Any, *arrays: Any) -> Any:
        specs = (PartitionSpec(), *(spec for _ in arrays))
        # Custom derivatives have no rule for the type that `check_vma` checks.
        return jax.shard_map(share, mesh=mesh, in_specs=specs, out_specs=spec, check_vma=False)(shared, *arrays)

    return spread


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
    join = lambda *leaves: jnp.stack(leaves) if _is_key(leaves[0]) else np.stack([np.asarray(x) for x in leaves])
    return split(jax.tree.map(join, *padded), mesh)


def unstack(stacked: Any, count: int) -> list[Any]:
    """The first members of a stack, their arrays on the default device of every process."""
    fetched = fetch(stacked)
    return [jax.tree.map(jnp.asarray, _member(fetched, i)) for i in range(count)]


def _member(stacked: Any, i: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[i], stacked)


def map_batches(
    fn: Callable[..., Any],
    shared: Any,
    *arrays: np.ndarray | jax.Array,
    batch_size: int,
    mesh: Mesh,
    progress: Callable[[int], Any] | None = None,
) -> Any:
    """Applies a function of a batch to any number of examples, in batches of one static size.

    The examples are spread evenly over the fewest batches. The last one is filled up with copies of its last example,
    whose results are dropped, so that every batch runs the same compiled program. The next batch starts before the
    results of the last are fetched, so that the device does not wait for the host.

    Args:
      fn: `fn(shared, *batch)`, usually compiled, and `over_examples` of the mesh.
      shared: a pytree that every batch needs, such as the network.
      *arrays: all with the same first axis, N >= 1.
      batch_size: the largest size of a batch; it grows to the number of devices where it is smaller than that.
      mesh: of the devices that share a batch.
      progress: called with the number of examples finished, after each batch.

    Returns:
      What `fn` returns, for all N examples, as NumPy arrays in every process.

    Raises:
      ValueError: for no examples, first axes that differ, or a batch size below 1.
    """
    counts = [len(array) for array in arrays]
    total = counts[0]
    if len(set(counts)) != 1:
        raise ValueError(f"the arrays hold different numbers of examples: {counts}")
    size = _even_size(total, batch_size, mesh.size)
    shared = replicate(shared, mesh)
    pieces: list[Any] = []

    def finish(result: Any, kept: int) -> None:
        pieces.append(jax.tree.map(lambda leaf: leaf[:kept], fetch(result)))
        if progress is not None:
            progress(kept)

    under_way: list[tuple[Any, int]] = []
    for start in range(0, total, size):
        rows = np.minimum(np.arange(start, start + size), total - 1)
        batch = split([array[rows] for array in arrays], mesh)
        under_way.append((fn(shared, *batch), min(size, total - start)))
        if len(under_way) > 1:
            finish(*under_way.pop(0))
    finish(*under_way.pop())
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *pieces)


def _even_size(total: int, batch_size: int, devices: int) -> int:
    """The size of batches, a multiple of `devices`, such that the fewest that hold all examples are equally full."""
    if total == 0:
        raise ValueError("there are no examples to evaluate")
    if batch_size < 1:
        raise ValueError(f"the batch size must be at least 1, got {batch_size}")
    number = -(-total // (max(batch_size // devices, 1) * devices))
    return -(-total // (number * devices)) * devices


@functools.cache
def _jitted(function: Callable[..., Any], mesh: Mesh, in_parts: bool, donate: tuple[int, ...] = ()) -> Any:
    return layers.jit(over_examples(function, mesh, in_parts=in_parts), donate_argnums=donate)


_compiled: dict[Any, Any] = {}


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Applies functions of a batch to any number of examples, on all devices.

    Attributes:
      batch_size: the largest batch.
      mesh: of the devices that share a batch; default: all.
      progress: shows how many examples are done.
    """

    batch_size: int = 512
    mesh: Mesh = dataclasses.field(default_factory=functools.partial(make_mesh, "data"))
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
        """`map_batches` of `function(shared, *batch)`; see `over_examples`.

        The function is compiled: there must be one object for each program. `description` is of the work, for its
        progress; where it is empty, the work is not shown.
        """
        program = _jitted(function, self.mesh, in_parts)
        size = self.batch_size if batch_size is None else batch_size
        show = self.progress if description else silent
        with show(len(columns[0]), description, "example") as bar:
            return map_batches(program, shared, *columns, batch_size=size, mesh=self.mesh, progress=bar.update)

    def compiled(
        self, function: Callable[..., Any], shared: Any, *columns: np.ndarray | jax.Array, in_parts: bool = True
    ) -> Callable[[Callable[[int], Any] | None], Any]:
        """The same call, compiled before it starts, so that the time it takes is that of its work.

        The results may take the memory of the first column's batch on the device. What is returned evaluates. Its
        argument is called with the number of examples finished, after each batch; or None.
        """
        size = _even_size(len(columns[0]), self.batch_size, self.mesh.size)
        arguments = replicate(shared, self.mesh), *split([column[np.zeros(size, int)] for column in columns], self.mesh)
        leaves, structure = jax.tree.flatten(arguments)
        key = (function, self.mesh, in_parts, structure, *((leaf.shape, leaf.dtype) for leaf in leaves))
        if key not in _compiled:
            _compiled[key] = _jitted(function, self.mesh, in_parts, donate=(1,)).lower(*arguments).compile()
        return lambda progress=None: map_batches(
            _compiled[key], arguments[0], *columns, batch_size=self.batch_size, mesh=self.mesh, progress=progress
        )
