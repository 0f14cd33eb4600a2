"""The page of the benchmark, of `launch.benchmark`. All that it measures is time, so there is no `table.csv`."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddjax import figures
from ddjax.figures.benchmark import order
from ddjax.report import page, speed
from ddjax.report.page import Row, listed, number

HEADING = "Speed"

Record = Mapping[str, Any]
_COLUMNS = {
    "measure", *speed.WHERE, "side", "base", "unit", "units", "repetitions", "seconds", "seconds_low", "seconds_high",
    "first_seconds", "speedup", "speedup_low", "speedup_high", "peak_bytes", "program_bytes", "success", "success_same",
    "mean_distance", "mean_distance_same", "norm", "gradients", "flops", "gflops", "matmul_share", "note", "curve",
    "size", "order",
}  # fmt: skip


def sections(records: Sequence[Record], config: Mapping[str, Any], workdir: Path) -> list[str]:
    """Writes the figures; the arguments and the result are those of `sweep.sections`."""
    comparisons = speed.comparisons(records)
    written = [page.section("Summary", page.paragraph(conclude(records)))]
    machine = page.pairs(_machine(records)) + "".join(page.note(sentence) for sentence in _absent(records))
    written.append(page.section("Machine", machine))
    beside = {key: found for key, found in comparisons.items() if speed.is_beside(key, found)}
    drawn = {"speedups": (figures.speedups(_bars(beside)), _SPEEDUPS_CAPTION)}
    drawn["growth"] = (figures.growth(_panels(comparisons)), _GROWTH_CAPTION)
    written.append(page.section("Figures", page.show_figures(drawn, workdir)))
    if beside:
        body = page.grid(*_compact(beside, speed.broken(records))) + page.note(_COMPACT_NOTE)
        written.append(page.section("Beside other libraries", body))
    for network in dict.fromkeys(speed.field(key, "network") for key in beside):
        of_network = {key: found for key, found in beside.items() if speed.field(key, "network") == network}
        body = page.grid(*_details(of_network)) + page.note(_DETAILS_NOTE)
        written.append(page.section(f"Details: {network}" if network else "Details", body))
    grown = {key: found for key, found in comparisons.items() if speed.field(key, "work") in speed.AXES}
    if grown:
        written.append(page.section("Growth", page.grid(*_growth(grown)) + page.note(_GROWTH_NOTE)))
    inside = {key: found for key, found in comparisons.items() if key not in beside and key not in grown}
    if inside:
        written.append(page.section("Inside ddjax", page.grid(*_details(inside)) + page.note(_INSIDE_NOTE)))
    return written


def readme_table(records: Sequence[Record], config: Mapping[str, Any]) -> str:
    """The comparison with other libraries as a Markdown table; where there is none, what the run has instead."""
    comparisons = speed.comparisons(records)
    beside = {key: found for key, found in comparisons.items() if speed.is_beside(key, found)}
    grown = {key: found for key, found in comparisons.items() if speed.field(key, "work") in speed.AXES}
    if beside or not comparisons:
        return page.markdown(*_compact(beside, speed.broken(records)))
    return page.markdown(*(_growth(grown) if grown else _details(comparisons)))


_SPEEDUPS_CAPTION = (
    "Time of other libraries divided by that of ddjax, for the same work: the median over turns, and from the lowest "
    "to the highest turn the line. Of several ways to do it in one library, the fastest that does as much."
)
_GROWTH_CAPTION = "Time of a whole call against the size of the work; dotted, the growth that is expected."
_COMPACT_NOTE = (
    "Time for one unit by ddjax, and how many times as long others take. The best is the fastest that does as much: "
    "succeeds as often within two percentage points, at a mean distance at most five percent larger, with the same "
    "values. A star marks those that do not."
)
_DETAILS_NOTE = (
    "Medians over turns; brackets: lowest and highest turn. Ratios are of the turn's own times. Success and "
    "distance are judged by the same classifier; in parentheses, those of ddjax on the examples that a peer was given, "
    "where they are fewer. The first call may compile. Memory: what a call takes beyond what is resident before it, "
    "and, of ddjax, what the compiled program takes. The share is of the machine's rate of matrix products."
)
_INSIDE_NOTE = "ddjax beside itself: the choices that it makes, and what they save."
_GROWTH_NOTE = (
    "Times are of a whole call, in milliseconds. The exponent is that of a power law through the points; the deviation "
    "is the largest from the expected growth, relative to it."
)


def _ratio(record: Record) -> str:
    return f"{number(record['speedup'])}x"


def _ratio_and_range(record: Record) -> str:
    return f"{_ratio(record)}\n{number(record['speedup_low'])} to {number(record['speedup_high'])}"


def _megabytes(count: int | float | None) -> str:
    return "" if count is None else f"{number(count / 2**20)} MB"


def _compact(
    comparisons: Mapping[speed.Comparison, Mapping[str, Record]], broken: Mapping[speed.Comparison, Mapping[str, str]]
) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the short table, a line a work and batch."""
    networks = {speed.field(key, "network") for key in comparisons}
    several = len(networks) > 1
    header = [*(["network"] if several else []), "work", "batch", "ddjax", "best peer", "others"]
    cells = []
    for key, sides in comparisons.items():
        ours, peers = sides["ddjax"], speed.peers(sides)
        best = peers[0] if peers and speed.is_correct(peers[0], ours) else None
        others = [
            f"{speed.side_name(peer['side'])} {_ratio(peer)}{'' if speed.is_correct(peer, ours) else '*'}"
            for peer in peers
            if peer is not best
        ]
        others += [f"{speed.side_name(side)} broken" for side in broken.get(key, {}) if side not in sides]
        batch = speed.field(key, "batch")
        cells.append(
            [
                *([str(speed.field(key, "network") or "")] if several else []),
                speed.title(key),
                "" if batch is None else str(batch),
                f"{speed.duration(ours['seconds'])} per {ours['unit']}",
                "" if best is None else f"{speed.side_name(best['side'])} {_ratio(best)}",
                ", ".join(others),
            ]
        )
    return header, cells


def _details(comparisons: Mapping[speed.Comparison, Mapping[str, Record]]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the long table, a line a side."""
    header = [
        "work", "batch", "side", "time", "times the base", "success", "mean distance", "gradients", "GFLOP/s", "memory",
        "first call", "more",
    ]  # fmt: skip
    cells = []
    for key, sides in comparisons.items():
        for place, record in enumerate(sides.values()):
            # The work stands where it begins.
            batch = speed.field(key, "batch")
            line = [speed.title(key), "" if batch is None else str(batch)] if place == 0 else ["", ""]
            ends = f"{speed.duration(record['seconds_low'])} to {speed.duration(record['seconds_high'])}"
            line += [
                speed.side_name(record["side"]),
                f"{speed.duration(record['seconds'])}\nper {record['unit']}\n{ends}",
            ]
            line.append("" if record["side"] == record.get("base") else _ratio_and_range(record))
            line += [_with_same(record, "success", ".3f"), _with_same(record, "mean_distance", ".4g")]
            if record.get("norm") and record.get("mean_distance") is not None:
                line[-1] += f"\n{record['norm']}"
            line += [number(record.get("gradients")), _rate(record), _memory(record)]
            line += [speed.duration(record.get("first_seconds")), _more(record)]
            cells.append(line)
    # Columns that nobody filled tell nothing.
    kept = [i for i in range(len(header)) if i < 5 or any(line[i] for line in cells)]
    return [header[i] for i in kept], [[line[i] for i in kept] for line in cells]


def _with_same(record: Record, name: str, form: str) -> str:
    """A measurement, and in parentheses that of ddjax on the same examples."""
    if record.get(name) is None:
        return ""
    same = record.get(f"{name}_same")
    return format(record[name], form) + ("" if same is None else f"\n({same:{form}})")


def _rate(record: Record) -> str:
    if record.get("gflops") is None:
        return ""
    share = record.get("matmul_share")
    return number(record["gflops"]) + ("" if share is None else f"\n{100 * share:.0f} %")


def _memory(record: Record) -> str:
    taken, needed = _megabytes(record.get("peak_bytes")), _megabytes(record.get("program_bytes"))
    return f"{taken}\nprogram {needed}" if needed else taken


def _more(record: Record) -> str:
    """The note, and what only this work measures."""
    said = [str(record["note"])] if record.get("note") else []
    for name, value in record.items():
        if name not in _COLUMNS and value is not None:
            said.append(f"{name.replace('_', ' ')} {_plain(value)}")
    return "\n".join(["", *said]) if said else ""


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(part)}" for name, part in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _bars(comparisons: Mapping[speed.Comparison, Mapping[str, Record]]) -> list[Row]:
    """What `figures.speedups` draws: of each library its best side."""
    several = len({speed.field(key, "network") for key in comparisons}) > 1
    bars = []
    for key, sides in comparisons.items():
        batch = speed.field(key, "batch")
        group = speed.title(key) + ("" if batch is None else f", batch {batch}")
        group += f"\n{speed.field(key, 'network')}" if several else ""
        drawn = set()
        for record in speed.peers(sides):
            library = record["side"].partition(",")[0].removeprefix("batched_")
            if library not in drawn:
                drawn.add(library)
                ends = {"low": record["speedup_low"], "high": record["speedup_high"]}
                bar = {"group": group, "library": library, "ratio": record["speedup"], **ends}
                bars.append(bar | {"correct": speed.is_correct(record, sides["ddjax"])})
    return bars


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


def _panels(comparisons: Mapping[speed.Comparison, Mapping[str, Record]]) -> dict[str, list[Row]]:
    """What `figures.growth` draws."""
    grown = {key: sides for key, sides in comparisons.items() if speed.field(key, "work") in speed.AXES}
    several = len({speed.field(key, "network") for key in grown}) > 1
    panels: dict[str, list[Row]] = {}
    for key, sides in grown.items():
        axis = speed.AXES[speed.field(key, "work")]
        for name, points in _curves(sides).items():
            titles = [speed.field(key, "space"), speed.WORKS.get(name, name)]
            titles += [speed.field(key, "network")] if several else []
            ends = {f"{end[1:]}s": [_seconds(point, end) for point in points] for end in ("_low", "_high")}
            curve = {"name": ", ".join(str(title) for title in titles if title), "order": points[0].get("order", "n")}
            curve |= {"sizes": [point["size"] for point in points], **ends}
            panels.setdefault(axis, []).append(curve | {"seconds": [_seconds(point) for point in points]})
    return panels


def _growth(comparisons: Mapping[speed.Comparison, Mapping[str, Record]]) -> tuple[list[str], list[list[str]]]:
    """Header and cells: a line a curve."""
    header = ["work", "curve", "size: ms", "expected", "exponent", "largest deviation", "traces"]
    cells = []
    for key, sides in comparisons.items():
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
            line = [speed.title(key), speed.WORKS.get(name, name), shown, expected, exponent, deviation]
            cells.append([*line, ", ".join(map(str, traces))])
    return header, cells


def _machine(records: Sequence[Record]) -> dict[str, Any]:
    """The machine, and the versions of what ddjax was compared with."""
    machine = next((record for record in records if record.get("measure") == "machine"), {})
    shown = {"cores": machine.get("cores"), "device": machine.get("device", machine.get("device_kind"))}
    for name in ("jax", "torch"):
        rate = machine.get(f"{name}_gflops")
        shown[f"float32 matrix products, {name}"] = None if rate is None else f"{rate:.0f} GFLOP/s"
    for record in records:
        if record.get("measure") == "peer":
            shown[str(speed.LIBRARIES.get(record["side"], record["side"]))] = record.get("version")
    return {name: value for name, value in shown.items() if value is not None}


def _absent(records: Sequence[Record]) -> list[str]:
    """A sentence for each peer that is missing or broken."""
    said, commands = [], set()
    for record in records:
        if record.get("measure") == "peer_missing":
            said.append(f"No comparison with {speed.side_name(record['side'])}: {record.get('error')}.")
            commands |= {record["command"]} if record.get("command") else set()
    said += [f"To compare with all: {command}" for command in sorted(commands)]
    for key, sides in speed.broken(records).items():
        batch = speed.field(key, "batch")
        where = speed.title(key) + ("" if batch is None else f", batch {batch}")
        said += [f"{speed.side_name(side)} is broken for {where}: {error}" for side, error in sides.items()]
    return said


def conclude(records: Sequence[Record]) -> str:
    """Says in a paragraph how ddjax stands beside other libraries.

    Args:
      records: the records of `results.jsonl`.

    Returns:
      Plain text.
    """
    comparisons = speed.comparisons(records)
    beside = {key: sides for key, sides in comparisons.items() if speed.is_beside(key, sides)}
    best: dict[speed.Comparison, Record] = {}
    for key, sides in beside.items():
        correct = [peer for peer in speed.peers(sides) if speed.is_correct(peer, sides["ddjax"])]
        if correct:
            best[key] = correct[0]
    if not comparisons:
        return "Nothing has been measured yet."
    if not best:
        return "No other library was there to compare with, or none did as much."
    ratios = {key: record["speedup"] for key, record in best.items()}
    middle = math.exp(float(np.mean([math.log(ratio) for ratio in ratios.values()])))
    faster = sum(ratio > 1 for ratio in ratios.values())
    ends = [
        f"{number(ratios[key])} ({_in_words(key)}, {speed.side_name(best[key]['side'])})"
        for key in (min(ratios, key=lambda k: ratios[k]), max(ratios, key=lambda k: ratios[k]))
    ]
    said = [
        f"ddjax is faster than the fastest peer that does as much in {faster} of {len(ratios)} comparisons. That peer "
        f"takes {number(middle)} times as long in the geometric mean"
        + (f", from {ends[0]} to {ends[1]} times." if len(ratios) > 1 else ".")
    ]
    slower = [f"{_in_words(key)} ({number(ratio)})" for key, ratio in ratios.items() if ratio <= 1]
    if slower:
        said.append(f"Not faster: {listed(slower)}.")
    return " ".join(said)


def _in_words(key: speed.Comparison) -> str:
    batch = speed.field(key, "batch")
    return speed.title(key) + ("" if batch is None else f", batch {batch}")
