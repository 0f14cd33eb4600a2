"""The page of the transfer of adversarial examples, of `launch.transfer`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddjax import figures, published
from ddjax.report import page
from ddjax.report.page import Row, listed, number, percent

HEADING = "Transfer to another network"

# Target network and whether the attack was targeted.
_Curve = tuple[str, bool]
_CURVES: tuple[_Curve, ...] = (("plain", False), ("plain", True), ("distilled", False), ("distilled", True))
_NETWORKS = {"source": "source", "plain": "plain target", "student": "distilled target"}
# The temperature of the published distilled network.
_PUBLISHED_TEMPERATURE = 100
_SHARES = {0.5: "half", 0.9: "nine tenths"}

Record = Mapping[str, Any]
_Measured = dict[_Curve, list[Record]]


def sections(records: Sequence[Record], config: Mapping[str, Any], workdir: Path) -> list[str]:
    """Writes `table.csv` and the figure; the arguments and the result are those of `sweep.sections`."""
    dataset = page.dataset(config)
    measured = _measured(records)
    page.write_table([_flat(record, dataset) for record in records], workdir / "table.csv")
    written = [page.section("Summary", page.paragraph(conclude(records, dataset)))]
    caption = _CAPTION + (_PUBLISHED_CAPTION if dataset in published.TRANSFER else "")
    drawn = {"transfer": (figures.transfer_curves(_curves(measured, dataset)), caption)}
    written.append(page.section("Figure", page.show_figures(drawn, workdir)))
    if measured:
        header, cells = _table(measured, dataset, "\n{low:.1f} to {high:.1f}\nn = {n}, L2 {l2}", "\npublished {:.0f} %")
        written.append(page.section("Rates", f"{page.grid(header, cells)}\n{page.note(_NOTE)}"))
    return written


def readme_table(records: Sequence[Record], config: Mapping[str, Any]) -> str:
    """The rates as a Markdown table, with their intervals and the published values."""
    return page.markdown(
        *_table(_measured(records), page.dataset(config), " [{low:.1f}, {high:.1f}]", "; published {:.0f} %")
    )


_CAPTION = (
    "Adversarial examples made on the source network with confidence κ, and how often they fool a network that they "
    "were not made on: any wrong class counts if untargeted, only the target if targeted. Bands: 95 % Wilson intervals."
)
_PUBLISHED_CAPTION = (
    " Thin, with hollow marks: published by Carlini and Wagner 2017, section VIII-D, read off their figures."
)
_NOTE = (
    "Share of the successes on the source network that transfer, counting only images that both networks classify "
    "correctly; below it the 95 % Wilson interval, the number of images, and their mean L2 distance. All columns are "
    "in table.csv."
)


def _measured(records: Sequence[Record]) -> _Measured:
    """The records of each curve by ascending kappa, without those that have nothing to count."""
    found: dict[_Curve, dict[float, Record]] = {}
    for record in records:
        if record.get("measure") == "transfer" and record["n"]:
            curve = (record["target"], bool(record["targeted"]))
            found.setdefault(curve, {})[float(record["kappa"])] = record
    return {curve: [found[curve][kappa] for kappa in sorted(found[curve])] for curve in _CURVES if curve in found}


def _published(found: Sequence[Record], dataset: str | None) -> dict[float, float]:
    """Kappa to published rate, for the curve of these records."""
    first = found[0]
    if first["target"] == "distilled" and first["temperature"] != _PUBLISHED_TEMPERATURE:
        return {}
    points = published.TRANSFER.get(dataset or "", {}).get((first["target"], bool(first["targeted"])), ())
    return {float(kappa): rate for kappa, rate in points}


def _flat(record: Record, dataset: str | None) -> Row:
    """A line of `table.csv`."""
    row = page.without_seconds(record)
    if record.get("measure") == "transfer":
        known = _published([record], dataset)
        if known:
            row["published_rate"] = known.get(float(record["kappa"]))
    return row


def _curve_name(curve: _Curve) -> str:
    return f"{curve[0]}, {'targeted' if curve[1] else 'untargeted'}"


def _curves(measured: _Measured, dataset: str | None) -> list[Row]:
    """What `figures.transfer_curves` draws."""
    curves = []
    for (target, targeted), found in measured.items():
        curve = {"target": target, "targeted": targeted, "published": False}
        fields = {"kappas": "kappa", "rates": "rate", "lows": "low", "highs": "high"}
        curves.append(curve | {name: [record[field] for record in found] for name, field in fields.items()})
        known = _published(found, dataset)
        if known:
            curves.append(curve | {"published": True, "kappas": list(known), "rates": list(known.values())})
    return curves


def _table(
    measured: _Measured, dataset: str | None, interval: str, published_rate: str
) -> tuple[list[str], list[list[str]]]:
    """Header and cells, a line a kappa; what stands behind a rate is formatted by the last two arguments."""
    kappas = sorted({float(record["kappa"]) for found in measured.values() for record in found})
    header = ["κ", *(_curve_name(curve) for curve in measured)]
    cells = []
    for kappa in kappas:
        line = [f"{kappa:g}"]
        for found in measured.values():
            record = next((record for record in found if record["kappa"] == kappa), None)
            if record is None:
                line.append("")
                continue
            ends = {end: 100 * record[end] for end in ("low", "high")}
            cell = percent(record["rate"]) + interval.format(**ends, n=record["n"], l2=number(record["mean_l2"]))
            known = _published(found, dataset).get(kappa)
            line.append(cell if known is None else cell + published_rate.format(100 * known))
        cells.append(line)
    return header, cells


def conclude(records: Sequence[Record], dataset: str | None) -> str:
    """Says in a paragraph which confidence transfers, and what distillation changes about that.

    Args:
      records: the records of `results.jsonl`.
      dataset: the name of the data set, for the published values.

    Returns:
      Plain text.
    """
    measured = _measured(records)
    known = {r["network"]: r for r in records if r.get("measure") == "accuracy"}
    accuracies = [f"{percent(known[name]['accuracy'])} ({title})" for name, title in _NETWORKS.items() if name in known]
    said = [f"Test accuracy: {listed(accuracies)}."] if accuracies else []
    if not measured:
        return " ".join([*said, "No transfer has been measured yet."])
    for curve, found in measured.items():
        rates = {float(record["kappa"]): record["rate"] for record in found}
        reference = _published(found, dataset)
        parts = []
        for share, name in _SHARES.items():
            theirs = _first(reference, share)
            beside = "" if theirs is None else f" (published: {theirs:g})"
            kappa = _first(rates, share)
            where = f"first at κ = {kappa:g}" if kappa is not None else "at no κ measured"
            parts.append(f"{name} transfer {where}{beside}")
        top = max(rates, key=lambda kappa: rates[kappa])
        said.append(
            f"To the {curve[0]} network, {'targeted' if curve[1] else 'untargeted'}: {listed(parts)}; the highest "
            f"rate is {percent(rates[top])}, at κ = {top:g}."
        )
    return " ".join(said + _say_difference(measured))


def _say_difference(measured: _Measured) -> list[str]:
    """What distillation changes about the confidence from which half of the examples transfer."""
    said = []
    for targeted in (False, True):
        if any((target, targeted) not in measured for target in ("plain", "distilled")):
            continue
        plain, distilled = (
            {float(record["kappa"]): record["rate"] for record in measured[target, targeted]}
            for target in ("plain", "distilled")
        )
        common = [kappa for kappa in plain if kappa in distilled]
        before, after = (_first({kappa: rates[kappa] for kappa in common}, 0.5) for rates in (plain, distilled))
        how = "targeted" if targeted else "untargeted"
        if before is None:
            continue
        if after is None:
            said.append(f"Distillation keeps the {how} transfer below one half at every κ up to {max(common):g}.")
        elif after > before:
            said.append(
                f"Distillation does not stop the {how} transfer: half of it takes κ = {after:g} instead of {before:g}."
            )
        else:
            said.append(
                f"Distillation does not hinder the {how} transfer: half of it takes κ = {after:g}, {before:g} without."
            )
    return said


def _first(rates: Mapping[float, float], share: float) -> float | None:
    """The smallest kappa with at least this rate."""
    return min((kappa for kappa, rate in rates.items() if rate >= share), default=None)
