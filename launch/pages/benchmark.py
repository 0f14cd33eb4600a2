"""The page of `launch.benchmark`: speed. It has no `table.csv`, since its records hold times."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator

from . import _page, _style, speed
from ._page import Record, number
from ._style import BLUE, GRAY, GREEN, PURPLE, RED, styled
from .speed import Compared

HEADING = "Speed"

# The fields that tables show in columns of their own; the last column of the details has all others.
_SHOWN = {
    "measure", *speed.Comparison._fields, "side", "base", "unit", "units", "repetitions", "seconds", "seconds_low",
    "seconds_high", "first_seconds", "speedup", "speedup_low", "speedup_high", "peak_bytes", "program_bytes", "success",
    "success_same", "mean_distance", "mean_distance_same", "norm", "gradients", "flops", "gflops", "matmul_share",
    "note", "curve", "size", "order",
}  # fmt: skip
# Libraries in the order of the legend; all others are gray.
_COLORS = {"torch": BLUE, "foolbox": GREEN, "torchattacks": RED, "adv_lib": PURPLE, "art": "#E6B800"}
_LOOKS = ((BLUE, "o"), (RED, "s"), (GREEN, "^"), (PURPLE, "D"))
_COLUMNS = 3
_ORDERS = {"1": "constant", "n": "proportional", "n log n": "n log n"}

_SPEEDUPS_CAPTION = (
    "Time of other libraries divided by the time of ddjax for the same work. Bars: median over turns. Lines: from the "
    "lowest to the highest turn. If a library was used in several ways, the fastest that does the same work is shown."
)
_GROWTH_CAPTION = "Time of a whole call against the size of the work. Dotted: the expected growth."
_COMPACT_NOTE = (
    "Time for one unit by ddjax, and how many times as long other libraries take. Best: the fastest that does the same "
    "work; it succeeds as often within two percentage points, at a mean distance at most five percent larger, with the "
    "same values. A star marks lower success, a larger distance or other values."
)
_SUMMARY_NOTE = (
    "Time of the fastest library that does the same work, divided by the time of ddjax, over all comparisons that have "
    "such a library. Above 1, ddjax is faster."
)
_DETAILS_NOTE = (
    "Medians over turns, and below them the lowest and the highest turn. Each ratio is of two times of the same turn. "
    "Success and distance are judged by the same classifier; below them stand those of ddjax on the examples that a "
    "library was given, where these are fewer. The first call may compile. Memory: what a call takes beyond what was "
    "resident before, and what the compiled program of ddjax takes. Share: of the machine's rate of matrix products."
)
_INSIDE_NOTE = "Variants of ddjax, compared with each other."
_GROWTH_NOTE = (
    "Times of a whole call, in milliseconds. Exponent: of the power law through the points. Deviation: the largest one "
    "from the expected growth, relative to it."
)


def sections(run: _page.Run) -> list[_page.Section]:
    """Comparisons with other libraries, growth, variants of ddjax, and the machine."""
    comparisons, beside, grown = _parts(run)
    inside = {key: sides for key, sides in comparisons.items() if key not in beside and key not in grown}
    drawn = {
        "speedups": (speedups_figure(beside), _SPEEDUPS_CAPTION),
        "growth": (growth_figure(grown), _GROWTH_CAPTION),
    }
    details = {
        network: _details({key: sides for key, sides in beside.items() if key.network == network})
        for network in dict.fromkeys(key.network for key in beside)
    }
    return [
        _page.Section("Summary", _summary(beside), _SUMMARY_NOTE),
        _page.Section("Beside other libraries", _compact(run, beside), _COMPACT_NOTE),
        _page.Section("Missing libraries", _absent(run)),
        _page.Section("Figures", figures=drawn),
        *(_page.Section(f"Details, {network}", found, _DETAILS_NOTE) for network, found in details.items()),
        _page.Section("Growth", _growth(grown), _GROWTH_NOTE),
        _page.Section("Inside ddjax", _details(inside), _INSIDE_NOTE),
        _page.Section("Machine", _machine(run)),
    ]


def table(run: _page.Run) -> _page.Table:
    """The comparison with other libraries; without one, the growth or the variants of ddjax."""
    comparisons, beside, grown = _parts(run)
    if beside or not comparisons:
        return _compact(run, beside)
    return _growth(grown) if grown else _details(comparisons)


def files(run: _page.Run) -> dict[str, list[_page.Row]]:
    """No file, since all records hold times."""
    del run
    return {}


def _parts(run: _page.Run) -> tuple[Compared, Compared, Compared]:
    """All comparisons, those that other libraries can take part in, and those of sizes."""
    comparisons = speed.comparisons(run.records)
    inside = (*speed.INSIDE, *speed.AXES)
    beside = {key: sides for key, sides in comparisons.items() if "ddjax" in sides and key.work not in inside}
    return comparisons, beside, {key: sides for key, sides in comparisons.items() if key.work in speed.AXES}


def _best(sides: Mapping[str, Record]) -> Record | None:
    """The fastest other library that did the same work."""
    peers = speed.peers(sides)
    return peers[0] if peers and speed.is_correct(peers[0], sides["ddjax"]) else None


def _summary(beside: Compared) -> _page.Table:
    best = {key: _best(sides) for key, sides in beside.items()}
    ratios = {key.title_and_batch: record["speedup"] for key, record in best.items() if record is not None}
    if not ratios:
        return _page.Table([], [])
    row = [str(len(ratios)), str(sum(ratio > 1 for ratio in ratios.values()))]
    row.append(number(math.exp(float(np.mean(np.log(list(ratios.values())))))))
    row += [
        f"{number(ratios[key])}\n{key}"
        for key in (min(ratios, key=ratios.__getitem__), max(ratios, key=ratios.__getitem__))
    ]
    return _page.Table(["comparisons", "ddjax is faster in", "geometric mean", "lowest", "highest"], [row])


def _compact(run: _page.Run, beside: Compared) -> _page.Table:
    broken, rows = speed.broken(run.records), []
    for key, sides in beside.items():
        ours, best = sides["ddjax"], _best(sides)
        others = [
            _ratio(peer) + ("" if speed.is_correct(peer, ours) else "*")
            for peer in speed.peers(sides)
            if peer is not best
        ]
        others += [f"{speed.side_name(side)} broken" for side in broken.get(key, {}) if side not in sides]
        row = [key.network or "", key.title, "" if key.batch is None else str(key.batch)]
        row.append(f"{speed.duration(ours['seconds'])} per {ours['unit']}")
        rows.append([*row, "" if best is None else _ratio(best), ", ".join(others)])
    first = 0 if len({row[0] for row in rows}) > 1 else 1
    header = ["network", "work", "batch", "ddjax", "best other library", "other libraries"]
    return _page.Table(header[first:], [row[first:] for row in rows])


def _ratio(record: Record) -> str:
    return f"{speed.side_name(record['side'])} {number(record['speedup'])}x"


def _details(comparisons: Compared) -> _page.Table:
    """A row for each side."""
    header = [
        "work", "batch", "side", "time", "times the base", "success", "mean distance", "gradients", "GFLOP/s", "memory",
        "first call", "more",
    ]  # fmt: skip
    rows = []
    for key, sides in comparisons.items():
        for place, record in enumerate(sides.values()):
            # The work stands in its first row alone.
            row = ["", ""] if place else [key.title, "" if key.batch is None else str(key.batch)]
            ends = [speed.duration(record[f"seconds_{end}"]) for end in ("low", "high")]
            row.append(speed.side_name(record["side"]))
            row.append(f"{speed.duration(record['seconds'])}\nper {record['unit']}\n{' to '.join(ends)}")
            times = " to ".join(number(record[f"speedup_{end}"]) for end in ("low", "high"))
            is_base = record["side"] == record.get("base")
            row.append("" if is_base else f"{number(record['speedup'])}x\n{times}")
            row += [_with_same(record, "success", ".3f"), _with_same(record, "mean_distance", ".4g")]
            row[-1] += f"\n{record['norm']}" if record.get("norm") and row[-1] else ""
            share = record.get("matmul_share")
            rate = number(record.get("gflops")) + ("" if share is None else f"\n{100 * share:.0f} %")
            taken, needed = (record.get(f"{name}_bytes") for name in ("peak", "program"))
            memory = "" if taken is None else f"{number(taken / 2**20)} MB"
            memory += "" if needed is None else f"\nprogram {number(needed / 2**20)} MB"
            row += [number(record.get("gradients")), rate, memory]
            rows.append([*row, speed.duration(record.get("first_seconds")), _more(record)])
    return _page.Table(header, rows).without_empty_columns(5)


def _with_same(record: Record, name: str, form: str) -> str:
    """A measurement, and below it that of ddjax on the same examples."""
    values = [record.get(name), record.get(f"{name}_same")]
    if values[0] is None:
        return ""
    return format(values[0], form) + ("" if values[1] is None else f"\nddjax {values[1]:{form}}")


def _more(record: Record) -> str:
    """The note, and what only this work measures."""
    others = {name: value for name, value in record.items() if name not in _SHOWN and value is not None}
    parts = [f"{name.replace('_', ' ')} {_plain(value)}" for name, value in others.items()]
    return "\n".join(filter(None, [record.get("note"), *parts]))


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(part)}" for name, part in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _absent(run: _page.Run) -> _page.Table:
    """Each library that is missing or broken, with the reason, and the command that installs it."""
    rows = []
    for record in run.of("peer_missing"):
        reason, command = (str(record.get(name) or "") for name in ("error", "command"))
        rows.append([speed.side_name(record["side"]), "missing", reason, command])
    for key, sides in speed.broken(run.records).items():
        rows += [[speed.side_name(side), key.title_and_batch, error, ""] for side, error in sides.items()]
    header = ["library", "where", "reason", "command to install"]
    return _page.Table(header, rows, words=True).without_empty_columns(3)


def _machine(run: _page.Run) -> _page.Table:
    """The machine, and the versions of the other libraries."""
    machine = next(iter(run.of("machine")), {})
    shown = {"cores": machine.get("cores"), "device": machine.get("device", machine.get("device_kind"))}
    for name in ("jax", "torch"):
        rate = machine.get(f"{name}_gflops")
        shown[f"float32 matrix products, {name}"] = None if rate is None else f"{rate:.0f} GFLOP/s"
    shown |= {speed.side_name(record["side"]): record.get("version") for record in run.of("peer")}
    return _page.pairs({name: value for name, value in shown.items() if value is not None})


def _growth(grown: Compared) -> _page.Table:
    """A row for each curve."""
    rows = []
    for key, sides in grown.items():
        for name, points in _curves(sides).items():
            sizes = np.array([point["size"] for point in points], float)
            seconds = np.array([_seconds(point) for point in points])
            expected = str(points[0].get("order", "n"))
            exponent = deviation = ""
            if len(points) > 1:
                exponent = f"{np.polyfit(np.log(sizes), np.log(seconds), 1)[0]:.2f}"
                relative = seconds / order(expected, sizes)
                deviation = f"{100 * np.max(np.abs(relative / np.median(relative) - 1)):.0f} %"
            traces = sorted({point["traces"] for point in points if point.get("traces") is not None})
            shown = ", ".join(f"{size:g}: {number(1e3 * s)}" for size, s in zip(sizes, seconds, strict=True))
            row = [key.title, speed.WORKS.get(name, name), shown, expected, exponent, deviation]
            rows.append([*row, ", ".join(map(str, traces))])
    return _page.Table(["work", "curve", "size: ms", "expected", "exponent", "largest deviation", "traces"], rows)


def _curves(sides: Mapping[str, Record]) -> dict[str, list[Record]]:
    """The points of each curve of a comparison, by size."""
    curves: dict[str, list[Record]] = {}
    for record in sides.values():
        if record.get("size"):
            curves.setdefault(str(record.get("curve", "")), []).append(record)
    return {name: sorted(points, key=lambda point: point["size"]) for name, points in curves.items()}


def _seconds(point: Record, end: str = "") -> float:
    """The time of a whole call."""
    return point[f"seconds{end}"] * point["units"]


def order(name: str, sizes: np.ndarray) -> np.ndarray:
    """A growth by its name: `"1"`, `"n"` or `"n log n"`."""
    if name == "n log n":
        return sizes * np.log(np.maximum(sizes, math.e))
    return sizes if name == "n" else np.ones_like(sizes)


@styled()
def speedups_figure(beside: Compared) -> Figure | None:
    """Times of other libraries over those of ddjax, a group of bars for each comparison; None without one."""
    several = len({key.network for key in beside}) > 1
    bars: dict[str, dict[str, tuple[Record, bool]]] = {}
    for key, sides in beside.items():
        group = bars.setdefault(key.title_and_batch + (f"\n{key.network}" if several else ""), {})
        for record in speed.peers(sides):
            # The first is the best way to use the library.
            library = record["side"].partition(",")[0].removeprefix("batched_")
            group.setdefault(library, (record, speed.is_correct(record, sides["ddjax"])))
    bars = {title: group for title, group in bars.items() if group}
    if not bars:
        return None
    found = {library for group in bars.values() for library in group}
    libraries = [*(name for name in _COLORS if name in found), *sorted(found - _COLORS.keys())]
    count = sum(map(len, bars.values()))
    figure = Figure(figsize=(8.6, 0.2 * count + 0.14 * len(bars) + 1.2), layout="constrained")
    axes = figure.subplots()
    place, ticks, ends = 0.0, [], []
    for group in bars.values():
        ticks.append(place + (len(group) - 1) / 2)
        for library in (name for name in libraries if name in group):
            record, correct = group[library]
            ratio, low, high = (record[f"speedup{end}"] for end in ("", "_low", "_high"))
            color = _COLORS.get(library, GRAY)
            face, hatch = (color, None) if correct else ("white", "////")
            axes.barh(place, ratio - 1, left=1, height=0.84, color=face, edgecolor=color, hatch=hatch)
            axes.plot([low, high], [place, place], color="black", linewidth=1)
            position, ends = (max(high, 1.0), place), [*ends, low, high]
            axes.annotate(number(ratio), position, (4, 0), textcoords="offset points", va="center", fontsize=8)
            place += 1
        place += 0.7
    axes.axvline(1, color="black", linewidth=1.2)
    axes.set_xscale("log")
    axes.set(xlim=(min(0.8, 0.9 * min(ends)), max(2.0, *ends) ** 1.1 * 1.4), ylim=(place - 0.7, -0.8))
    _style.label_log_axis(axes.xaxis)
    if max(ends) / min(ends) > 100:
        axes.xaxis.set_major_locator(LogLocator())
    axes.set_yticks(ticks, map(_style.plain, bars))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    axes.set(xlabel="time divided by that of ddjax (right of 1: ddjax is faster)")
    handles = [Patch(color=_COLORS.get(name, GRAY), label=speed.LIBRARIES.get(name, name)) for name in libraries]
    if not all(correct for group in bars.values() for _, correct in group.values()):
        handles.append(Patch(facecolor="white", edgecolor=GRAY, hatch="////", label="does less or worse"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6))
    return figure


@styled()
def growth_figure(grown: Compared) -> Figure | None:
    """Time against size, a panel for each kind of size; None where no curve has a point."""
    several = len({key.network for key in grown}) > 1
    panels: dict[str, dict[str, list[Record]]] = {}
    for key, sides in grown.items():
        for name, points in _curves(sides).items():
            titles = [key.space, speed.WORKS.get(name, name), key.network if several else ""]
            panels.setdefault(speed.AXES[key.work], {})[", ".join(filter(None, titles))] = points
    if not panels:
        return None
    columns = min(len(panels), _COLUMNS)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.3 * columns, 3.8 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    for axes, (label, curves) in zip(grid.flat, panels.items(), strict=False):
        _growth_panel(axes, curves)
        axes.set(xlabel=label, ylabel="ms")
    return figure


def _growth_panel(axes: Axes, curves: Mapping[str, Sequence[Record]]) -> None:
    orders, every_size, every_time = [], set(), []
    for (name, points), (color, marker) in zip(curves.items(), itertools.cycle(_LOOKS), strict=False):
        sizes = np.array([point["size"] for point in points], float)
        middle, *ends = (1e3 * np.array([_seconds(point, end) for point in points]) for end in ("", "_low", "_high"))
        axes.errorbar(sizes, middle, np.abs(ends - middle), color=color, marker=marker, label=name, linewidth=1.4)
        if len(sizes) > 1:
            growth = points[0].get("order", "n")
            expected = order(growth, sizes)
            level = np.exp(np.mean(np.log(middle / expected)))
            axes.plot(sizes, level * expected, color=color, linestyle=":", linewidth=1.2)
            orders.append(_ORDERS[growth])
        every_size.update(sizes.tolist())
        every_time += np.concatenate(ends).tolist()
    axes.set_xscale("log")
    axes.set_yscale("log")
    turn = 30 if max(every_size) > 999 else 0
    axes.set_xticks(sorted(every_size), [f"{size:g}" for size in sorted(every_size)], rotation=turn)
    axes.minorticks_off()
    if max(every_time) / min(every_time) < 100:
        _style.label_log_axis(axes.yaxis)
    # A flat curve needs room above and below.
    low, high = axes.get_ylim()
    if high / low < 4:
        axes.set_ylim(low / 2, high * 2)
    handles = axes.get_legend_handles_labels()[0]
    if orders:
        expected = f"expected: {' and '.join(dict.fromkeys(orders))}"
        handles.append(Line2D([], [], color=GRAY, linestyle=":", label=expected))
    # Below the panel, where no curve runs.
    axes.legend(handles=handles, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.32))
