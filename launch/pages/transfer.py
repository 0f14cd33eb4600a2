"""The page of `launch.transfer`: adversarial examples that are shown to another network."""

import pandas as pd
from matplotlib.figure import Figure

from ..recipes import published
from . import _figures, _page
from ._figures import BLUE, PUBLISHED, RED, Look, Series
from ._page import Cell, Record, Row, counts, field, number, stack

HEADING = "Transfer to another network"

_LOOKS: dict[str, Look] = {
    "plain, untargeted": {"color": BLUE, "marker": "o"},
    "plain, targeted": {"color": BLUE, "marker": "^", "linestyle": "--"},
    "distilled, untargeted": {"color": RED, "marker": "o"},
    "distilled, targeted": {"color": RED, "marker": "^", "linestyle": "--"},
    "model, untargeted": {"color": BLUE, "marker": "o"},
    "model, targeted": {"color": BLUE, "marker": "^", "linestyle": "--"},
}
_NETWORKS = {"source": "source", "plain": "plain target", "student": "distilled target", "model": "your network"}
# The temperature of the published distilled network.
_PUBLISHED_TEMPERATURE = 100

_CAPTION = (
    "Adversarial examples were made on the source network with confidence κ, and shown to a network that they were not "
    "made on. Untargeted: any wrong class is a success; targeted: the target class is. Bars: 95 % Wilson intervals. "
    "Thin lines with hollow marks: published by Carlini and Wagner 2017, section VIII-D, read off their figures."
)
_CELL = stack(
    counts("transferred"),
    field("mean_l2", lambda distance: f"L2 {number(distance)}"),
    field("published_rate", lambda share: f"published {100 * share:.0f} %"),
)
_NOTE = (
    "Share of the successes on the source network that transfer; only images that both networks classify correctly "
    "count. Below it stand the 95 % Wilson interval, the number of images, their mean L2 distance, and the rate that "
    "Carlini and Wagner 2017 published. All columns are in table.csv."
)


def sections(run: _page.Run) -> list[_page.Section]:
    """The curves, the rates and the networks."""
    return [
        _page.Section("Figure", figures={"transfer": (curves_figure(run), _CAPTION)}),
        _page.Section("Rates", table(run), _NOTE),
        _page.Section("Networks", _page.accuracies(run, _NETWORKS)),
    ]


def table(run: _page.Run) -> pd.DataFrame:
    """A row for each confidence, a column for each curve."""
    columns: dict[str, Cell] = {"κ": "{:g}".format}
    curves = _curves(run)
    for name, found in curves.items():
        columns[name] = lambda kappa, found=found: _CELL(found.get(kappa, {}))
    return _page.table_of(sorted({kappa for found in curves.values() for kappa in found}), columns)


def files(run: _page.Run) -> dict[str, list[Row]]:
    """All records without their times, with the published rates beside ours."""
    files = _page.plain_files(run)
    for row in files["table.csv"]:
        known = _published(row, run.setting("dataset"))
        if known:
            row["published_rate"] = known.get(float(row["kappa"]))
    return files


def _curves(run: _page.Run) -> dict[str, dict[float, Record]]:
    """The records of each curve by ascending kappa, with the published rates, without those that count no image."""
    found: dict[str, dict[float, Record]] = {name: {} for name in _LOOKS}
    measured = [row for row in files(run)["table.csv"] if row.get("measure") == "transfer" and row["n"]]
    for record in sorted(measured, key=lambda record: float(record["kappa"])):
        name = f"{record['target']}, {'targeted' if record['targeted'] else 'untargeted'}"
        found[name][float(record["kappa"])] = record
    return {name: curve for name, curve in found.items() if curve}


def _published(record: Record, dataset: str | None) -> dict[float, float]:
    """Kappa to published rate, for the curve of a record."""
    if record.get("target") == "distilled" and record["temperature"] != _PUBLISHED_TEMPERATURE:
        return {}
    curve = record.get("target", ""), bool(record.get("targeted"))
    return {float(kappa): rate for kappa, rate in published.TRANSFER.get(dataset or "", {}).get(curve, ())}


def curves_figure(run: _page.Run) -> Figure | None:
    """Rates against confidence, with the published ones; None if nothing was measured."""
    series = []
    for name, found in _curves(run).items():
        rates = [[100 * record[field] for record in found.values()] for field in ("rate", "low", "high")]
        series.append(Series(name, [*found], rates, _LOOKS[name]))
        known = _published(next(iter(found.values())), run.setting("dataset"))
        shares = [100 * share for share in known.values()]
        series.append(Series(f"{name}, published", [*known], shares, {**_LOOKS[name], **PUBLISHED}))
    xlabel = "confidence κ of the attack on the source network"
    panels = {"Adversarial examples that fool another network": series}
    return _figures.lines(panels, xlabel, "transferred (%)", ylim=(-3, 103))
