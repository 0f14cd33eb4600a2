"""The page of `launch.carlini`: Carlini and Wagner's comparison of attacks with and without distillation."""

import functools
import itertools
from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from ..recipes import published
from . import _figures, _page
from ._figures import BLUE, PUBLISHED, RED, Look
from ._page import CASES, CASES_NOTE, COSTS, COSTS_NOTE, Cell, Record, Row, counts, field, number, percent

HEADING = "Attacks with and without distillation"

# The attacks in the order of the paper's table, and their names.
_ATTACKS = {
    "carlini_wagner_l0": "C&W L0", "jsma_z": "JSMA-Z", "jsma_f": "JSMA-F", "carlini_wagner_l2": "C&W L2",
    "deepfool": "DeepFool", "carlini_wagner_linf": "C&W Linf", "fgsm": "FGSM", "bim": "iterative FGSM",
}  # fmt: skip
_STRONG = ("carlini_wagner_l0", "carlini_wagner_l2", "carlini_wagner_linf")
_NORMS = {"l0_pixels": "L0, pixels", "l0_values": "L0, values", "l2": "L2", "linf": "Linf"}
_NETWORKS = {"baseline": "undistilled", "student": "distilled", "model": "your network"}
# The temperature of the published distilled networks.
_PUBLISHED_TEMPERATURE = 100
_LOOKS: dict[str, Look] = {
    "undistilled": {"color": BLUE, "marker": "o"},
    "undistilled, published": {"color": BLUE, "marker": "D", **PUBLISHED},
    "your network": {"color": BLUE, "marker": "o"},
    "distilled": {"color": RED, "marker": "s"},
    "distilled, published": {"color": RED, "marker": "D", **PUBLISHED},
}
_attack, _norm = field("attack", _ATTACKS), field("norm", _NORMS)

_DISTANCES_NOTE = (
    f"Mean distance over the successes; the share of successes follows where it is below 100 %. {CASES_NOTE} DeepFool "
    "is not targeted and has the best case only. Ratio: average distance on the distilled network over that on the "
    "undistilled one, for attacks that are made to succeed on both. Published: Tables IV and VI of Carlini and Wagner "
    "2017 (arXiv 1608.04644), in the same units."
)
_SUCCESS = {
    "attack": _attack,
    "network": field("network", _NETWORKS),
    "targeted": field("targeted", {True: "yes", False: "no"}),
    "images": field("images"),
    **{f"{case} case": counts(f"{case}_successes", f"{case}_n") for case in CASES},
    "after 8-bit rounding": field("success_8_bits", percent),
    **COSTS,
}
_SUCCESS_NOTE = f"Success with its 95 % Wilson interval and the number of attempts. {COSTS_NOTE}"
_COMPARISON_CAPTION = (
    "Mean distance of each attack's successes, from best to worst case; the mark is the average case, or the only one. "
    "A larger distance means a network that is harder to attack only if the attack succeeds as often: compare the "
    "table of successes. Hollow: published by Carlini and Wagner 2017, Tables IV and VI."
)
_GRID_CAPTION = (
    "The first correctly classified image of each source class (row), turned into each target class (column). Solid "
    "green: target reached. Dashed red: not reached."
)


def sections(run: _page.Run) -> list[_page.Section]:
    """Distances, successes, figures, networks and examples."""
    pairs = _pairs(run)
    successes = _page.table_of([record for pair in pairs for record in pair.values()], _SUCCESS)
    clean, grids = run.arrays("images/clean.npz"), {}
    for attack, (network, name) in itertools.product(_STRONG, _attacked(run).items()):
        attempts = run.arrays(f"images/{network}_{attack}.npz")
        title = f"{_ATTACKS[attack]}, {name} network"
        grids[f"grid_{network}_{attack}"] = _page.examples(run, clean, attempts, title, _GRID_CAPTION)
    comparison = (comparison_figure(pairs, run.setting("dataset")), _COMPARISON_CAPTION)
    return [
        _page.Section("Distances", table(run), _DISTANCES_NOTE),
        _page.Section("Success and costs", successes, _SUCCESS_NOTE),
        _page.Section("Figures", figures={"comparison": comparison}),
        _page.Section("Networks", _page.accuracies(run, _NETWORKS)),
        _page.Section("Examples", figures=grids),
    ]


def table(run: _page.Run) -> pd.DataFrame:
    """The distances, published values below ours."""
    dataset = run.setting("dataset")
    columns: dict[str, Cell] = {"attack": lambda pair: _attack(_any(pair)), "distance": lambda pair: _norm(_any(pair))}
    for case, (network, name) in itertools.product(CASES, _attacked(run).items()):
        columns[f"{case} case, {name}"] = functools.partial(_distance, network, case, dataset)
    if len(_attacked(run)) == 2:
        columns["ratio"] = lambda pair: _ratio(pair, dataset)
    return _page.table_of(_pairs(run), columns)


def files(run: _page.Run) -> dict[str, list[Row]]:
    """All records without their times, with the published values beside ours."""
    files = _page.plain_files(run)
    for row in files["table.csv"]:
        for case, (distance, share) in _published(row, run.setting("dataset")).items():
            row |= {f"{case}_published_distance": distance, f"{case}_published_success": share / 100}
    return files


def _attacked(run: _page.Run) -> dict[str, str]:
    """The networks that were attacked, and their names."""
    found = {record["network"] for record in run.of("carlini")}
    return {network: name for network, name in _NETWORKS.items() if network in found}


def _pairs(run: _page.Run) -> list[dict[str, Record]]:
    """The records of each attack by network, in the order of the paper's table."""
    found: dict[str, dict[str, Record]] = {attack: {} for attack in _ATTACKS}
    for network, record in itertools.product(_NETWORKS, run.of("carlini")):
        if record["network"] == network:
            found.setdefault(record["attack"], {})[network] = record
    return [pair for pair in found.values() if pair]


def _any(pair: Mapping[str, Record]) -> Record:
    return next(iter(pair.values()))


def _published(record: Record, dataset: str | None) -> published.Cases:
    """The published cases that a record can be compared with."""
    if record.get("network") == "student" and record.get("temperature") != _PUBLISHED_TEMPERATURE:
        return {}
    known = published.DISTANCES.get(dataset or "", {}).get(record.get("network", ""), {})
    return known.get(record.get("attack", ""), {})


def _distance(network: str, case: str, dataset: str | None, pair: Mapping[str, Record]) -> str:
    record = pair.get(network, {})
    if not record.get(f"{case}_n"):
        return ""
    lines = [field(f"{case}_distance", number)(record) or "none"]
    if record[f"{case}_successes"] < record[f"{case}_n"]:
        lines.append(percent(record[f"{case}_success"]))
    for distance, share in [known for name, known in _published(record, dataset).items() if name == case]:
        rare = f" at {share:g} %" if share < 100 else ""
        lines.append(f"published {'none' if distance is None else number(distance)}{rare}")
    return "\n".join(lines)


def _ratio(pair: Mapping[str, Record], dataset: str | None) -> str:
    """Average distance, distilled over undistilled, ours and published, for attacks that are made to succeed."""
    ours = [record["average_distance"] for record in pair.values() if record["attack"] in _STRONG]
    if len(ours) < 2 or not all(ours):
        return ""
    known = [_published(record, dataset).get("average") for record in pair.values()]
    theirs = [case.distance for case in known if case and case.distance]
    both = f"\npublished {theirs[1] / theirs[0]:.2f}" if len(theirs) == 2 else ""
    return f"{ours[1] / ours[0]:.2f}{both}"


def comparison_figure(pairs: list[dict[str, Record]], dataset: str | None) -> Figure | None:
    """Distance of each attack on both networks, ours and published; None if no attack succeeded."""
    rows: list[tuple[str, str, list[float | None]]] = []
    for network, record in [item for pair in pairs for item in pair.items()]:
        ours = {case: record.get(f"{case}_distance") for case in CASES}
        theirs = {case: known.distance for case, known in _published(record, dataset).items()}
        for suffix, distances in (("", ours), (", published", theirs)):
            ends = [distance for distance in distances.values() if distance] or [None]
            values = [distances.get("average") or ends[0], ends[0], ends[-1]]
            rows.append((f"{_attack(record)} ({_norm(record)})", f"{_NETWORKS[network]}{suffix}", values))
    return _figures.dots(rows, _LOOKS, "mean distance", xscale="log")
