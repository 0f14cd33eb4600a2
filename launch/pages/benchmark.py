"""The page of `launch.benchmark`: speed. It has no `table.csv`, since its records hold times."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from . import _figures, _page, speed
from ._figures import BLUE, GRAY, GREEN, LOOKS, PURPLE, RED, Look, Series
from ._page import Cell, Record, Row, field, number, stack
from .speed import Sides, duration

HEADING = "Speed"

_LOOKS: dict[str, Look] = {
    "PyTorch": {"color": BLUE, "marker": "o"},
    "foolbox": {"color": GREEN, "marker": "^"},
    "torchattacks": {"color": RED, "marker": "s"},
    "adv-lib": {"color": PURPLE, "marker": "D"},
    "ART": {"color": GRAY, "marker": "v"},
}
_LOOKS |= {f"{name}, worse": {**look, "markerfacecolor": "white"} for name, look in _LOOKS.items()}
# Expected growths by their names.
_ORDERS = {
    "1": np.ones_like,
    "n": lambda sizes: sizes,
    "n log n": lambda sizes: sizes * np.log(np.maximum(sizes, math.e)),
}

_SPEEDUPS_CAPTION = (
    "Time of other libraries divided by the time of ddjax; right of 1, ddjax is faster. Marks: median over turns. "
    "Lines: from the lowest to the highest turn. Worse: succeeds less often, or with larger distances or other values. "
    "If a library was used in several ways, the fastest that does the same work is shown."
)
_GROWTH_CAPTION = (
    "Time of a whole call against the size of the work, with the exponent of the power law through the points. Dotted: "
    "the expected growth."
)
_COMPACT_NOTE = (
    "Time for one unit by ddjax, and how many times as long other libraries take. Best: the fastest that does the same "
    "work; it succeeds as often within two percentage points, at a mean distance at most five percent larger, with the "
    "same values. A star marks lower success, a larger distance or other values."
)
_DETAILS_NOTE = (
    "Medians over turns, and below them the lowest and the highest turn. Each ratio is of two times of the same turn. "
    "Success and distance are judged by the same classifier; below them stand those of ddjax on the examples that a "
    "library was given, where these are fewer. The first call may compile. Memory: what a call takes beyond what was "
    "resident before, and what the compiled program of ddjax takes. Share: of the machine's rate of matrix products."
)


def _time(record: Record) -> str:
    low, high = (duration(record[f"seconds_{end}"]) for end in ("low", "high"))
    return f"{duration(record['seconds'])}\nper {record['unit']}\n{low} to {high}"


def _times_the_base(record: Record) -> str:
    if record["side"] == record.get("base"):
        return ""
    return "{}x\n{} to {}".format(*(number(record[f"speedup{end}"]) for end in ("", "_low", "_high")))


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(part)}" for name, part in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _more(record: Record) -> str:
    """The note, and what only this work measures."""
    others = {name: value for name, value in record.items() if name not in _SHOWN and value is not None}
    parts = [f"{name.replace('_', ' ')} {_plain(value)}" for name, value in others.items()]
    return "\n".join(filter(None, [record.get("note"), *parts]))


# A row for each side of a comparison.
_DETAILS: dict[str, Cell] = {
    "work": field("title"),
    "batch": field("batch"),
    "side": field("side", speed.side_name),
    "time": _time,
    "times the base": _times_the_base,
    "success": stack(field("success", "{:.3f}".format), field("success_same", "ddjax {:.3f}".format)),
    "mean distance": stack(
        field("mean_distance", "{:.4g}".format),
        field("mean_distance_same", "ddjax {:.4g}".format),
        lambda record: "" if record.get("mean_distance") is None else record.get("norm") or "",
    ),
    "gradients": field("gradients", number),
    "GFLOP/s": stack(field("gflops", number), field("matmul_share", lambda share: f"{100 * share:.0f} %")),
    "memory": stack(
        field("peak_bytes", lambda count: f"{number(count / 2**20)} MB"),
        field("program_bytes", lambda count: f"program {number(count / 2**20)} MB"),
    ),
    "first call": field("first_seconds", duration),
    "more": _more,
}
# The fields of these columns.
_SHOWN = {
    *speed.KEY, "measure", "title", "library", "correct", "side", "base", "unit", "units", "repetitions", "seconds",
    "seconds_low", "seconds_high", "first_seconds", "speedup", "speedup_low", "speedup_high", "peak_bytes",
    "program_bytes", "success", "success_same", "mean_distance", "mean_distance_same", "norm", "gradients", "flops",
    "gflops", "matmul_share", "note", "curve", "size", "order",
}  # fmt: skip


def sections(run: _page.Run) -> list[_page.Section]:
    """Comparisons with other libraries, growth, variants of ddjax, and the machine."""
    beside, grown, inside = _parts(run)
    drawn = {
        "speedups": (speedups_figure(beside), _SPEEDUPS_CAPTION),
        "growth": (growth_figure(grown), _GROWTH_CAPTION),
    }
    networks = dict.fromkeys(sides[0].get("network") for sides in beside)
    details = {name: _details([sides for sides in beside if sides[0].get("network") == name]) for name in networks}
    return [
        _page.Section("Beside other libraries", _compact(run, beside), _COMPACT_NOTE),
        _page.Section("Missing libraries", _absent(run)),
        _page.Section("Figures", figures=drawn),
        *(_page.Section(f"Details, {name}", found, _DETAILS_NOTE) for name, found in details.items()),
        _page.Section("Growth", _details(grown)),
        _page.Section("Inside ddjax", _details(inside), "Variants of ddjax, compared with each other."),
        _page.Section("Machine", _machine(run)),
    ]


def table(run: _page.Run) -> pd.DataFrame:
    """The comparison with other libraries; without one, the growth or the variants of ddjax."""
    beside, grown, inside = _parts(run)
    return _compact(run, beside) if beside else _details(grown or inside)


def files(run: _page.Run) -> dict[str, list[Row]]:
    """No file, since all records hold times."""
    del run
    return {}


def _parts(run: _page.Run) -> tuple[list[Sides], list[Sides], list[Sides]]:
    """Comparisons that other libraries can take part in, those of sizes, and all others."""
    parts: tuple[list[Sides], list[Sides], list[Sides]] = ([], [], [])
    for sides in speed.comparisons(run.records):
        work, has_ours = sides[0]["work"], any(record["side"] == "ddjax" for record in sides)
        parts[1 if work in speed.GROWTH else 0 if has_ours and work not in speed.INSIDE else 2].append(sides)
    return parts


def _compact(run: _page.Run, beside: Sequence[Sides]) -> pd.DataFrame:
    """A row for each comparison with other libraries."""
    columns: dict[str, Cell] = {
        "network": field("network"),
        "work": field("title"),
        "batch": field("batch"),
        "ddjax": lambda row: f"{duration(row['seconds'])} per {row['unit']}",
        "best other library": field("best"),
        "other libraries": field("others"),
    }
    return _page.table_of([_row(sides, run.of("peer_broken")) for sides in beside], columns)


def _row(sides: Sides, broken: Sequence[Record]) -> Row:
    """The record of ddjax, with what the other libraries took."""
    by_side, peers = {record["side"]: record for record in sides}, speed.peers(sides)
    best = 1 if peers and peers[0]["correct"] else 0
    ratios = [f"{speed.side_name(peer['side'])} {number(peer['speedup'])}x" for peer in peers]
    others = [ratio + ("" if peer["correct"] else "*") for ratio, peer in zip(ratios, peers, strict=True)][best:]
    failed = dict.fromkeys(record["side"] for record in broken if speed.key(record) == speed.key(sides[0]))
    others += [f"{speed.side_name(side)} broken" for side in failed if side not in by_side]
    return {**by_side["ddjax"], "best": "".join(ratios[:best]), "others": ", ".join(others)}


def _details(comparisons: Sequence[Sides]) -> pd.DataFrame:
    """A row for each side; the work stands in its first row alone."""
    hidden = {"title": None, "batch": None}
    rows = [{**side, **(hidden if place else {})} for sides in comparisons for place, side in enumerate(sides)]
    return _page.table_of(rows, _DETAILS)


def _absent(run: _page.Run) -> pd.DataFrame:
    """Each library that is missing or broken, with the reason, and the command that installs it."""
    columns: dict[str, Cell] = {
        "library": field("side", speed.side_name),
        "where": lambda record: speed.title(record) or "missing",
        "batch": field("batch"),
        "reason": field("error"),
        "command to install": field("command"),
    }
    return _page.table_of(run.of("peer_missing", "peer_broken"), columns)


def _machine(run: _page.Run) -> pd.DataFrame:
    """The machine, and the versions of the other libraries."""
    shown = {name.replace("_", " "): value for record in run.of("machine") for name, value in record.items()}
    shown |= {speed.side_name(record["side"]): record.get("version") for record in run.of("peer")}
    return _page.pairs({name: value for name, value in shown.items() if value is not None and name != "measure"})


def speedups_figure(beside: Sequence[Sides]) -> Figure | None:
    """Times of other libraries over those of ddjax, a group for each comparison; None without one."""
    rows: dict[tuple[str, str], tuple[str, str, list[float]]] = {}
    for sides in beside:
        batch = f"batch {sides[0]['batch']}" if sides[0].get("batch") else None
        title = ", ".join(filter(None, [sides[0]["title"], batch, sides[0].get("network")]))
        for record in speed.peers(sides):
            look = record["library"] + ("" if record["correct"] else ", worse")
            ratios = [record[f"speedup{end}"] for end in ("", "_low", "_high")]
            # The first is the best way to use the library.
            rows.setdefault((title, record["library"]), (title, look, ratios))
    return _figures.dots(list(rows.values()), _LOOKS, "time divided by that of ddjax", xscale="log")


def growth_figure(grown: Sequence[Sides]) -> Figure | None:
    """Time against size, a panel for each kind of size, with the expected growth; None without a curve."""
    curves: dict[str, dict[str, list[Record]]] = {}
    for record in sorted(itertools.chain(*grown), key=lambda record: record["size"]):
        curve = record.get("curve") or ""
        names = filter(None, [record.get("space"), speed.WORKS.get(curve, curve), record.get("network")])
        curves.setdefault(speed.GROWTH[record["work"]], {}).setdefault(", ".join(names), []).append(record)
    panels = {
        axis: list(itertools.chain(*map(_curve, found, found.values(), itertools.cycle(LOOKS))))
        for axis, found in curves.items()
    }
    return _figures.lines(panels, "size", "ms", xscale="log", yscale="log")


def _curve(name: str, points: Sequence[Record], look: Look) -> tuple[Series, Series]:
    """Times of whole calls by size, and the expected growth through their middle."""
    sizes = np.array([point["size"] for point in points], float)
    ends = ("", "_low", "_high")
    times = np.array([[1e3 * point[f"seconds{end}"] * point["units"] for point in points] for end in ends])
    growth = _ORDERS[points[0].get("order", "n")](sizes)
    if len(points) > 1:
        name += f", exponent {np.polyfit(np.log(sizes), np.log(times[0]), 1)[0]:.2f}"
    expected = Series("", sizes, growth * np.median(times[0] / growth), {"color": look["color"], "linestyle": ":"})
    return Series(name, sizes, times, look), expected
