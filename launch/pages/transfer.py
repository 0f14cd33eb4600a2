"""The page of `launch.transfer`: adversarial examples that are shown to another network."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..recipes import published
from . import _page
from ._page import Record, Row, number
from ._style import BLUE, RED, row_of_axes, styled

HEADING = "Transfer to another network"

# Target network and whether the attack was targeted.
Curve = tuple[str, bool]
_CURVES: tuple[Curve, ...] = (("plain", False), ("plain", True), ("distilled", False), ("distilled", True))
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
        _page.Section("Figure", figures={"transfer": (curves_figure(_measured(run), run.dataset), _CAPTION)}),
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


def _measured(run: _page.Run) -> dict[Curve, dict[float, Record]]:
    """The records of each curve by ascending kappa, without those that count no image."""
    found: dict[Curve, dict[float, Record]] = {}
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


def _curve_name(curve: Curve) -> str:
    return f"{curve[0]}, {'targeted' if curve[1] else 'untargeted'}"


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
def curves_figure(measured: Mapping[Curve, Mapping[float, Record]], dataset: str | None) -> Figure | None:
    """Rates against confidence, with the published ones; None if nothing was measured."""
    if not measured:
        return None
    figure = Figure(figsize=(8.6, 4.3), layout="constrained")
    (axes,) = row_of_axes(figure, 1)
    for curve, found in measured.items():
        color, dashed = _COLORS[curve[0]], curve[1]
        looks: dict[str, Any] = {"color": color, "linestyle": "--" if dashed else "-", "marker": "^" if dashed else "o"}
        rates, low, high = (100 * np.array([r[name] for r in found.values()]) for name in ("rate", "low", "high"))
        axes.plot([*found], rates, label=_curve_name(curve), linewidth=2, markersize=5, zorder=3, **looks)
        axes.fill_between([*found], low, high, color=color, alpha=0.13, linewidth=0)
        known = _published(next(iter(found.values())), dataset)
        if known:
            axes.plot(
                [*known], 100 * np.array([*known.values()]), label=f"{_curve_name(curve)}, published", linewidth=0.8,
                markersize=3, markerfacecolor="white", markeredgewidth=0.8, zorder=2, **looks,
            )  # fmt: skip
    axes.set(xlabel="confidence κ of the attack on the source network", ylabel="transferred (%)", ylim=(-3, 103))
    axes.set_title("Adversarial examples that fool another network")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), title="target network", alignment="left")
    return figure
