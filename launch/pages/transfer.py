"""The page of `launch.transfer`: adversarial examples that are shown to another network."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..recipes import published
from . import _page
from ._page import Record, Row, number
from ._style import BLUE, RED, row_of_axes, styled

HEADING = "Transfer to another network"

# Target network and whether the attack was targeted.
_CURVES = (("plain", False), ("plain", True), ("distilled", False), ("distilled", True))
_NETWORKS = {"source": "source", "plain": "plain target", "student": "distilled target"}
_COLORS = {"plain": BLUE, "distilled": RED}
# The temperature of the published distilled network.
_PUBLISHED_TEMPERATURE = 100

_CAPTION = (
    "Adversarial examples were made on the source network with confidence κ, and shown to a network that they were not "
    "made on. Untargeted: any wrong class is a success; targeted: the target class is. Bands: 95 % Wilson intervals. "
    "Thin lines with hollow marks: published by Carlini and Wagner 2017, section VIII-D, read off their figures."
)
_NOTE = (
    "Share of the successes on the source network that transfer; only images that both networks classify correctly "
    "count. Below it stand the 95 % Wilson interval, the number of images, their mean L2 distance, and the rate that "
    "Carlini and Wagner 2017 published. All columns are in table.csv."
)
_THRESHOLDS_NOTE = (
    "The smallest measured confidence at which at least half, or nine tenths, of the examples transfer, and below it "
    "the smallest published one. Empty: at no confidence."
)


def sections(run: _page.Run) -> list[_page.Section]:
    """The curves, the rates, the thresholds and the networks."""
    return [
        _page.Section("Figure", figures={"transfer": (curves_figure(_curves(run)), _CAPTION)}),
        _page.Section("Rates", table(run), _NOTE),
        _page.Section("Thresholds", _thresholds(run), _THRESHOLDS_NOTE),
        _page.Section("Networks", _page.accuracies(run, _NETWORKS)),
    ]


def table(run: _page.Run) -> _page.Table:
    """A row for each confidence, a column for each curve."""
    measured = _measured(run)
    rows = []
    for kappa in sorted({kappa for found in measured.values() for kappa in found}):
        row = [f"{kappa:g}"]
        for found in measured.values():
            cell = ""
            if kappa in found:
                record = found[kappa]
                cell = _page.rate(record["rate"], record["n"], record["low"], record["high"])
                cell += f"\nL2 {number(record['mean_l2'])}"
                known = _published(record, run.dataset).get(kappa)
                cell += "" if known is None else f"\npublished {100 * known:.0f} %"
            row.append(cell)
        rows.append(row)
    return _page.Table(["κ", *map(_curve_name, measured)], rows)


def files(run: _page.Run) -> dict[str, list[Row]]:
    """All records without their times, with the published rates beside ours."""
    rows = [_page.without_seconds(record) for record in run.records]
    for row in rows:
        known = _published(row, run.dataset) if row.get("measure") == "transfer" else {}
        if known:
            row["published_rate"] = known.get(float(row["kappa"]))
    return {"table.csv": rows}


def _measured(run: _page.Run) -> dict[tuple[str, bool], dict[float, Record]]:
    """The records of each curve by ascending kappa, without those that count no image."""
    found: dict[tuple[str, bool], dict[float, Record]] = {}
    for record in sorted(run.of("transfer"), key=lambda record: float(record["kappa"])):
        if record["n"]:
            found.setdefault((record["target"], bool(record["targeted"])), {})[float(record["kappa"])] = record
    return {curve: found[curve] for curve in _CURVES if curve in found}


def _published(record: Record, dataset: str | None) -> dict[float, float]:
    """Kappa to published rate, for the curve of a record."""
    if record["target"] == "distilled" and record["temperature"] != _PUBLISHED_TEMPERATURE:
        return {}
    curves = published.TRANSFER.get(dataset or "", {})
    return {float(kappa): rate for kappa, rate in curves.get((record["target"], bool(record["targeted"])), ())}


def _curve_name(curve: tuple[str, bool]) -> str:
    return f"{curve[0]}, {'targeted' if curve[1] else 'untargeted'}"


def _curves(run: _page.Run) -> list[Row]:
    """The points of each curve, and of each published one."""
    curves = []
    for (target, targeted), found in _measured(run).items():
        curve: Row = {"target": target, "targeted": targeted, "published": False, "kappas": list(found)}
        for name, field in {"rates": "rate", "lows": "low", "highs": "high"}.items():
            curve[name] = [record[field] for record in found.values()]
        curves.append(curve)
        known = _published(next(iter(found.values())), run.dataset)
        if known:
            curves.append(curve | {"published": True, "kappas": list(known), "rates": list(known.values())})
    return curves


def _thresholds(run: _page.Run) -> _page.Table:
    shares = (0.5, 0.9)
    rows = []
    for curve, found in _measured(run).items():
        ours = {kappa: record["rate"] for kappa, record in found.items()}
        theirs = _published(next(iter(found.values())), run.dataset)
        row = [_curve_name(curve)]
        for share in shares:
            here, there = (_first(rates, share) for rates in (ours, theirs))
            row.append(here + (f"\npublished {there}" if there else ""))
        best = max(ours, key=lambda kappa: ours[kappa])
        rows.append([*row, f"{_page.percent(ours[best])}\nκ = {best:g}"])
    return _page.Table(["curve", *(f"κ for {100 * share:.0f} %" for share in shares), "highest rate"], rows)


def _first(rates: Mapping[float, float], share: float) -> str:
    """The smallest kappa with at least this rate; empty where there is none."""
    found = [kappa for kappa, rate in rates.items() if rate >= share]
    return f"{min(found):g}" if found else ""


@styled()
def curves_figure(curves: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Rates against confidence.

    Args:
      curves: objects with `target` ("plain" or "distilled"), `targeted` and `published` (bool), `kappas` and `rates`;
        measured ones also with `lows` and `highs`, the ends of the intervals.

    Returns:
      The figure; None if nothing was measured.
    """
    if all(curve["published"] for curve in curves):
        return None
    figure = Figure(figsize=(8.6, 4.3), layout="constrained")
    (axes,) = row_of_axes(figure, 1)
    for curve in curves:
        color, targeted, hollow = _COLORS[curve["target"]], curve["targeted"], curve["published"]
        name = _curve_name((curve["target"], targeted))
        axes.plot(
            curve["kappas"], 100 * np.asarray(curve["rates"]), label=f"{name}{', published' if hollow else ''}",
            color=color, linestyle="--" if targeted else "-", linewidth=0.8 if hollow else 2,
            marker="^" if targeted else "o", markersize=3 if hollow else 5,
            markerfacecolor="white" if hollow else color, markeredgewidth=0.8, zorder=2 if hollow else 3,
        )  # fmt: skip
        if not hollow:
            low, high = (100 * np.asarray(curve[end]) for end in ("lows", "highs"))
            axes.fill_between(curve["kappas"], low, high, color=color, alpha=0.13, linewidth=0)
    axes.set(xlabel="confidence κ of the attack on the source network", ylabel="transferred (%)", ylim=(-3, 103))
    axes.set_title("Adversarial examples that fool another network")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), title="target network", alignment="left")
    return figure
