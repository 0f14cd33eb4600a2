"""How works are measured: sides that take turns, the rate of the machine, memory, and one record for each side."""

import contextlib
import ctypes
import dataclasses
import gc
import pathlib
import sys
import time
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ddjax import data, parallel, runs, training

from .. import recipes
from ..pages import speed

# A turn repeats a call until this much time has gone by, so that the clock and the scheduler do not count.
_LEAST_SECONDS = 0.05
# Of matrix products, of which the fastest tells the machine's rate.
_LEAST_PRODUCTS, _RATE_SECONDS = 4, 2.0


class Side(NamedTuple):
    """One side of a comparison.

    Attributes:
      call: one repetition; returns when its result is there.
      units: how many examples (pairs, steps) one repetition does.
      fields: recorded as they are: success, mean_distance, norm, gradients, flops (of a unit), note, ...; or a function
        that makes them of what the first call returned. It is called after the timing.
    """

    call: Callable[[], Any]
    units: int
    fields: Mapping[str, Any] | Callable[[Any], Mapping[str, Any]] = types.MappingProxyType({})


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
    peers: Any
    models: Mapping[str, tuple[str, Any]]

    @property
    def network(self) -> str:
        """The name of the network."""
        return self.recipe.network

    @property
    def num_classes(self) -> int:
        """The number of logits."""
        return self.test.num_classes

    @property
    def logits_fn(self) -> Any:
        """The classifier."""
        return self.state.logits_fn


# What a module of works exports as WORK, by name.
Work = Callable[[Context], None]


def compare(
    run: runs.Run,
    where: Mapping[str, Any],
    sides: Mapping[str, Side | Callable[[], Side]],
    *,
    base: str = "ddjax",
    unit: str = "example",
    repetitions: int,
) -> None:
    """Lets sides take turns, and records what each one needs for a unit of work beside the base.

    Sides that are on disk are not measured again. One that raises is recorded as broken with its error, and the others
    go on; an error of the base is raised.

    Args:
      run: where records go.
      where: which comparison this is: `work`, and what else tells it from others, such as `network` and `batch`.
      sides: each ready to be called, or a function that makes it ready, whose time counts as part of the first call.
      base: the side that the others are compared with; one of `sides`.
      unit: what `Side.units` counts.
      repetitions: turns of each side.

    Raises:
      ValueError: when the base is not among the sides.
    """
    if base not in sides:
        raise ValueError(f"the base {base!r} is none of the sides: {', '.join(sides)}")
    missing = [side for side in sides if run.find(measure="benchmark", **where, side=side) is None]
    if not missing:
        return
    timings: dict[str, _Timing] = {}
    for name in [base, *(side for side in missing if side != base)]:
        _guard(run, where, name, base, timings, lambda name=name: timings.update({name: _first_call(sides[name])}))
    for _ in range(repetitions):
        for name in list(timings):
            _guard(run, where, name, base, timings, timings[name].turn)
    records: dict[str, dict[str, Any]] = {}
    for name in [name for name in timings if name in missing]:
        describe = lambda name=name: records.update({name: timings[name].record(timings[base])})
        _guard(run, where, name, base, timings, describe)
    machine = run.find(measure="machine")
    for name, fields in records.items():
        record = {"measure": "benchmark", **where, "side": name, "base": base, "unit": unit, **fields}
        if record.get("flops") is not None:
            record["gflops"] = record["flops"] / record["seconds"] / 1e9
            record["matmul_share"] = machine and record["gflops"] / machine["jax_gflops"]
        run.append(**record)
        print(in_words(record), flush=True)


class _Timing:
    """The times of one side."""

    def __init__(self, side: Side, first_seconds: float, first_result: Any, peak_bytes: int | None) -> None:
        self._side, self._first_seconds, self._first_result = side, first_seconds, first_result
        self._peak_bytes = peak_bytes
        self.seconds: list[float] = []

    def turn(self) -> None:
        """Measures the time for a unit, once more."""
        calls, started = 0, time.perf_counter()
        while True:
            self._side.call()
            calls += 1
            elapsed = time.perf_counter() - started
            if elapsed >= _LEAST_SECONDS:
                break
        self.seconds.append(elapsed / (calls * self._side.units))

    def record(self, base: "_Timing") -> dict[str, Any]:
        """The fields of a record."""
        ratios = np.array(self.seconds) / np.array(base.seconds)
        fields = self._side.fields
        return {
            "units": self._side.units,
            "repetitions": len(self.seconds),
            "seconds": float(np.median(self.seconds)),
            "seconds_low": min(self.seconds),
            "seconds_high": max(self.seconds),
            "first_seconds": self._first_seconds,
            "speedup": float(np.median(ratios)),
            "speedup_low": float(ratios.min()),
            "speedup_high": float(ratios.max()),
            "peak_bytes": self._peak_bytes,
        } | dict(fields(self._first_result) if callable(fields) else fields)


def _first_call(side: Side | Callable[[], Side]) -> _Timing:
    started = time.perf_counter()
    ready = side if isinstance(side, Side) else side()
    made = time.perf_counter() - started
    # The memory of the compiler, which works above, is none of the program's.
    peak = _Peak()
    started = time.perf_counter()
    result = ready.call()
    return _Timing(ready, made + time.perf_counter() - started, result, peak.read())


def _guard(
    run: runs.Run,
    where: Mapping[str, Any],
    name: str,
    base: str,
    timings: dict[str, _Timing],
    action: Callable[[], None],
) -> None:
    """Does something for a side; if that is not the base and fails, the side is recorded as broken and leaves."""
    try:
        action()
    except Exception as error:  # peers raise whatever they do
        if name == base:
            raise
        timings.pop(name, None)
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
        record = {"measure": "peer_broken", **where, "side": name, "error": reason}
        if run.find(**record) is None:
            run.append(**record)
        print(f"{_title(where)}: {name} is broken and left out: {reason}", flush=True)


def _title(where: Mapping[str, Any]) -> str:
    rest = [str(where[name]) for name in ("network",) if name in where]
    rest += [f"batch {where['batch']}"] if "batch" in where else []
    return f"{where['work']} ({', '.join(rest)})" if rest else str(where["work"])


def in_words(record: Mapping[str, Any]) -> str:
    """A line for people."""
    line = f"{_title(record)}: {record['side']}: {speed.duration(record['seconds'])} per {record['unit']}"
    if record["side"] != record["base"]:
        line += (
            f", {record['speedup']:.2f} [{record['speedup_low']:.2f}, {record['speedup_high']:.2f}] times as long as "
            f"{record['base']}"
        )
    line += f"; first call {record['first_seconds']:.2f} s"
    if record.get("success") is not None:
        line += f"; success {record['success']:.3f}"
    if record.get("mean_distance") is not None:
        line += f", mean {record['norm']} {record['mean_distance']:.4g}"
    if record.get("matmul_share") is not None:
        line += f"; {record['gflops']:.3g} GFLOP/s, {record['matmul_share']:.0%} of what matrix products reach"
    if record.get("note"):
        line += f" ({record['note']})"
    return line


class _Peak:
    """How much memory is taken at most between `__init__` and `read`, beyond what was taken before.

    On a CPU that is the growth of the process's resident set, which the kernel watches: a lower bound where freed
    memory is used again.
    """

    def __init__(self) -> None:
        gc.collect()
        self._torch = _torch_on_gpu()
        self._before: int | None = None
        if jax.default_backend() == "cpu":
            self._before = _reset_resident_peak()
        elif self._torch is not None:
            self._torch.cuda.reset_peak_memory_stats()
            self._torch_before = self._torch.cuda.memory_allocated()
        self._stats = _device_stats()

    def read(self) -> int | None:
        """The bytes; None where they cannot be known."""
        if jax.default_backend() == "cpu":
            after = _status("VmHWM")
            return None if self._before is None or after is None else max(after - self._before, 0)
        if self._torch is not None:
            by_torch = self._torch.cuda.max_memory_allocated() - self._torch_before
            if by_torch > 0:
                return by_torch
        stats, before = _device_stats(), self._stats
        if not stats or stats.get("peak_bytes_in_use", 0) <= before.get("peak_bytes_in_use", 0):
            # The device's mark cannot be reset: what stays below an older peak is unknown.
            return None
        return stats["peak_bytes_in_use"] - before.get("bytes_in_use", 0)


def _torch_on_gpu() -> Any:
    torch = sys.modules.get("torch")
    return torch if torch is not None and jax.default_backend() != "cpu" and torch.cuda.is_available() else None


def _device_stats() -> dict[str, int]:
    try:
        return jax.devices()[0].memory_stats() or {}
    except (jax.errors.JaxRuntimeError, NotImplementedError):
        return {}


def _reset_resident_peak() -> int | None:
    """Sets the kernel's mark back; the bytes that are resident now, or None where there is no such mark."""
    with contextlib.suppress(OSError, AttributeError):
        # What was freed goes back to the system, or else using it again would not show.
        ctypes.CDLL(None).malloc_trim(0)
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return _status("VmRSS")


def _status(name: str) -> int | None:
    try:
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None)


def flops_of(compiled: Any) -> float | None:
    """The floating-point operations of a compiled program, as the compiler counts them; None where it does not.

    The body of a loop counts once, whatever the number of its turns: take a program without loops.
    """
    try:
        analysis = compiled.cost_analysis()
    except (jax.errors.JaxRuntimeError, NotImplementedError):
        return None
    if isinstance(analysis, list | tuple):
        analysis = analysis[0] if analysis else None
    flops = (analysis or {}).get("flops", 0.0)
    return float(flops) if flops > 0 else None


def bytes_of(compiled: Any) -> int | None:
    """The memory that a compiled program needs at once: arguments, results and what lies between; None if unknown."""
    try:
        analysis = compiled.memory_analysis()
    except (jax.errors.JaxRuntimeError, NotImplementedError):
        return None
    parts = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
    return None if analysis is None else sum(getattr(analysis, part, 0) for part in parts)


def free_bytes() -> int | None:
    """The memory that is free on the device; None if unknown."""
    if jax.default_backend() != "cpu":
        stats = _device_stats()
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0) if "bytes_limit" in stats else None
    try:
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def machine_rate(run: runs.Run, torch: Any = None) -> float:
    """The rate of float32 matrix products, in operations a second: the best of several; measured once for a run.

    Args:
      run: where it is recorded.
      torch: the module, to measure its rate too.
    """
    record = run.find(measure="machine")
    if record is None:
        size = 2048 if jax.default_backend() == "cpu" else 8192
        left = jax.random.normal(jax.random.key(0), (size, size), jnp.float32)
        product = jax.jit(jnp.matmul)
        rate = _best_rate(lambda: jax.block_until_ready(product(left, left)), size)
        torch_rate = None
        if torch is not None:
            on_gpu = _torch_on_gpu() is not None
            other = torch.randn(size, size, device="cuda" if on_gpu else "cpu")

            def by_torch() -> None:
                torch.matmul(other, other)
                if on_gpu:
                    torch.cuda.synchronize()

            torch_rate = _best_rate(by_torch, size) / 1e9
        record = {
            "measure": "machine",
            "cores": parallel.cores(),
            "device": jax.devices()[0].device_kind,
            "matmul_size": size,
            "jax_gflops": rate / 1e9,
            "torch_gflops": torch_rate,
        }
        run.append(**record)
        beside = "" if torch_rate is None else f", {torch_rate:.0f} by PyTorch"
        print(f"machine: {record['cores']} cores, {rate / 1e9:.0f} GFLOP/s of float32 matrix products{beside}")
    return 1e9 * record["jax_gflops"]


def _best_rate(call: Callable[[], Any], size: int) -> float:
    call()
    seconds = []
    # For a while, so that what else has just begun or ended does not count.
    while len(seconds) < _LEAST_PRODUCTS or sum(seconds) < _RATE_SECONDS:
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds)
