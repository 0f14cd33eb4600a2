"""The page of `launch.obfuscated`: defenses that rest on hidden gradients."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from ..recipes import published
from . import _lights, _page, _style
from ._page import Row, number, points, rate_of
from ._style import BLUE, GRAY, GREEN, PURPLE, RED, styled

HEADING = "Obfuscated gradients"

_ATTACKERS = ("clean", "unaware", "aware", "transfer")
# Column to color, mark and size of the mark.
_MARKS = {
    "clean": (GRAY, "o", 6),
    "unaware": (GREEN, "o", 6),
    "transfer": (PURPLE, "D", 5),
    "aware": (RED, "o", 6),
    "published": (BLUE, "|", 12),
}

_CAPTION = (
    "Accuracy of each defense on clean images and under each attacker. Unaware: uses the gradient of the deployed "
    "classifier as it is. Aware: knows the defense and attacks through it; includes the unaware attacker's images. "
    "Transfer: a label-only black-box attacker with a substitute network. Published: accuracy under the attack of "
    "Athalye, Carlini and Wagner 2018, at full scale, on the data sets that the table names."
)
_GALLERY_CAPTION = (
    "The first image that the aware attack broke: clean, adversarial, and as the defended network sees it. Random "
    "defenses are shown by one draw."
)
_NOTE = (
    "Accuracy with its 95 % Wilson interval and the number of images. Gap: unaware minus aware, in percentage points. "
    "Published: the data set and the radius stand below the number. Gradient: median L2 norm of the margin's gradient "
    "for the unaware / the aware attacker; zero means that the attacker has nothing to follow. With --quick, networks "
    "are small and images few: compare rows with each other, not with the published numbers. Slow rows have fewer "
    "steps and no lights; there are no lights in L2."
)
_REPARAMETERIZATION_NOTE = (
    "The attack searches the generator's codes for an image that the network misclassifies. Found: share of the "
    "images for which there is one, then its mean L2 distance and how many are within the radius. Still wrong: share "
    "of the found images that fool the classifier with the defense as it is deployed."
)
_DETECTOR_NOTE = "Detected: share of the images that fool the network within the budget. AUC: against clean images."


def sections(run: _page.Run) -> list[_page.Section]:
    """The table, figures, signs of masked gradients, reparameterization and detector."""
    drawn = {
        "accuracy": (accuracy_figure(rows_of(run)), _CAPTION),
        "gallery": (_gallery(run), _GALLERY_CAPTION),
    }
    return [
        _page.Section("Table", table(run), _NOTE),
        _page.Section("Figures", figures=drawn),
        _lights.section(run.of("light"), "row"),
        _page.Section("Reparameterization", _reparameterizations(run), _REPARAMETERIZATION_NOTE),
        _page.Section("Detector", _detections(run), _DETECTOR_NOTE),
    ]


def table(run: _page.Run) -> _page.Table:
    """A row for each defense."""
    rows = []
    for row in rows_of(run):
        threat = f"{row['dataset']}, {row['epsilon']:.3g} {row['norm'].capitalize()}" if "norm" in row else ""
        cells = [row["defense"], threat, *(rate_of(row, name, f"{name}_n") for name in _ATTACKERS)]
        unaware, aware = row.get("unaware"), row.get("aware")
        cells.append(points(None if unaware is None or aware is None else unaware - aware))
        known = published.BROKEN.get(row["defense"])
        cells.append("" if known is None else f"{known.percent:g} %\n{known.dataset}, {known.distance}")
        norms = [number(row.get(name)) for name in ("norm_unaware", "norm_aware")]
        rows.append([*cells, " / ".join(norms) if any(norms) else "", row["lights"]])
    return _page.Table(["defense", "data set, radius", *_ATTACKERS, "gap", "published", "gradient", "lights"], rows)


def rows_of(run: _page.Run) -> list[Row]:
    """A row for each defense: its threat model, and its accuracies with the ends of their intervals."""
    found: dict[str, Row] = {}
    for record in run.records:
        name = record.get("row")
        if name is None:
            continue
        row, measure = found.setdefault(name, {"defense": name}), record["measure"]
        if measure == "network" and "norm" in record:
            row |= {field: record[field] for field in ("dataset", "norm", "epsilon")}
        elif measure in ("clean", "transfer", "worst"):
            column = measure if measure != "worst" else "aware" if record["aware"] else "unaware"
            row |= {f"{column}{end}": record.get(f"accuracy{end}") for end in ("", "_n", "_low", "_high")}
        elif measure == "gradient":
            row |= {field: record[field] for field in ("norm_unaware", "norm_aware")}
    for name, row in found.items():
        if name in published.BROKEN:
            row["published"] = published.BROKEN[name].percent / 100
        row["lights"] = _lights.row([light for light in run.of("light") if light["row"] == name])
    return list(found.values())


def _reparameterizations(run: _page.Run) -> _page.Table:
    rows = [
        [record["row"], rate_of(record, "success", "success_n"), number(record["mean_l2"]), str(record["within"]),
         rate_of(record, "kept", "kept_n")]
        for record in run.of("reparameterization")
    ]  # fmt: skip
    return _page.Table(["defense", "found", "mean L2", "within the radius", "still wrong"], rows)


def _detections(run: _page.Run) -> _page.Table:
    rows = [
        [record["row"], record["attack"], "aware" if record["aware"] else "unaware",
         rate_of(record, "detection", "detection_n"), "" if record.get("auc") is None else f"{record['auc']:.3f}"]
        for record in run.of("attack") if "detection" in record
    ]  # fmt: skip
    return _page.Table(["defense", "attack", "knowledge", "detected", "AUC"], rows)


def _gallery(run: _page.Run) -> Figure | None:
    lines = {}
    for record in run.of("attack"):
        if not record["aware"] or record["row"] in lines:
            continue
        clean, shown = run.arrays(f"images/{record['row']}_clean.npz"), run.arrays(record["file"])
        fresh = (shown["broken"] & ~shown["lost"]).nonzero()[0].tolist() if clean and shown else []
        if fresh:
            first = fresh[0]
            seen = shown["defended"][first] if "defended" in shown else shown["images"][first]
            lines[record["row"]] = [clean["images"][first] / 255, shown["images"][first], seen]
    return _style.gallery(list(lines.items()))


@styled()
def accuracy_figure(rows: Sequence[Row]) -> Figure | None:
    """The accuracies of `rows_of`, a line for each defense; None if nothing was measured."""
    rows = [row for row in rows if any(row.get(name) is not None for name in _MARKS)]
    if not rows:
        return None
    figure = Figure(figsize=(7.6, 1.5 + 0.36 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        ends = [100 * row[name] for name in ("unaware", "aware") if row.get(name) is not None]
        axes.plot(ends, [place] * len(ends), color=RED, linewidth=1, alpha=0.5)
    for name, (color, mark, size) in _MARKS.items():
        found = [(place, row[name]) for place, row in enumerate(rows) if row.get(name) is not None]
        if found:
            places, shares = zip(*found, strict=True)
            axes.plot([100 * share for share in shares], places, mark, color=color, markersize=size, label=name)
    axes.set_yticks(range(len(rows)), [_style.plain(row["defense"]) for row in rows])
    axes.set(xlabel="accuracy (%)", xlim=(-3, 103), ylim=(len(rows) - 0.5, -0.5))
    figure.legend(loc="outside upper center", ncols=5, fontsize=8)
    return figure
