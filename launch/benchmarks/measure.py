"""How works are measured: sides that take turns, one record for each side, memory, and the rate of the machine."""

import contextlib
import ctypes
import dataclasses
import gc
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddjax import data, layers, parallel, runs, training

from .. import recipes
from ..pages import speed
from . import peers

# A turn repeats a call until this much time has gone by, so that the clock and the scheduler do not count.
_LEAST_SECONDS = 0.05
# Of matrix products, of which the fastest tells the machine's rate.
_LEAST_PRODUCTS, _RATE_SECONDS = 4, 2.0


class Side(NamedTuple):
    """One side of a comparison.

    Attributes:
      call: one repetition; returns when its result is there.
      units: how many examples (pairs, steps) one repetition does.
      fields: of the record: success, mean_distance, norm, gradients, flops (of a unit), note, ...; or a function that
        makes them of what the first call returned, and is called after the timing.
    """

    call: Callable[[], Any]
    units: int
    fields: Mapping[str, Any] | Callable[[Any], Mapping[str, Any]] | None = None

    def describe(self, result: Any) -> dict[str, Any]:
        """The fields, of what the first call returned."""
        return dict(self.fields(result) if callable(self.fields) else self.fields or {})


# A side, or what makes one; the time that takes counts as part of the first call.
Maker = Side | Callable[[], Any]
Sides = Mapping[str, Maker]


def program(function: Callable[..., Any], *arguments: Any, units: int, fields: Any = None) -> Callable[[], Side]:
    """A side of ours: a function of arrays as one compiled program, whose memory becomes a field."""

    def make() -> Side:
        given = jax.device_put(arguments)
        compiled = layers.jit(function).lower(*given).compile()
        side = Side(lambda: jax.block_until_ready(compiled(*given)), units, fields)
        return side._replace(fields=lambda result: {"program_bytes": bytes_of(compiled)} | side.describe(result))

    return make


# Compared by identity, so that what is made for it can be kept.
@dataclasses.dataclass(frozen=True, eq=False)
class Context:
    """What every work has at hand.

    Attributes:
      run: where records go.
      recipe: the settings.
      state: the network, trained.
      train: the training images.
      test: the test images.
      images: the test images that the network classifies correctly, floats in [0, 1], `[N, H, W, C]`.
      labels: their classes, `[N]` int32.
      targets: for each another class, `[N]` int32; in turn all the others.
      batches: how many examples at once, for each comparison.
      largest: the largest batch that fits; None where it is not asked for.
      repetitions: turns of each side.
      quick: whether to do less of everything.
      seed: makes all randomness.
      peers: what there is to compare with; see `peers.load`.
      models: trained generative models by role, `density` and `generator`: the name of the recipe and the state. A
        role that is missing is made before its training.
    """

    run: runs.Run
    recipe: recipes.Recipe
    state: training.TrainState
    train: data.Dataset
    test: data.Dataset
    images: np.ndarray
    labels: np.ndarray
    targets: np.ndarray
    batches: Sequence[int]
    largest: int | None
    repetitions: int
    quick: bool
    seed: int
    peers: peers.Peers
    models: Mapping[str, tuple[str, Any]]

    @property
    def training_batch(self) -> int:
        """How many images a training step takes."""
        return min(self.recipe.batch_size, len(self.train))

    def first(self, count: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The first images, labels and targets, or all where there are fewer."""
        images, labels, targets = (jnp.asarray(array[:count]) for array in (self.images, self.labels, self.targets))
        return images, labels, targets


def compare(
    context: Context, work: str, sides: Sides, *, unit: str = "example", most_turns: int | None = None, **where: Any
) -> None:
    """Lets sides take turns, and records what each one needs for a unit of work beside the base.

    The base is the side `ddjax` or, without one, the first. Sides that are on disk are not measured again. One that
    raises is recorded as broken with its error, and the others go on; an error of the base is raised.

    Args:
      context: where records go, and how many turns there are.
      work: the name of the work.
      sides: what is compared, by name.
      unit: what `Side.units` counts.
      most_turns: where fewer turns are enough.
      **where: what else tells comparisons of the work apart, such as `batch`; `network` is that of the recipe if it is
        not given.
    """
    run, where = context.run, {"work": work, "network": context.recipe.network, **where}
    base = "ddjax" if "ddjax" in sides else next(iter(sides))
    title = speed.title(where) + ("" if where.get("batch") is None else f", batch {where['batch']}")
    missing = [side for side in sides if run.find(measure="benchmark", **where, side=side) is None]
    if not missing:
        return
    timings: dict[str, _Timing] = {}

    @contextlib.contextmanager
    def may_fail(name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # peers raise whatever they do
            if name == base:
                raise
            timings.pop(name, None)
            reason = f"{type(error).__name__}: {peers.in_a_line(error)}"
            record = {"measure": "peer_broken", **where, "side": name, "error": reason}
            if run.find(**record) is None:
                run.append(**record)
            print(f"{title}: {name} is broken and left out: {reason}", flush=True)

    for name in [base, *(side for side in missing if side != base)]:
        with may_fail(name):
            timings[name] = _Timing(sides[name])
    for _ in range(min(context.repetitions, most_turns or context.repetitions)):
        for name in list(timings):
            with may_fail(name):
                timings[name].turn()
    records: dict[str, dict[str, Any]] = {}
    # The base also where it is on disk: the others may be described beside it.
    for name in list(timings):
        with may_fail(name):
            records[name] = timings[name].record(timings[base])
    machine = run.find(measure="machine")
    for name in [name for name in records if name in missing]:
        record = {"measure": "benchmark", **where, "side": name, "base": base, "unit": unit, **records[name]}
        if record.get("flops") is not None:
            record["gflops"] = record["flops"] / record["seconds"] / 1e9
            record["matmul_share"] = machine and record["gflops"] / machine["jax_gflops"]
        run.append(**record)
        print(f"{title}: {_in_words(record)}", flush=True)


class _Timing:
    """The times of one side."""

    def __init__(self, side: Maker) -> None:
        """Makes the side ready where it is not, and calls it once."""
        started = time.perf_counter()
        while not isinstance(side, Side):
            side = side()
        self.side, made = side, time.perf_counter() - started
        # The memory of the compiler, which works above, is none of the program's.
        peak = _watch_memory()
        started = time.perf_counter()
        self.first_result = self.side.call()
        self.first_seconds = made + time.perf_counter() - started
        self.peak_bytes = peak()
        self.seconds: list[float] = []

    def turn(self) -> None:
        """Measures the time for a unit, once more."""
        calls, elapsed, started = 0, 0.0, time.perf_counter()
        while elapsed < _LEAST_SECONDS:
            self.side.call()
            calls, elapsed = calls + 1, time.perf_counter() - started
        self.seconds.append(elapsed / (calls * self.side.units))

    def record(self, base: "_Timing") -> dict[str, Any]:
        """The fields of a record."""
        speedups = np.array(self.seconds) / np.array(base.seconds)
        fields = {"units": self.side.units, "repetitions": len(self.seconds), "first_seconds": self.first_seconds}
        for name, values in (("seconds", self.seconds), ("speedup", speedups)):
            spread = {"": np.median(values), "_low": np.min(values), "_high": np.max(values)}
            fields |= {name + end: float(value) for end, value in spread.items()}
        return {**fields, "peak_bytes": self.peak_bytes, **self.side.describe(self.first_result)}


def _in_words(record: Mapping[str, Any]) -> str:
    """A line for people."""
    line = f"{record['side']}: {speed.duration(record['seconds'])} per {record['unit']}"
    if record["side"] != record["base"]:
        ends = f"[{record['speedup_low']:.2f}, {record['speedup_high']:.2f}]"
        line += f", {record['speedup']:.2f} {ends} times as long as {record['base']}"
    line += f"; first call {record['first_seconds']:.2f} s"
    if record.get("success") is not None:
        line += f"; success {record['success']:.3f}"
    if record.get("mean_distance") is not None:
        line += f", mean {record['norm']} {record['mean_distance']:.4g}"
    if record.get("matmul_share") is not None:
        line += f"; {record['gflops']:.3g} GFLOP/s, {record['matmul_share']:.0%} of what matrix products reach"
    return f"{line} ({record['note']})" if record.get("note") else line


def _watch_memory() -> Callable[[], int | None]:
    """Begins to watch the memory.

    Returns:
      A function that tells how many bytes were taken at most since then, beyond what was taken before; None where that
      cannot be known. On a CPU that is the growth of the process's resident set, which the kernel watches: a lower
      bound where freed memory is used again.
    """
    gc.collect()
    if jax.default_backend() == "cpu":
        try:
            # What was freed goes back to the system, or else using it again would not show.
            ctypes.CDLL(None).malloc_trim(0)
            # Sets the kernel's mark back.
            pathlib.Path("/proc/self/clear_refs").write_text("5")
        except (OSError, AttributeError):
            return lambda: None
        resident = _kernel_bytes("self/status", "VmRSS")
        return lambda: max(_kernel_bytes("self/status", "VmHWM") - resident, 0)
    cuda, before = peers.cuda(), _device_stats()
    if cuda is not None:
        cuda.reset_peak_memory_stats()
    in_torch = 0 if cuda is None else cuda.memory_allocated()

    def taken() -> int | None:
        if cuda is not None and cuda.max_memory_allocated() > in_torch:
            return cuda.max_memory_allocated() - in_torch
        after = _device_stats()
        # The device's mark cannot be reset: what stays below an older peak is unknown.
        is_new = after.get("peak_bytes_in_use", 0) > before.get("peak_bytes_in_use", 0)
        return after["peak_bytes_in_use"] - before.get("bytes_in_use", 0) if is_new else None

    return taken


def _kernel_bytes(file: str, name: str) -> int:
    """An entry of a file in `/proc`."""
    entries = dict(line.split(":", 1) for line in pathlib.Path("/proc", file).read_text().splitlines() if ":" in line)
    return 1024 * int(entries[name].split()[0])


def _if_known(ask: Callable[[], Any]) -> Any:
    """What not every backend tells; None where it does not."""
    try:
        return ask()
    except (jax.errors.JaxRuntimeError, NotImplementedError):
        return None


def _device_stats() -> dict[str, int]:
    return _if_known(jax.devices()[0].memory_stats) or {}


def free_bytes() -> int | None:
    """The memory that is free on the device; None if unknown."""
    if jax.default_backend() == "cpu":
        return _kernel_bytes("meminfo", "MemAvailable") if pathlib.Path("/proc/meminfo").exists() else None
    stats = _device_stats()
    return stats["bytes_limit"] - stats.get("bytes_in_use", 0) if "bytes_limit" in stats else None


def flops_of(compiled: Any) -> float | None:
    """The floating-point operations of a compiled program, as the compiler counts them; None where it does not.

    The body of a loop counts once, whatever the number of its turns: take a program without loops.
    """
    flops = (_if_known(compiled.cost_analysis) or {}).get("flops", 0.0)
    return float(flops) if flops > 0 else None


def bytes_of(compiled: Any) -> int | None:
    """The memory that a compiled program needs at once: arguments, results and what lies between; None if unknown."""
    analysis = _if_known(compiled.memory_analysis)
    parts = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
    return None if analysis is None else sum(getattr(analysis, part, 0) for part in parts)


def machine_rate(run: runs.Run, torch: Any = None) -> None:
    """Records the best rate of float32 matrix products, once for a run; also of PyTorch where its module is given."""
    if run.find(measure="machine") is not None:
        return
    size = 2048 if jax.default_backend() == "cpu" else 8192
    left, product = jax.random.normal(jax.random.key(0), (size, size), jnp.float32), jax.jit(jnp.matmul)
    rates = {"jax": _best_rate(lambda: jax.block_until_ready(product(left, left)), size)}
    if torch is not None:
        other = torch.randn(size, size, device=peers.device())
        rates["torch"] = _best_rate(lambda: peers.block_until_ready(torch.matmul(other, other)), size)
    record = {"cores": parallel.cores(), "device": jax.devices()[0].device_kind, "matmul_size": size}
    run.append(measure="machine", **record, jax_gflops=rates["jax"], torch_gflops=rates.get("torch"))
    told = ", ".join(f"{rate:.0f} by {name}" for name, rate in rates.items())
    print(f"machine: {record['cores']} cores; GFLOP/s of float32 matrix products: {told}")


def _best_rate(call: Callable[[], Any], size: int) -> float:
    """In 1e9 operations a second."""
    timing = _Timing(Side(call, 1))
    # For a while, so that what else has just begun or ended does not count.
    while len(timing.seconds) < _LEAST_PRODUCTS or sum(timing.seconds) < _RATE_SECONDS:
        timing.turn()
    return 2e-9 * size**3 / min(timing.seconds)
