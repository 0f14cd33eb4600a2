"""The page of `launch.carlini`: Carlini and Wagner's comparison of attacks with and without distillation."""

from collections.abc import Mapping, Sequence

import numpy as np
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
    figure = comparison_figure(_points(measured, run.dataset))
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


def _points(measured: Mapping[str, Mapping[str, Record]], dataset: str | None) -> list[Row]:
    """The rows of `comparison_figure`."""
    points = []
    for attack, found in measured.items():
        for network in (name for name in _NETWORKS if name in found):
            record = found[network]
            row: Row = {"norm": _NORMS.get(record["norm"], record["norm"]), "attack": _name(attack)}
            row["network"] = _NETWORKS[network]
            points.append(row | {"published": False} | {case: record.get(f"{case}_distance") for case in _CASES})
            known = _published(record, dataset)
            if known:
                distances = {case: known[case].distance if case in known else None for case in _CASES}
                points.append(row | {"published": True} | distances)
    return points


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
def comparison_figure(rows: Sequence[Row]) -> Figure | None:
    """Distance of each attack on both networks, a panel for each norm.

    Args:
      rows: objects with `norm` (the panel's title), `attack`, `network` ("undistilled" or "distilled"), `published`
        (bool) and the distances `best`, `average` and `worst`, None where there is none.

    Returns:
      The figure; None if nothing was measured.
    """
    rows = [row for row in rows if any(row[case] for case in _CASES)]
    if all(row["published"] for row in rows):
        return None
    panels = {norm: [row for row in rows if row["norm"] == norm] for norm in dict.fromkeys(row["norm"] for row in rows)}
    attacks = {norm: list(dict.fromkeys(row["attack"] for row in found)) for norm, found in panels.items()}
    heights = [len(names) for names in attacks.values()]
    figure = Figure(figsize=(7.6, 0.72 * sum(heights) + 0.75 * len(panels) + 0.7), layout="constrained")
    grid = figure.subplots(len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": [n + 0.3 for n in heights]})
    for axes, (norm, found) in zip(grid[:, 0], panels.items(), strict=True):
        for row in found:
            offset, color, marker = _LOOKS[row["network"], row["published"]]
            place = attacks[norm].index(row["attack"]) + offset
            ends = [row[case] for case in _CASES if row[case]]
            axes.plot([min(ends), max(ends)], [place, place], color=color, linewidth=1 if row["published"] else 2)
            # An attack with a single case has its mark there.
            signs = {"best": "|" if len(ends) > 1 else marker, "average": marker, "worst": "|"}
            for case, sign in signs.items():
                if row[case]:
                    face = "white" if row["published"] else color
                    axes.plot(row[case], place, sign, color=color, markerfacecolor=face, markersize=6.5)
        axes.set_xscale("log")
        _style.label_log_axis(axes.xaxis)
        axes.grid(axis="x")
        axes.grid(visible=False, axis="y")
        axes.set_yticks(range(len(attacks[norm])), attacks[norm])
        axes.set(ylim=(len(attacks[norm]) - 0.5, -0.5), title=norm)
        axes.tick_params(axis="y", length=0)
    present = {(row["network"], row["published"]) for row in rows}
    handles = [
        Line2D([], [], color=color, marker=marker, markerfacecolor="white" if hollow else color,
               linewidth=1 if hollow else 2, label=f"{network}{', published' if hollow else ''}")
        for (network, hollow), (_, color, marker) in _LOOKS.items() if (network, hollow) in present
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure
