"""The page of `launch.transfer`: adversarial examples that are shown to another network."""

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from ..recipes import published
from . import _figures, _page
from ._figures import BLUE, PUBLISHED, RED, Look, Series
from ._page import Cell, Record, Row, counts, number

HEADING = "Transfer to another network"

# Target network and whether the attack was targeted.
Curve = tuple[str, bool]
_LOOKS: dict[Curve, Look] = {
    ("plain", False): {"color": BLUE, "marker": "o"},
    ("plain", True): {"color": BLUE, "marker": "^", "linestyle": "--"},
    ("distilled", False): {"color": RED, "marker": "o"},
    ("distilled", True): {"color": RED, "marker": "^", "linestyle": "--"},
}
_NETWORKS = {"source": "source", "plain": "plain target", "student": "distilled target"}
# The temperature of the published distilled network.
_PUBLISHED_TEMPERATURE = 100

_CAPTION = (
    "Adversarial examples were made on the source network with confidence κ, and shown to a network that they were not "
    "made on. Untargeted: any wrong class is a success; targeted: the target class is. Bars: 95 % Wilson intervals. "
    "Thin lines with hollow marks: published by Carlini and Wagner 2017, section VIII-D, read off their figures."
)
_NOTE = (
    "Share of the successes on the source network that transfer; only images that both networks classify correctly "
    "count. Below it stand the 95 % Wilson interval, the number of images, their mean L2 distance, and the rate that "
    "Carlini and Wagner 2017 published. All columns are in table.csv."
)


def sections(run: _page.Run) -> list[_page.Section]:
    """The curves, the rates and the networks."""
    return [
        _page.Section(
            "Figure", figures={"transfer": (curves_figure(_measured(run), run.setting("dataset")), _CAPTION)}
        ),
        _page.Section("Rates", table(run), _NOTE),
        _page.Section("Networks", _page.accuracies(run, _NETWORKS)),
    ]


def table(run: _page.Run) -> pd.DataFrame:
    """A row for each confidence, a column for each curve."""
    measured = _measured(run)
    columns: dict[str, Cell] = {"κ": "{:g}".format}
    for curve, found in measured.items():
        columns[_curve_name(curve)] = lambda kappa, found=found: _transferred(found.get(kappa), run.setting("dataset"))
    return _page.table_of(sorted({kappa for found in measured.values() for kappa in found}), columns)


def _transferred(record: Record | None, dataset: str | None) -> str:
    if record is None:
        return ""
    known = _published(record, dataset).get(float(record["kappa"]))
    lines = [counts("transferred")(record), f"L2 {number(record['mean_l2'])}"]
    return "\n".join(lines if known is None else [*lines, f"published {100 * known:.0f} %"])


def files(run: _page.Run) -> dict[str, list[Row]]:
    """All records without their times, with the published rates beside ours."""
    rows = [_page.without_seconds(record) for record in run.records]
    for row in rows:
        known = _published(row, run.setting("dataset")) if row.get("measure") == "transfer" else {}
        if known:
            row["published_rate"] = known.get(float(row["kappa"]))
    return {"table.csv": rows}


def _measured(run: _page.Run) -> dict[Curve, dict[float, Record]]:
    """The records of each curve by ascending kappa, without those that count no image."""
    found: dict[Curve, dict[float, Record]] = {}
    for record in sorted(run.of("transfer"), key=lambda record: float(record["kappa"])):
        if record["n"]:
            found.setdefault((record["target"], bool(record["targeted"])), {})[float(record["kappa"])] = record
    return {curve: found[curve] for curve in _LOOKS if curve in found}


def _published(record: Record, dataset: str | None) -> dict[float, float]:
    """Kappa to published rate, for the curve of a record."""
    if record["target"] == "distilled" and record["temperature"] != _PUBLISHED_TEMPERATURE:
        return {}
    curves = published.TRANSFER.get(dataset or "", {})
    return {float(kappa): rate for kappa, rate in curves.get((record["target"], bool(record["targeted"])), ())}


def _curve_name(curve: Curve) -> str:
    return f"{curve[0]}, {'targeted' if curve[1] else 'untargeted'}"


def curves_figure(measured: Mapping[Curve, Mapping[float, Record]], dataset: str | None) -> Figure | None:
    """Rates against confidence, with the published ones; None if nothing was measured."""
    series = []
    for curve, found in measured.items():
        rates = [[100 * record[name] for record in found.values()] for name in ("rate", "low", "high")]
        series.append(Series(_curve_name(curve), [*found], rates, _LOOKS[curve]))
        known = _published(next(iter(found.values())), dataset)
        look = {**_LOOKS[curve], **PUBLISHED}
        series.append(Series(f"{_curve_name(curve)}, published", [*known], [100 * r for r in known.values()], look))
    xlabel = "confidence κ of the attack on the source network"
    panels = {"Adversarial examples that fool another network": series}
    return _figures.lines(panels, xlabel, "transferred (%)", ylim=(-3, 103))
