"""The page of `launch.obfuscated`: defenses that rest on hidden gradients."""

import itertools
from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from ..recipes import published
from . import _figures, _lights, _page
from ._figures import BLUE, GRAY, GREEN, PURPLE, RED
from ._page import DETECTION, KNOWLEDGE, Row, field, number, points, rate

HEADING = "Obfuscated gradients"

# Column to the look of its marks.
_LOOKS = {
    "clean": {"color": GRAY, "marker": "o"},
    "unaware": {"color": GREEN, "marker": "^"},
    "transfer": {"color": PURPLE, "marker": "D"},
    "aware": {"color": RED, "marker": "s"},
    "published": {"color": BLUE, "marker": "|", "markersize": 10},
}
_CAPTION = (
    "Accuracy of each defense on clean images and under each attacker, with 95 % Wilson intervals. Unaware: uses the "
    "gradient of the deployed classifier as it is. Aware: knows the defense and attacks through it; includes the "
    "unaware attacker's images. Transfer: a label-only black-box attacker with a substitute network. Published: "
    "accuracy under the attack of Athalye, Carlini and Wagner 2018, at full scale, on the data sets that the table "
    "names."
)
_GALLERY_CAPTION = (
    "The first image that the aware attack broke: clean, adversarial, and as the defended network sees it. Random "
    "defenses are shown by one draw."
)
_TABLE = {
    "defense": field("defense"),
    "data set, radius": field("threat"),
    **{attacker: rate(attacker) for attacker in ("clean", "unaware", "aware", "transfer")},
    "gap": field("gap", points),
    "published": field("known"),
    "gradient": field("gradient"),
    "lights": field("lights"),
}
_NOTE = (
    "Accuracy with its 95 % Wilson interval and the number of images. Gap: unaware minus aware, in percentage points. "
    "Published: the data set and the radius stand below the number. Gradient: median L2 norm of the margin's gradient "
    "for the unaware / the aware attacker; zero means that the attacker has nothing to follow. With --quick, networks "
    "are small and images few: compare rows with each other, not with the published numbers. Slow rows have fewer "
    "steps and no lights; there are no lights in L2."
)
_REPARAMETERIZATION = {
    "defense": field("row"),
    "found": rate("success"),
    "mean L2": field("mean_l2", number),
    "within the radius": field("within"),
    "still wrong": rate("kept"),
}
_REPARAMETERIZATION_NOTE = (
    "The attack searches the generator's codes for an image that the network misclassifies. Found: share of the "
    "images for which there is one, then its mean L2 distance and how many are within the radius. Still wrong: share "
    "of the found images that fool the classifier with the defense as it is deployed."
)
_DETECTOR_NOTE = "Detected: share of the images that fool the network within the budget. AUC: against clean images."


def sections(run: _page.Run) -> list[_page.Section]:
    """The table, figures, signs of masked gradients, reparameterization and detector."""
    drawn = {"accuracy": (accuracy_figure(rows_of(run)), _CAPTION), "gallery": (_gallery(run), _GALLERY_CAPTION)}
    searches = _page.table_of(run.of("reparameterization"), _REPARAMETERIZATION)
    detected = [record for record in run.of("attack") if "detection" in record]
    detections = _page.table_of(detected, {"defense": field("row"), **DETECTION})
    return [
        _page.Section("Table", table(run), _NOTE),
        _page.Section("Figures", figures=drawn),
        _lights.section(run.of("light"), "row"),
        _page.Section("Reparameterization", searches, _REPARAMETERIZATION_NOTE),
        _page.Section("Detector", detections, _DETECTOR_NOTE),
    ]


def table(run: _page.Run) -> pd.DataFrame:
    """A row for each defense."""
    return _page.table_of(rows_of(run), _TABLE)


def rows_of(run: _page.Run) -> list[Row]:
    """A row for each defense: its threat model, and its accuracies with the ends of their intervals."""
    found: dict[str, Row] = {}
    for record in run.records:
        name = record.get("row")
        if name is None:
            continue
        row, measure = found.setdefault(name, {"defense": name}), record["measure"]
        if measure == "network" and "norm" in record:
            row["threat"] = f"{record['dataset']}, {record['epsilon']:.3g} {record['norm'].capitalize()}"
        elif measure == "gradient":
            row["gradient"] = " / ".join(number(record[f"norm_{word}"]) for word in KNOWLEDGE.values())
        elif measure in ("clean", "transfer", "worst"):
            column = KNOWLEDGE[record["aware"]] if measure == "worst" else measure
            row |= {f"{column}{end}": record.get(f"accuracy{end}") for end in ("", "_n", "_low", "_high")}
    for name, row in found.items():
        if None not in (row.get("unaware"), row.get("aware")):
            row["gap"] = row["unaware"] - row["aware"]
        if name in published.BROKEN:
            known = published.BROKEN[name]
            row["published"] = known.percent / 100
            row["known"] = f"{known.percent:g} %\n{known.dataset}, {known.distance}"
        row["lights"] = _lights.row([light for light in run.of("light") if light["row"] == name])
    return list(found.values())


def _gallery(run: _page.Run) -> Figure | None:
    rows = {}
    for record in run.of("attack"):
        if not record["aware"] or record["row"] in rows:
            continue
        clean, shown = run.arrays(f"images/{record['row']}_clean.npz"), run.arrays(record["file"])
        fresh = (shown["broken"] & ~shown["lost"]).nonzero()[0].tolist() if clean and shown else []
        for first in fresh[:1]:
            images = [clean["images"][first], shown["images"][first]]
            rows[record["row"]] = [*images, shown["defended"][first] if "defended" in shown else images[1]]
    return _figures.image_grid(list(rows.items()), ("clean", "adversarial", "as defended"))


def accuracy_figure(rows: Sequence[Row]) -> Figure | None:
    """The accuracies of `rows_of`, a group for each defense; None if nothing was measured."""
    dots = []
    for row, name in itertools.product(rows, _LOOKS):
        values = [row.get(f"{name}{end}") for end in ("", "_low", "_high")]
        dots.append((row["defense"], name, [100 * value for value in values if value is not None] or [None]))
    return _figures.dots(dots, _LOOKS, "accuracy (%)", xlim=(-3, 103))
