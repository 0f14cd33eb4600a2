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
from .speed import Compared, Comparison

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
# Growths: the name in the legend, and the function of the sizes.
_ORDERS = {
    "1": ("constant", np.ones_like),
    "n": ("proportional", np.positive),
    "n log n": ("n log n", lambda sizes: sizes * np.log(np.maximum(sizes, math.e))),
}

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
    best = {key.title_and_batch: record for key, sides in beside.items() if (record := _best(sides)) is not None}
    if not best:
        return _page.Table([], [])
    ratios = sorted((record["speedup"], title) for title, record in best.items())
    mean = math.exp(float(np.mean([math.log(ratio) for ratio, _ in ratios])))
    row = [str(len(ratios)), str(sum(ratio > 1 for ratio, _ in ratios)), number(mean)]
    row += [f"{number(ratio)}\n{title}" for ratio, title in (ratios[0], ratios[-1])]
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
        row = [key.network or "", key.title, _batch(key), f"{speed.duration(ours['seconds'])} per {ours['unit']}"]
        rows.append([*row, "" if best is None else _ratio(best), ", ".join(others)])
    first = 0 if len({row[0] for row in rows}) > 1 else 1
    header = ["network", "work", "batch", "ddjax", "best other library", "other libraries"]
    return _page.Table(header[first:], [row[first:] for row in rows])


def _ratio(record: Record) -> str:
    return f"{speed.side_name(record['side'])} {number(record['speedup'])}x"


def _batch(key: Comparison) -> str:
    return "" if key.batch is None else str(key.batch)


def _details(comparisons: Compared) -> _page.Table:
    """A row for each side; a work stands in its first row alone."""
    header = [
        "work", "batch", "side", "time", "times the base", "success", "mean distance", "gradients", "GFLOP/s", "memory",
        "first call", "more",
    ]  # fmt: skip
    rows = []
    for key, sides in comparisons.items():
        for place, record in enumerate(sides.values()):
            times = " to ".join(speed.duration(record[f"seconds_{end}"]) for end in ("low", "high"))
            ratios = " to ".join(number(record[f"speedup_{end}"]) for end in ("low", "high"))
            distance, share = _with_same(record, "mean_distance", ".4g"), record.get("matmul_share")
            taken, needed = (number(size and size / 2**20) for size in map(record.get, ("peak_bytes", "program_bytes")))
            rows.append([
                *(["", ""] if place else [key.title, _batch(key)]),
                speed.side_name(record["side"]),
                f"{speed.duration(record['seconds'])}\nper {record['unit']}\n{times}",
                "" if record["side"] == record.get("base") else f"{number(record['speedup'])}x\n{ratios}",
                _with_same(record, "success", ".3f"),
                distance + (f"\n{record['norm']}" if record.get("norm") and distance else ""),
                number(record.get("gradients")),
                number(record.get("gflops")) + ("" if share is None else f"\n{100 * share:.0f} %"),
                (f"{taken} MB" if taken else "") + (f"\nprogram {needed} MB" if needed else ""),
                speed.duration(record.get("first_seconds")),
                _more(record),
            ])  # fmt: skip
    return _page.Table(header, rows).without_empty_columns(5)


def _with_same(record: Record, name: str, form: str) -> str:
    """A measurement, and below it that of ddjax on the same examples."""
    value, same = record.get(name), record.get(f"{name}_same")
    return "" if value is None else f"{value:{form}}" + ("" if same is None else f"\nddjax {same:{form}}")


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
    rows = [
        [speed.side_name(record["side"]), "missing", record.get("error") or "", record.get("command") or ""]
        for record in run.of("peer_missing")
    ]
    for key, sides in speed.broken(run.records).items():
        rows += [[speed.side_name(side), key.title_and_batch, error, ""] for side, error in sides.items()]
    header = ["library", "where", "reason", "command to install"]
    return _page.Table(header, rows, words=True).without_empty_columns(3)


def _machine(run: _page.Run) -> _page.Table:
    """The machine, and the versions of the other libraries."""
    machine = next(iter(run.of("machine")), {})
    shown = {name: machine.get(name) for name in ("cores", "device")}
    for name in ("jax", "torch"):
        rate = machine.get(f"{name}_gflops")
        shown[f"float32 matrix products, {name}"] = rate and f"{rate:.0f} GFLOP/s"
    shown |= {speed.side_name(record["side"]): record.get("version") for record in run.of("peer")}
    return _page.pairs({name: value for name, value in shown.items() if value is not None})


def _growth(grown: Compared) -> _page.Table:
    """A row for each curve."""
    rows = []
    for key, name, points in _curves(grown):
        sizes, seconds = _times(points)
        expected = str(points[0].get("order", "n"))
        exponent = deviation = ""
        if len(points) > 1:
            exponent = f"{np.polyfit(np.log(sizes), np.log(seconds), 1)[0]:.2f}"
            relative = seconds / _ORDERS[expected][1](sizes)
            deviation = f"{100 * np.max(np.abs(relative / np.median(relative) - 1)):.0f} %"
        traces = sorted({point["traces"] for point in points if point.get("traces") is not None})
        shown = ", ".join(f"{size:g}: {number(1e3 * s)}" for size, s in zip(sizes, seconds, strict=True))
        rows.append([key.title, name, shown, expected, exponent, deviation, ", ".join(map(str, traces))])
    return _page.Table(["work", "curve", "size: ms", "expected", "exponent", "largest deviation", "traces"], rows)


def _curves(grown: Compared) -> list[tuple[Comparison, str, list[Record]]]:
    """The curves of all comparisons: their names and their points, by size."""
    curves = []
    for key, sides in grown.items():
        points = sorted((record for record in sides.values() if record.get("size")), key=lambda point: point["size"])
        for name in dict.fromkeys(str(point.get("curve", "")) for point in points):
            of_curve = [point for point in points if str(point.get("curve", "")) == name]
            curves.append((key, speed.WORKS.get(name, name), of_curve))
    return curves


def _times(points: Sequence[Record], end: str = "") -> tuple[np.ndarray, np.ndarray]:
    """The sizes of points, and the seconds of a whole call: the median, or the `"_low"` or `"_high"` end."""
    times = [point[f"seconds{end}"] * point["units"] for point in points]
    return np.array([point["size"] for point in points], float), np.array(times)


@styled()
def speedups_figure(beside: Compared) -> Figure | None:
    """Times of other libraries over those of ddjax, a group of bars for each comparison; None without one."""
    several = len({key.network for key in beside}) > 1
    groups: dict[str, dict[str, tuple[Record, bool]]] = {}
    for key, sides in beside.items():
        title = key.title_and_batch + (f"\n{key.network}" if several else "")
        for record in speed.peers(sides):
            # The first is the best way to use the library.
            library = record["side"].partition(",")[0].removeprefix("batched_")
            groups.setdefault(title, {}).setdefault(library, (record, speed.is_correct(record, sides["ddjax"])))
    if not groups:
        return None
    found = {library for group in groups.values() for library in group}
    libraries = [*(name for name in _COLORS if name in found), *sorted(found - _COLORS.keys())]
    bars = [(i, name, *group[name]) for i, group in enumerate(groups.values()) for name in libraries if name in group]
    rows, names, records, correct = zip(*bars, strict=True)
    places = np.arange(len(bars)) + 0.7 * np.array(rows)
    ratios, low, high = (np.array([record[f"speedup{end}"] for record in records]) for end in ("", "_low", "_high"))
    colors = [_COLORS.get(name, GRAY) for name in names]
    figure = Figure(figsize=(8.6, 0.2 * len(bars) + 0.14 * len(groups) + 1.2), layout="constrained")
    axes = figure.subplots()
    drawn = axes.barh(
        places, ratios - 1, left=1, height=0.84, xerr=(ratios - low, high - ratios), edgecolor=colors,
        color=[color if good else "white" for color, good in zip(colors, correct, strict=True)],
        hatch=["" if good else "////" for good in correct],
    )  # fmt: skip
    axes.bar_label(drawn, [number(ratio) for ratio in ratios], padding=4, fontsize=8)
    axes.axvline(1, color="black", linewidth=1.2)
    axes.set(xscale="log", xlabel="time divided by that of ddjax (right of 1: ddjax is faster)")
    axes.set(xlim=(min(0.8, 0.7 * min(low)), max(2.0, *high) ** 1.1 * 1.4), ylim=(places[-1] + 1, -0.8))
    _style.label_log_axis(axes.xaxis)
    if max(high) / min(low) > 100:
        axes.xaxis.set_major_locator(LogLocator())
    axes.set_yticks([places[np.equal(rows, i)].mean() for i in range(len(groups))], map(_style.plain, groups))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    handles = [Patch(color=_COLORS.get(name, GRAY), label=speed.LIBRARIES.get(name, name)) for name in libraries]
    if not all(correct):
        handles.append(Patch(facecolor="white", edgecolor=GRAY, hatch="////", label="does less or worse"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6))
    return figure


@styled()
def growth_figure(grown: Compared) -> Figure | None:
    """Time against size, a panel for each kind of size; None where no curve has a point."""
    several = len({key.network for key in grown}) > 1
    panels: dict[str, dict[str, list[Record]]] = {}
    for key, name, points in _curves(grown):
        titles = [key.space, name, key.network if several else ""]
        panels.setdefault(speed.AXES[key.work], {})[", ".join(filter(None, titles))] = points
    if not panels:
        return None
    columns = min(len(panels), _COLUMNS)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.3 * columns, 3.8 * rows), layout="constrained")
    for place, (label, curves) in enumerate(panels.items()):
        _growth_panel(figure.add_subplot(rows, columns, place + 1, xlabel=label, ylabel="ms"), curves)
    return figure


def _growth_panel(axes: Axes, curves: Mapping[str, Sequence[Record]]) -> None:
    orders = []
    for (name, points), (color, marker) in zip(curves.items(), itertools.cycle(_LOOKS), strict=False):
        sizes, _ = _times(points)
        middle, *ends = (1e3 * _times(points, end)[1] for end in ("", "_low", "_high"))
        axes.errorbar(sizes, middle, np.abs(ends - middle), color=color, marker=marker, label=name, linewidth=1.4)
        if len(sizes) > 1:
            growth, order = _ORDERS[points[0].get("order", "n")]
            level = np.exp(np.mean(np.log(middle / order(sizes))))
            axes.plot(sizes, level * order(sizes), color=color, linestyle=":", linewidth=1.2)
            orders.append(growth)
    axes.set(xscale="log", yscale="log")
    sizes = sorted({point["size"] for points in curves.values() for point in points})
    axes.set_xticks(sizes, [f"{size:g}" for size in sizes], rotation=30 if sizes[-1] > 999 else 0)
    axes.minorticks_off()
    low, high = axes.get_ylim()
    if high / low < 100:
        _style.label_log_axis(axes.yaxis)
    if high / low < 4:
        # A flat curve needs room above and below.
        axes.set_ylim(low / 2, high * 2)
    handles = axes.get_legend_handles_labels()[0]
    if orders:
        expected = f"expected: {' and '.join(dict.fromkeys(orders))}"
        handles.append(Line2D([], [], color=GRAY, linestyle=":", label=expected))
    # Below the panel, where no curve runs.
    axes.legend(handles=handles, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.32))
