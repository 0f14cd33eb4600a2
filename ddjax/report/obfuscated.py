"""The page of defenses that rest on hidden gradients, of `launch.obfuscated`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ddjax import figures, published
from ddjax.report import page
from ddjax.report.masking import light_row, lights_table
from ddjax.report.page import Row, number, percent

HEADING = "Obfuscated gradients"

Record = Mapping[str, Any]
# What a defense that costs little may lose on clean images, and what one may that shows its network other images.
_LOSS, _LARGER_LOSS = 0.05, 0.10
_TRAINED_ON_OTHERS = ("total_variation", "quilting", "crop_ensemble")
_GENERATIVE = ("pixel_defend", "defense_gan")
# What an attack that knows how the gradient hides should win over one that does not.
_GAP = 0.30
_OVER_PUBLISHED = 0.05
# Why a row falls short of an expectation, as far as its own numbers tell.
_WHY = {
    "thermometer_adversarial": (
        "It is trained against the aware attack, and right on so few clean images that there is less to win."
    ),
    "activation_pruning": (
        "At this size pruning hides little: one draw's gradient is enough to find images that fool other draws, too."
    ),
    "randomization": (
        "At this size randomization hides little: one draw's gradient is enough to find images that fool other draws, "
        "too. The network has not been trained on resized images, and shows it."
    ),
    "quilting": (
        "Each tile is drawn anew from its ten nearest patches when the image is judged, and what BPDA puts in the "
        "place of that choice, local means, is a coarse guide."
    ),
    "crop_ensemble": (
        "A draw is an ensemble of crops, whose gradient is exact; what fools the crops of one draw fools those of "
        "another."
    ),
}
_BARE = ("none", "none_mnist", "none_mnist_l2")
# These do not hide gradients.
_OPEN = (*_BARE, "lid", "adversarial_training")


def sections(records: Sequence[Record], config: Mapping[str, Any], workdir: Path) -> list[str]:
    """Writes `table.csv` and the figures; the arguments and the result are those of `sweep.sections`."""
    rows = _rows(records)
    page.write_table([page.without_seconds(record) for record in records], workdir / "table.csv")
    drawn = {
        "accuracy": (figures.claims_and_breaks(rows), _CAPTION),
        "gallery": (_gallery(records, workdir), _GALLERY_CAPTION),
    }
    written = [
        page.section("Summary", page.paragraph(conclude(records))),
        page.section("Figures", page.show_figures(drawn, workdir)),
    ]
    if rows:
        written.append(page.section("Table", f"{page.grid(*_table(rows))}\n{page.note(_NOTE)}"))
        checked = "".join(page.paragraph(sentence) for sentence in expectations(records))
        written.append(page.section("Expectations", checked))
    lights = lights_table(records, "row")
    if lights:
        written.append(page.section("Masked gradients", lights))
    detected = _detections(records)
    reparameterized = [_reparameterized(r) for r in records if r.get("measure") == "reparameterization"]
    if reparameterized:
        written.append(page.section("Reparameterization", "".join(map(page.paragraph, reparameterized))))
    if detected:
        header = ["attack", "", "detected", "AUC"]
        written.append(page.section("Detector", f"{page.grid(header, detected)}\n{page.note(_DETECTOR_NOTE)}"))
    return written


def readme_table(records: Sequence[Record], config: Mapping[str, Any]) -> str:
    """The table as Markdown."""
    del config
    return page.markdown(*_table(_rows(records)))


_CAPTION = (
    "What each attacker leaves of each defense. Unaware: differentiates the deployed classifier and takes what it "
    "finds for the gradient. Aware: looks through the defense, or does what the unaware one does, whichever is worse "
    "for the image. Transfer: may only ask, and shows what fools a substitute. Published: the accuracy that Athalye, "
    "Carlini and Wagner 2018 left, at full scale, some on ImageNet."
)
_GALLERY_CAPTION = (
    "The first image that the aware attack broke, before and after, and as the defended network sees it; random "
    "defenses by one draw."
)
_NOTE = (
    "Accuracy in percent with its 95 % Wilson interval and the number of images. Gradient: the median L2 norm of the "
    "margin's gradient as the unaware / the aware attacker sees it. Lights: one step beats many, transfer beats many, "
    "the whole box does not suffice, random search finds more, a larger radius does not help, gradients are zero; "
    "green means not seen; none in L2. With --quick, networks are small and images few: compare rows with each other, "
    "not with the published numbers. Rows on which a single look takes long have fewer steps and no lights."
)
_DETECTOR_NOTE = (
    "Of the images that deceive the network within the budget; AUC against the clean ones that were attacked."
)


def _rows(records: Sequence[Record]) -> list[Row]:
    """A row for each defense."""
    found: dict[str, Row] = {}
    for record in records:
        name = record.get("row")
        if name is None:
            continue
        row = found.setdefault(name, {"defense": name})
        measure = record["measure"]
        if measure == "network" and "norm" in record:
            row |= {name: record[name] for name in ("dataset", "norm", "epsilon")}
        column = {"clean": "clean", "transfer": "transfer"}.get(measure)
        if measure == "worst":
            column = "aware" if record["aware"] else "unaware"
        if column is not None:
            row[column] = record["accuracy"]
            row[f"{column}_record"] = record
        elif measure == "gradient":
            row |= {name: record[name] for name in ("norm_unaware", "norm_aware")}
    for name, row in found.items():
        if name in published.BROKEN:
            row["published"] = published.BROKEN[name].percent / 100
        row["lights"] = light_row([r for r in records if r.get("row") == name])
    return list(found.values())


def _table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    columns = ("clean", "unaware", "aware", "transfer")
    cells = []
    for row in rows:
        line = [row["defense"], _threat(row)]
        for column in columns:
            record = row.get(f"{column}_record")
            line.append("" if record is None else page.rate_cell(record, "accuracy", "accuracy_n"))
        known = published.BROKEN.get(row["defense"])
        line.append("" if known is None else f"{known.percent:g} %\n{known.dataset}, {known.distance}")
        line.append(" / ".join(number(row.get(name)) for name in ("norm_unaware", "norm_aware")))
        cells.append([*line, row["lights"]])
    return ["defense", "data set, radius", *columns, "published", "gradient", "lights"], cells


def _threat(row: Row) -> str:
    if "norm" not in row:
        return ""
    return f"{row['dataset']}, {row['epsilon']:.3g} {row['norm'].capitalize()}"


def _reparameterized(record: Record) -> str:
    """What images of the generator that fool the network do to the defense."""
    n, success = record["success_n"], round(record["success"] * record["success_n"])
    if not success:
        return f"{record['row']}: the search over codes found none of {n} images that the network gets wrong."
    return (
        f"{record['row']}: the search over codes found for {success} of {n} images one of the generator's that the "
        f"network gets wrong, at a mean L2 distance of {record['mean_l2']:.2f}, {record['within']} of them within the "
        f"radius. A perfect reconstruction gives such an image back; as it is deployed, {percent(record['kept'])} of "
        f"them still fool the classifier."
    )


def _gallery(records: Sequence[Record], workdir: Path) -> Any:
    lines = []
    for record in records:
        if record.get("measure") != "attack" or not record["aware"]:
            continue
        clean = page.load_arrays(workdir / "images" / f"{record['row']}_clean.npz")
        shown = page.load_arrays(workdir / record["file"])
        if not shown or not clean:
            continue
        fresh = (shown["broken"] & ~shown["lost"]).nonzero()[0]
        if len(fresh) and all(title != record["row"] for title, _ in lines):
            first = int(fresh[0])
            seen = shown["defended"][first] if "defended" in shown else shown["images"][first]
            lines.append((record["row"], [clean["images"][first] / 255, shown["images"][first], seen]))
    return figures.squeezed_gallery(("clean", "adversarial", "as defended"), lines)


def _detections(records: Sequence[Record]) -> list[list[str]]:
    return [
        [
            record["attack"],
            "aware" if record["aware"] else "unaware",
            page.rate_cell(record, "detection", "detection_n"),
            "" if record.get("auc") is None else f"{record['auc']:.3f}",
        ]
        for record in records
        if record.get("measure") == "attack" and "detection" in record
    ]


def expectations(records: Sequence[Record]) -> list[str]:
    """Says of each defense which expectations it meets: the price on clean images, the claim, and the break.

    Args:
      records: the records of `results.jsonl`.

    Returns:
      A sentence for each defense of which enough is known.
    """
    rows = {row["defense"]: row for row in _rows(records)}
    said = []
    for name, row in rows.items():
        if any(row.get(column) is None for column in ("clean", "unaware", "aware")):
            continue
        parts = []
        # Of the same data set.
        bare = "none_mnist" if row.get("dataset") == "mnist" else "none"
        undefended = rows.get(bare, {}).get("clean")
        # Another network, trained for more than clean accuracy, has another price.
        if undefended is not None and name not in (*_BARE, "adversarial_training", "thermometer_adversarial"):
            limit = _LARGER_LOSS if name in (*_TRAINED_ON_OTHERS, *_GENERATIVE) else _LOSS
            lost = undefended - row["clean"]
            verdict = "within" if lost <= limit else "NOT within"
            parts.append(f"loses {100 * lost:.1f} points on clean images, {verdict} {100 * limit:.0f}")
        if name not in _OPEN:
            gap = row["unaware"] - row["aware"]
            verdict = "at least" if gap >= _GAP else "NOT"
            parts.append(f"the aware attack takes {100 * gap:.0f} points more, {verdict} {100 * _GAP:.0f}")
        if name in published.BROKEN:
            limit = published.BROKEN[name].percent / 100 + _OVER_PUBLISHED
            verdict = "at most" if row["aware"] <= limit else "NOT at most"
            parts.append(
                f"it leaves {percent(row['aware'])}, {verdict} {percent(limit)}, five points over the published"
            )
        if parts:
            why = f" {_WHY[name]}" if name in _WHY and any("NOT" in part for part in parts) else ""
            said.append(f"{name}: {'; '.join(parts)}.{why}")
    return said


def conclude(records: Sequence[Record]) -> str:
    """Says in a paragraph what the defenses claim, and what of it is left.

    Args:
      records: the records of `results.jsonl`.

    Returns:
      Plain text.
    """
    known = [row for row in _rows(records) if None not in (row.get("unaware"), row.get("aware"))]
    hiding = [row for row in known if row["defense"] not in _OPEN]
    said = []
    if hiding:
        claim = [row["unaware"] for row in hiding]
        left = [row["aware"] for row in hiding]
        said.append(
            f"{len(hiding)} defenses that hide their gradients are right on {percent(min(claim))} to "
            f"{percent(max(claim))} of the images under an attack that does not know how, and on {percent(min(left))} "
            f"to {percent(max(left))} under one that does."
        )
    for name, words in (("none", "Without a defense"), ("adversarial_training", "After adversarial training")):
        row = next((row for row in known if row["defense"] == name), None)
        if row is not None:
            said.append(f"{words} it is {percent(row['unaware'])} and {percent(row['aware'])}.")
    return " ".join(said) or "Nothing has been measured yet."
