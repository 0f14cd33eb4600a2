"""The page of `launch.evaluate`: attacks against defenses."""

import dataclasses
import re

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from . import _figures, _lights, _page
from ._page import DETECTION, KNOWLEDGE, ZERO_GRADIENTS, Cell, Record, Row, field, number, percent, rate

HEADING = "Attacks against defenses"

_MAX_GALLERY = 8
_MATRIX_CAPTION = (
    "Accuracy in percent: share of the test images that the defended network classifies correctly, or its detector "
    "finds, under attack within the budget. Unaware: the images were made on the bare network. Aware: the same attack "
    "knows the defense. Worst: an image counts only if it withstands all attacks; aware includes the unaware images."
)
_GALLERY_CAPTION = (
    "The first image that each attack broke: clean, adversarial, and as the defended network or its detector's first "
    "squeezer sees it. Random defenses are shown by one draw."
)
_MATRIX_NOTE = "Accuracy under attack, unaware / aware of the defense; intervals stand in the next table."
_ACCURACY = {
    "network": field("network"),
    "defense": field("defense"),
    "attack": lambda record: _page.in_lines(record.get("attack", record["measure"])),
    "knowledge": field("aware", KNOWLEDGE),
    "accuracy": rate("accuracy"),
    "L2": field("mean_l2", number),
    "Linf": field("mean_linf", number),
    "zero gradients": field("zero_gradient_share", percent),
}
_ACCURACY_NOTE = (
    "Accuracy with its 95 % Wilson interval and the number of images. Distances: means over the adversarial images. "
    f"{ZERO_GRADIENTS} All columns are in table.csv."
)
_DETECTORS = {
    "network": field("network"),
    "detector": field("defense"),
    "threshold": field("threshold", "{:.4g}".format),
    "false positives": rate("false_positive"),
    **DETECTION,
}
_DETECTORS_NOTE = (
    "Detected: share of the images that fool the network without its detector, within the budget. AUC: against clean "
    "test images that were not used for the threshold."
)


def sections(run: _page.Run) -> list[_page.Section]:
    """The matrix, accuracies with intervals, signs of masked gradients, detectors and figures."""
    run = _with_titles(run)
    drawn = {"matrix": (_matrix_figure(run), _MATRIX_CAPTION), "gallery": (_gallery(run), _GALLERY_CAPTION)}
    return [
        _page.Section("Matrix", table(run), _MATRIX_NOTE),
        _page.Section("Figures", figures=drawn),
        _page.Section("Accuracy", _page.table_of(run.of("clean", "evaluate", "worst"), _ACCURACY), _ACCURACY_NOTE),
        _lights.section(run.of("light"), "network", "defense"),
        _page.Section("Detectors", _page.table_of(_detections(run), _DETECTORS), _DETECTORS_NOTE),
    ]


def table(run: _page.Run) -> pd.DataFrame:
    """The matrix: an attack a column with both kinds of knowledge, and the lights of masked gradients."""
    run = _with_titles(run)

    def clean(row: Row) -> str:
        return next((rate("accuracy")(record) for record in reversed(run.of("clean")) if _is_of(record, row)), "")

    columns: dict[str, Cell] = {"network": field("network"), "defense": field("defense"), "clean": clean}
    columns |= {title: _both(attack) for attack, title in _short(run).items()} | {"worst": _both("worst")}
    columns["lights"] = lambda row: _lights.row([light for light in run.of("light") if _is_of(light, row)])
    return _page.table_of(_matrix(run), columns)


def files(run: _page.Run) -> dict[str, list[Row]]:
    """The matrix, and all records without their times and files."""
    files = _page.plain_files(run)
    for row in files["table.csv"]:
        row.pop("file", None)
        row.pop("judged", None)
    return {"matrix.csv": _matrix(_with_titles(run)), **files}


def _with_titles(run: _page.Run) -> _page.Run:
    """The run with networks by their titles; by their names in the results where two share a title."""
    titles = {record["network"]: record["title"] for record in run.of("network")}
    titles = {name: title for name, title in titles.items() if list(titles.values()).count(title) == 1}
    network = lambda record: {"network": titles.get(record["network"], record["network"])}
    records = [{**record, **network(record)} if "network" in record else record for record in run.records]
    return dataclasses.replace(run, records=records)


def _short(run: _page.Run) -> dict[str, str]:
    """Attacks to their names; with their settings where two share a name."""
    attacks = list(dict.fromkeys(record["attack"] for record in run.of("evaluate")))
    names = [attack.partition(":")[0] for attack in attacks]
    return {attack: name if names.count(name) == 1 else attack for attack, name in zip(attacks, names, strict=True)}


def _is_of(record: Record, row: Record) -> bool:
    """Whether both are of one network with one defense."""
    return (record["network"], record["defense"]) == (row["network"], row["defense"])


def _matrix(run: _page.Run) -> list[Row]:
    """Accuracies of each defended network: on clean images, under each attack, in the worst case."""
    found: dict[tuple[str, str], Row] = {}
    for record in run.of("clean", "evaluate", "worst"):
        where = {"network": record["network"], "defense": record["defense"]}
        row = found.setdefault((record["network"], record["defense"]), where)
        attack = record.get("attack", record["measure"])
        name = attack if attack == "clean" else f"{attack} {KNOWLEDGE[record['aware']]}"
        # The latest worst case is over the most attacks; it stands behind them.
        row.pop(name, None)
        row[name] = record["accuracy"]
    return list(found.values())


def _both(attack: str) -> Cell:
    """A cell with the accuracy under an attack that does not know the defense, and under one that does."""

    def cell(row: Row) -> str:
        both = [field(f"{attack} {word}", percent)(row) for word in KNOWLEDGE.values()]
        return " / ".join(both) if any(both) else ""

    return cell


def _detections(run: _page.Run) -> list[Row]:
    """The attacks on networks with a detector, with the fields of the detector on clean images."""
    clean = [record for record in run.of("clean") if "threshold" in record]
    return [{**of, **record} for record in run.of("evaluate") for of in clean if _is_of(record, of)]


def without_directory(defense: str) -> str:
    """A defense without the directories of its model's path, as `pixel_defend:epsilon=0.1,model=density`."""
    return re.sub("(?<=model=)[^,]*/", "", defense)


def _gallery(run: _page.Run) -> Figure | None:
    """The first image that each attack broke behind a transform or a detector."""
    clean, rows = run.arrays("images/clean.npz"), []
    for record in run.of("evaluate"):
        shown = run.arrays(record["views"]) if clean and record.get("views") else {}
        if shown:
            attack, defense = record["attack"].partition(":")[0], without_directory(record["defense"])
            images = [clean["images"][int(shown["row"])], shown["adversarial"], shown["defended"]]
            rows.append((f"{attack},\n{KNOWLEDGE[record['aware']]}, {defense}", images))
    return _figures.image_grid(rows[:_MAX_GALLERY], ("clean", "adversarial", "as defended"))


def _matrix_figure(run: _page.Run) -> Figure | None:
    rows, short = _matrix(run), _short(run)
    names = list(dict.fromkeys(name for row in rows for name in row if name not in ("network", "defense")))
    shares = np.array([[row.get(name, np.nan) for name in names] for row in rows], float)
    labels = [f"{row['network']}, {without_directory(row['defense'])}" for row in rows]
    columns = [" ".join(short.get(part, part) for part in name.rsplit(" ", 1)) for name in names]
    return _figures.heat_map(shares, labels, columns, "accuracy (%)")
