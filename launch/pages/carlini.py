"""The page of `launch.carlini`: Carlini and Wagner's comparison of attacks with and without distillation."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..recipes import published
from . import _page, _style
from ._page import Record, Row, number, percent
from ._style import BLUE, RED, styled

HEADING = "Attacks with and without distillation"

# The attacks in the order of the paper's table, and their names.
_ATTACKS = {
    "carlini_wagner_l0": "C&W L0",
    "jsma_z": "JSMA-Z",
    "jsma_f": "JSMA-F",
    "carlini_wagner_l2": "C&W L2",
    "deepfool": "DeepFool",
    "carlini_wagner_linf": "C&W Linf",
    "fgsm": "FGSM",
    "bim": "iterative FGSM",
}
_STRONG = ("carlini_wagner_l0", "carlini_wagner_l2", "carlini_wagner_linf")
_NORMS = {"l0_pixels": "L0, pixels", "l2": "L2", "linf": "Linf"}
_NETWORKS = {"baseline": "undistilled", "student": "distilled"}
_CASES = ("best", "average", "worst")
# The temperature of the published distilled networks.
_PUBLISHED_TEMPERATURE = 100
_MAX_CLASSES = 10
# Series of the figure: (network, published or not) to offset from the attack's line, color and marker.
_LOOKS = {
    ("undistilled", False): (-0.27, BLUE, "o"),
    ("undistilled", True): (-0.10, BLUE, "D"),
    ("distilled", False): (0.10, RED, "s"),
    ("distilled", True): (0.27, RED, "D"),
}

_DISTANCES_NOTE = (
    "Mean distance over the successes; the share of successes follows where it is below 100 %. Best case: the nearest "
    "target of an image. Average case: all its targets. Worst case: the farthest target; it is a success only if all "
    "targets were reached. DeepFool is not targeted and has the best case only. Ratio: average distance on the "
    "distilled network over that on the undistilled one, for attacks that are made to succeed on both. Published: "
    "Tables IV and VI of Carlini and Wagner 2017 (arXiv 1608.04644), in the same units."
)
_SUCCESS_NOTE = (
    "Success with its 95 % Wilson interval and the number of attempts. After 8-bit rounding: success with pixels "
    "rounded to the values that an image file can hold. Steps, gradients and seconds: mean for one attempt. An attack "
    "may fail for want of a gradient; its failure is no sign of robustness where another attack succeeds."
)
_COMPARISON_CAPTION = (
    "Mean distance of each attack's successes, from best to worst case; the mark is the average case, or the only one. "
    "A larger distance means a network that is harder to attack only if the attack succeeds as often: compare the "
    "table of successes. Thin with a hollow mark: published by Carlini and Wagner 2017, Tables IV and VI."
)
_GRID_CAPTION = "The first image of each source class (row), turned into each target class (column)."


def sections(run: _page.Run) -> list[_page.Section]:
    """Distances, successes, figures, networks and missing measurements."""
    measured = _measured(run)
    figure = comparison_figure(measured, run.dataset)
    lacking = [[_name(attack), name] for attack, found in measured.items() for key, name in _NETWORKS.items()
               if key not in found]  # fmt: skip
    return [
        _page.Section("Distances", table(run), _DISTANCES_NOTE),
        _page.Section("Success and costs", _success_table(measured), _SUCCESS_NOTE),
        _page.Section("Missing measurements", _page.Table(["attack", "network"], lacking, words=True)),
        _page.Section("Figures", figures={"comparison": (figure, _COMPARISON_CAPTION)}),
        _page.Section("Networks", _page.accuracies(run, _NETWORKS)),
        _page.Section("Examples", figures=_grids(run, measured)),
    ]


def table(run: _page.Run) -> _page.Table:
    """The distances, published values below ours."""
    header = ["attack", "distance", *(list(_NETWORKS.values()) * len(_CASES)), "ratio"]
    rows = []
    for attack, found in _measured(run).items():
        norm = next(iter(found.values()))["norm"]
        row = [_name(attack), _NORMS.get(norm, norm)]
        row += [_cell(found.get(network), case, run.dataset) for case in _CASES for network in _NETWORKS]
        rows.append([*row, _ratio(found, run.dataset)])
    return _page.Table(header, rows, [("", 2), *((f"{case} case", 2) for case in _CASES), ("", 1)])


def files(run: _page.Run) -> dict[str, list[Row]]:
    """All records without their times, with the published values beside ours."""
    rows = [_page.without_seconds(record) for record in run.records]
    for row in rows:
        if row.get("measure") == "carlini":
            for case, (distance, share) in _published(row, run.dataset).items():
                row |= {f"{case}_published_distance": distance, f"{case}_published_success": share / 100}
    return {"table.csv": rows}


def _measured(run: _page.Run) -> dict[str, dict[str, Record]]:
    """Attack to network to record, in the order of the paper's table."""
    found: dict[str, dict[str, Record]] = {}
    for record in run.of("carlini"):
        found.setdefault(record["attack"], {})[record["network"]] = record
    return {name: found[name] for name in sorted(found, key=lambda name: [*_ATTACKS, *found].index(name))}


def _published(record: Record, dataset: str | None) -> published.Cases:
    """The published cases that a record can be compared with."""
    if record["network"] == "student" and record["temperature"] != _PUBLISHED_TEMPERATURE:
        return {}
    return published.DISTANCES.get(dataset or "", {}).get(record["network"], {}).get(record["attack"], {})


def _name(attack: str) -> str:
    return _ATTACKS.get(attack, attack)


def _cell(record: Record | None, case: str, dataset: str | None) -> str:
    if record is None or not record.get(f"{case}_n"):
        return ""
    cell = number(record[f"{case}_distance"]) or "none"
    if record[f"{case}_successes"] < record[f"{case}_n"]:
        cell += f"\n{percent(record[f'{case}_success'])}"
    known = _published(record, dataset).get(case)
    if known is not None:
        share = f" at {known.percent:g} %" if known.percent < 100 else ""
        cell += f"\npublished {number(known.distance) or 'none'}{share}"
    return cell


def _ratio(found: Mapping[str, Record], dataset: str | None) -> str:
    """Average distance, distilled over undistilled, ours and published, for attacks that are made to succeed."""
    pair = [found[network] for network in _NETWORKS if network in found and found[network]["attack"] in _STRONG]
    ours = [record["average_distance"] for record in pair]
    if len(pair) < 2 or not all(ours):
        return ""
    known = [_published(record, dataset).get("average") for record in pair]
    theirs = [case.distance for case in known if case is not None and case.distance]
    return f"{ours[1] / ours[0]:.2f}" + (f"\npublished {theirs[1] / theirs[0]:.2f}" if len(theirs) == 2 else "")


def _success_table(measured: Mapping[str, Mapping[str, Record]]) -> _page.Table:
    header = ["attack", "network", "targeted", "images", *(f"{case} case" for case in _CASES), "after 8-bit rounding"]
    rows = []
    for attack, found in measured.items():
        for network in (name for name in _NETWORKS if name in found):
            record = found[network]
            row = [_name(attack), _NETWORKS[network], "yes" if record["targeted"] else "no", str(record["images"])]
            row += [_page.count_rate(record, f"{case}_successes", f"{case}_n") for case in _CASES]
            row.append(percent(record.get("success_8_bits")))
            row.append(percent(record.get("zero_gradient_share")))
            names = ("mean_steps", "mean_gradients", "seconds_per_example")
            rows.append(row + [number(record.get(name)) for name in names])
    header += ["zero gradients", "steps", "gradients", "seconds"]
    return _page.Table(header, rows).without_empty_columns(len(header) - 4)


def _grids(run: _page.Run, measured: Mapping[str, Mapping[str, Record]]) -> dict[str, _page.Picture]:
    """Grids of source and target classes for the strong attacks on both networks."""
    clean, drawn = run.arrays("images/clean.npz"), {}
    for attack in _STRONG:
        for network, name in _NETWORKS.items():
            arrays, figure = run.arrays(f"images/{network}_{attack}.npz"), None
            if clean and "targets" in arrays and network in measured.get(attack, {}):
                figure = _grid(clean, arrays, run.class_names, f"{_name(attack)}, {name} network")
            drawn[f"grid_{network}_{attack}"] = (figure, _GRID_CAPTION)
    return drawn


def _grid(
    clean: Mapping[str, np.ndarray], arrays: Mapping[str, np.ndarray], class_names: Sequence[str], title: str
) -> Figure | None:
    rows, targets = arrays["rows"], arrays["targets"]
    classes = min(max(int(clean["labels"].max()), int(targets.max(initial=0))) + 1, _MAX_CLASSES)
    images = np.zeros((classes, classes, *clean["images"].shape[1:]), np.float32)
    reached, shown = np.zeros((2, classes, classes), bool)
    for source in range(classes):
        attacked = rows[clean["labels"][rows] == source]
        if not len(attacked):
            continue
        row = attacked.min()
        images[source, source], shown[source, source] = clean["images"][row] / 255, True
        for attempt in np.flatnonzero(rows == row):
            target = int(targets[attempt])
            if target < classes:
                images[source, target], shown[source, target] = arrays["images"][attempt], True
                reached[source, target] = arrays["success"][attempt]
    return _style.class_grid(images, reached, shown, class_names, title)


@styled()
def comparison_figure(measured: Mapping[str, Mapping[str, Record]], dataset: str | None) -> Figure | None:
    """Distance of each attack on both networks, a panel for each norm; None if no attack succeeded."""
    panels: dict[str, dict[str, list[tuple[tuple[str, bool], list[float | None]]]]] = {}
    for attack, found in measured.items():
        for network in (name for name in _NETWORKS if name in found):
            record = found[network]
            ours = [record.get(f"{case}_distance") for case in _CASES]
            known = _published(record, dataset)
            theirs = [known[case].distance if case in known else None for case in _CASES]
            panel = panels.setdefault(_NORMS.get(record["norm"], str(record["norm"])), {})
            lines = [((_NETWORKS[network], False), ours), ((_NETWORKS[network], True), theirs)]
            panel.setdefault(_name(attack), []).extend(line for line in lines if any(line[1]))
    every = [line for panel in panels.values() for lines in panel.values() for line in lines]
    present = {look for look, _ in every}
    if all(hollow for _, hollow in present):
        return None
    panels = {norm: {name: lines for name, lines in panel.items() if lines} for norm, panel in panels.items()}
    panels = {norm: panel for norm, panel in panels.items() if panel}
    heights = [len(panel) for panel in panels.values()]
    figure = Figure(figsize=(7.6, 0.72 * sum(heights) + 0.75 * len(panels) + 0.7), layout="constrained")
    grid = figure.subplots(len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": [n + 0.3 for n in heights]})
    for axes, (norm, panel) in zip(grid[:, 0], panels.items(), strict=True):
        for place, lines in enumerate(panel.values()):
            for look, distances in lines:
                _draw_line(axes, place, look, distances)
        axes.set_xscale("log")
        _style.label_log_axis(axes.xaxis)
        axes.grid(axis="x")
        axes.grid(visible=False, axis="y")
        axes.set_yticks(range(len(panel)), map(_style.plain, panel))
        axes.set(ylim=(len(panel) - 0.5, -0.5), title=_style.plain(norm))
        axes.tick_params(axis="y", length=0)
    handles = [
        Line2D([], [], color=color, marker=marker, markerfacecolor="white" if hollow else color,
               linewidth=1 if hollow else 2, label=f"{network}{', published' if hollow else ''}")
        for (network, hollow), (_, color, marker) in _LOOKS.items() if (network, hollow) in present
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _draw_line(axes: Axes, place: int, look: tuple[str, bool], distances: Sequence[float | None]) -> None:
    """A line from the best to the worst case, with a mark at the average or the only one."""
    (offset, color, marker), hollow = _LOOKS[look], look[1]
    ends = [distance for distance in distances if distance]
    axes.plot([min(ends), max(ends)], [place + offset] * 2, color=color, linewidth=1 if hollow else 2)
    for distance, sign in zip(distances, ("|" if len(ends) > 1 else marker, marker, "|"), strict=True):
        if distance:
            face = "white" if hollow else color
            axes.plot(distance, place + offset, sign, color=color, markerfacecolor=face, markersize=6.5)
