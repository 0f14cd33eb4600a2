"""The figures of the benchmark: how much longer others take, and how costs grow."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator

from ddjax.figures.style import BLUE, GRAY, GREEN, PURPLE, RED, label_log_axis, styled

_SKY, _YELLOW = "#56B4E9", "#E6B800"
# Libraries in the order of the legend; any other is drawn in the last color.
_COLORS = {"torch": BLUE, "foolbox": GREEN, "torchattacks": RED, "adv_lib": PURPLE, "art": _YELLOW}
_OTHER = GRAY
_MARKERS, _CURVE_COLORS = ("o", "s", "^", "D"), (BLUE, RED, GREEN, PURPLE)
_COLUMNS = 3
_ORDERS = {"1": "constant", "n": "proportional", "n log n": "n log n"}


@styled()
def speedups(bars: Sequence[Mapping[str, Any]]) -> Figure | None:
    """How many times as long as ddjax others take, a group of bars for each work.

    Args:
      bars: objects with `group`, `library`, `ratio`, `low` and `high`, and `correct` (bool): whether as much was done.

    Returns:
      The figure, bars from 1 on a logarithmic axis; None without bars.
    """
    if not bars:
        return None
    groups = list(dict.fromkeys(bar["group"] for bar in bars))
    libraries = [name for name in _COLORS if any(bar["library"] == name for bar in bars)]
    libraries += list(dict.fromkeys(bar["library"] for bar in bars if bar["library"] not in _COLORS))
    figure = Figure(figsize=(8.6, 0.2 * len(bars) + 0.14 * len(groups) + 1.2), layout="constrained")
    axes = figure.subplots()
    place, ticks = 0.0, []
    for group in groups:
        found = sorted((bar for bar in bars if bar["group"] == group), key=lambda b: libraries.index(b["library"]))
        ticks.append(place + (len(found) - 1) / 2)
        for bar in found:
            color = _COLORS.get(bar["library"], _OTHER)
            face = color if bar["correct"] else "white"
            hatch = None if bar["correct"] else "////"
            axes.barh(place, bar["ratio"] - 1, left=1, height=0.84, color=face, edgecolor=color, hatch=hatch)
            axes.plot([bar["low"], bar["high"]], [place, place], color="black", linewidth=1)
            end = max(bar["high"], 1.0)
            axes.annotate(
                _short(bar["ratio"]), (end, place), (4, 0), textcoords="offset points", va="center", fontsize=8
            )
            place += 1
        place += 0.7
    axes.axvline(1, color="black", linewidth=1.2)
    axes.set_xscale("log")
    ends = [bar[end] for bar in bars for end in ("low", "high")]
    axes.set(xlim=(min(0.8, 0.9 * min(ends)), max(2.0, *ends) ** 1.1 * 1.4), ylim=(place - 0.7, -0.8))
    label_log_axis(axes.xaxis)
    if max(ends) / min(ends) > 100:
        axes.xaxis.set_major_locator(LogLocator())
    axes.set_yticks(ticks, groups)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    axes.set(xlabel="time divided by that of ddjax (right of 1: ddjax is faster)")
    handles = [Patch(color=_COLORS.get(name, _OTHER), label=_name(name)) for name in libraries]
    if not all(bar["correct"] for bar in bars):
        handles.append(Patch(facecolor="white", edgecolor=GRAY, hatch="////", label="does less or worse"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6))
    return figure


def _short(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 100 else f"{ratio:.3g}"


def _name(library: str) -> str:
    return {"torch": "PyTorch", "adv_lib": "adv-lib", "art": "ART"}.get(library, library)


@styled()
def growth(panels: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure | None:
    """Cost against size, with the growth that is expected.

    Args:
      panels: the label of the horizontal axis, to curves with `name`, `sizes`, `seconds`, `lows` and `highs`, and
        `order`: `"1"`, `"n"` or `"n log n"`.

    Returns:
      The figure; None where no curve has a point.
    """
    panels = {label: [c for c in curves if len(c["sizes"])] for label, curves in panels.items()}
    panels = {label: curves for label, curves in panels.items() if curves}
    if not panels:
        return None
    columns = min(len(panels), _COLUMNS)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.3 * columns, 3.8 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    for axes, (label, curves) in zip(grid.flat, panels.items(), strict=False):
        orders = []
        for curve, color, marker in zip(curves, _cycle(_CURVE_COLORS), _cycle(_MARKERS), strict=False):
            sizes, seconds = np.asarray(curve["sizes"], float), np.asarray(curve["seconds"], float)
            shown = 1e3 * seconds
            errors = np.abs(1e3 * np.array([curve["lows"], curve["highs"]]) - shown)
            axes.errorbar(sizes, shown, errors, color=color, marker=marker, label=curve["name"], linewidth=1.4)
            if len(sizes) > 1:
                expected = order(curve["order"], sizes)
                level = np.exp(np.mean(np.log(shown / expected)))
                axes.plot(sizes, level * expected, color=color, linestyle=":", linewidth=1.2)
                orders.append(_ORDERS[curve["order"]])
        axes.set_xscale("log")
        axes.set_yscale("log")
        sizes = sorted({size for curve in curves for size in curve["sizes"]})
        axes.set_xticks(sizes, [f"{size:g}" for size in sizes], rotation=30 if max(sizes) > 999 else 0)
        axes.minorticks_off()
        everything = [value for curve in curves for value in (*curve["lows"], *curve["highs"])]
        if max(everything) / min(everything) < 100:
            label_log_axis(axes.yaxis)
        axes.set(xlabel=label, ylabel="ms")
        # Room for a curve that is flat.
        low, high = axes.get_ylim()
        if high / low < 4:
            axes.set_ylim(low / 2, high * 2)
        handles = axes.get_legend_handles_labels()[0]
        if orders:
            said = " and ".join(dict.fromkeys(orders))
            handles.append(Line2D([], [], color=GRAY, linestyle=":", label=said))
        # Below, where no curve runs.
        axes.legend(handles=handles, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.32))
    return figure


def order(name: str, sizes: np.ndarray) -> np.ndarray:
    """A growth by its name: `"1"`, `"n"` or `"n log n"`."""
    if name == "n log n":
        return sizes * np.log(np.maximum(sizes, math.e))
    return sizes if name == "n" else np.ones_like(sizes)


def _cycle(values: Sequence[str]) -> list[str]:
    return [*values] * 4
