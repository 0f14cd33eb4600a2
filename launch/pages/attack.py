"""The page of `launch.attack`: attacks on one network."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from . import _figures, _page
from ._figures import BLUE, GREEN, Series
from ._page import CASES, CASES_NOTE, COSTS, COSTS_NOTE, Cell, Record, Row, counts, field, number, percent

HEADING = "Attacks on one network"

# Prefix of the fields to the name of the distance.
_NORMS = {"l0_pixels": "L0, pixels", "l0_values": "L0, values", "l1": "L1", "l2": "L2", "linf": "Linf"}
_TARGETS = {
    "none": "untargeted",
    "all": "all targets",
    "random": "a random target",
    "next": "the next class",
    "least_likely": "the least likely class",
}
_NOTE = (
    "Success: share of the attempts on correctly classified images, with its 95 % Wilson interval. Claimed: success as "
    "an attack judges it that sees the classifier in a lower precision. Distances: mean, median and largest over the "
    "successes. Means of attacks that reach different shares of the images cannot be compared. "
    f"{COSTS_NOTE} All columns but seconds are in table.csv."
)
_CASES_NOTE = (
    f"Every other class was a target of each image. {CASES_NOTE} Misclassified images count, too, as in Carlini and "
    "Wagner 2017. Distances: means over the case's successes."
)
_PROOFS = {
    "norm": field("norm", _NORMS),
    "method": field("method"),
    "images": field("n"),
    "proved": counts("proved"),
    "mean proved": field("mean_proved", number),
    "median proved": field("median_proved", number),
    "attacked": counts("attacked"),
    "mean attacked": field("mean_attacked", number),
    "violations": field("violations"),
    "seconds": field("seconds_per_example", number),
}
_PROOFS_NOTE = (
    "Proved: images with a positive distance within which no adversarial example exists. Mean and median are over all "
    "correctly classified images; an image without a proof counts as 0. Attacked: images on which an attack of this "
    "page succeeded, and the mean distance of the nearest success. Violations: images whose nearest success is nearer "
    "than the proof; any number but 0 means that the proofs or the attacks are wrong."
)
_PROOFS_CAPTION = "Each image, in the order of the proofs. There is no mark where nothing was proved or found."
_GALLERY_CAPTION = (
    "The first correctly classified image of each class (row), and what the attack made of it, in the column of its "
    "target or of the class that it reached. Solid green: success. Dashed red: target not reached. On the diagonal: "
    "clean images."
)


def sections(run: _page.Run) -> list[_page.Section]:
    """Attacks, cases over targets, proofs, and examples."""
    proofs = {record["norm"]: record for record in run.of("certify")}
    drawn = {f"certify_{norm}": (_proofs_figure(run, norm), _PROOFS_CAPTION) for norm in proofs}
    return [
        _page.Section("Attacks", table(run), _NOTE),
        _page.Section("Best, average and worst case", _cases(run), _CASES_NOTE),
        _page.Section("Certified distances", _page.table_of(proofs.values(), _PROOFS), _PROOFS_NOTE, drawn),
        _page.Section("Examples", figures=_gallery(run)),
    ]


def table(run: _page.Run) -> pd.DataFrame:
    """A row for each attack."""
    attacks, norms = run.of("attack"), dict(_NORMS)
    if not any("success_8_bits" in record for record in attacks):
        # Inputs that are no images have no pixels.
        del norms["l0_pixels"]
    elif all(record.get("l0_values_mean") == record.get("l0_pixels_mean") for record in attacks):
        # Where a pixel is one value, the two counts are the same.
        del norms["l0_values"]
    columns = {
        "attack": field("attack", _page.in_lines),
        "targets": field("targets", _TARGETS),
        "success": counts("successes"),
        "after 8-bit rounding": lambda record: (
            percent(record["success_8_bits"]) if record["n"] and "success_8_bits" in record else ""
        ),
        "claimed": _claimed,
        **{title: _distances(norm) for norm, title in norms.items()},
        **COSTS,
    }
    return _page.table_of(attacks, columns)


def _claimed(record: Record) -> str:
    lower = record["n"] and record.get("forward", "float32") != "float32"
    return f"{percent(record['claimed'])}\n{record['forward']}" if lower else ""


def _distances(norm: str) -> Cell:
    def cell(record: Record) -> str:
        mean, median, worst = (field(f"{norm}_{name}", number)(record) for name in ("mean", "median", "worst"))
        return f"{mean}\nmedian {median}\nworst {worst}" if mean else ""

    return cell


def _cases(run: _page.Run) -> pd.DataFrame:
    """A row for each case of each attack on all targets."""
    rows: list[Row] = []
    for record in run.of("attack"):
        if record.get("best_n"):
            for case in CASES:
                of_case = [name for name in record if name.startswith(f"{case}_")]
                rows.append({name.removeprefix(f"{case}_"): record[name] for name in of_case})
                rows[-1] |= {"case": case, "attack": record["attack"]}
    columns = {"attack": field("attack"), "case": field("case"), "success": counts("successes")}
    columns |= {_NORMS[norm]: field(norm, number) for norm in ("l0_pixels", "l0_values", "l2", "linf")}
    return _page.table_of(rows, columns)


def _proofs_figure(run: _page.Run, norm: str) -> Figure | None:
    """The distances of each image; None without saved arrays, or where nothing was proved or found."""
    arrays = run.arrays(f"images/certify_{norm}.npz")
    if not arrays:
        return None
    # At distance zero an image is misclassified without an attack, and there is nothing to show.
    shown = np.flatnonzero(arrays["attacked"] > 0)
    shown = shown[np.lexsort((arrays["attacked"][shown], arrays["proved"][shown]))]
    series = []
    for name, color in {"proved": BLUE, "attacked": GREEN}.items():
        distances = arrays[name][shown]
        heights = np.where((distances > 0) & np.isfinite(distances), distances, np.nan)
        look = {"color": color, "marker": "o", "linestyle": "none"}
        series.append(Series(name, np.arange(1, len(shown) + 1), heights, look))
    panels = {"Distance of the nearest adversarial example": series}
    return _figures.lines(panels, "image", f"{_NORMS.get(norm, norm)} distance", yscale="log")


def _gallery(run: _page.Run) -> dict[str, tuple[Figure | None, str]]:
    """A figure of examples for each attack."""
    clean, drawn = run.arrays("images/clean.npz"), {}
    for record in run.of("attack"):
        title = f"{record['attack']}, {_TARGETS.get(record['targets'], record['targets'])}"
        figure = _page.examples(run, clean, run.arrays(record["file"]), title, _GALLERY_CAPTION)
        drawn[f"gallery_{record['file'].rpartition('/')[2].removesuffix('.npz')}"] = figure
    return drawn
