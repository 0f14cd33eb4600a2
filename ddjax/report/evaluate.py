"""The page of attacks against defenses, of `launch.evaluate`."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddjax import figures
from ddjax.report import page
from ddjax.report.masking import light_row, lights_table
from ddjax.report.page import Row, listed, percent

HEADING = "Attacks against defenses"

Record = Mapping[str, Any]
# What an attack knows, in titles.
_KNOWLEDGE = {False: "unaware", True: "aware"}


def sections(records: Sequence[Record], config: Mapping[str, Any], workdir: Path) -> list[str]:
    """Writes `matrix.csv`, `table.csv` and the figures; the arguments and the result are those of `sweep.sections`."""
    rows = _rows(records)
    page.write_table(rows, workdir / "matrix.csv")
    page.write_table([_flat(record) for record in records], workdir / "table.csv")
    names = list(dict.fromkeys(name for row in rows for name in row if name not in ("network", "defense")))
    shares = np.array([[np.nan if row.get(name) is None else row[name] for name in names] for row in rows], float)
    labels = [f"{row['network']}, {_in_a_title(row['defense'])}" for row in rows]
    short = _short(list(dict.fromkeys(name.rsplit(" ", 1)[0] for name in names)))
    titles = [" ".join([short[name.rsplit(" ", 1)[0]], *name.rsplit(" ", 1)[1:]]) for name in names]
    drawn = {
        "matrix": (figures.matrix(labels, titles, shares.reshape(len(rows), len(names))), _CAPTION),
        "roc": (figures.roc_curves(_curves(records, workdir)), _ROC_CAPTION),
        "gallery": (_gallery(records, workdir), _GALLERY_CAPTION),
    }
    written = [
        page.section("Summary", page.paragraph(conclude(records))),
        page.section("Figures", page.show_figures(drawn, workdir)),
    ]
    if rows:
        written.append(page.section("Matrix", f"{page.grid(*_table(records))}\n{page.note(_NOTE)}"))
    lights = lights_table(records, "network", "defense")
    if lights:
        written.append(page.section("Masked gradients", lights))
    detectors = _detectors(records)
    if detectors:
        header = ["network", "detector", "threshold", "false positives", "attack", "", "detected", "AUC"]
        written.append(page.section("Detectors", f"{page.grid(header, detectors)}\n{page.note(_DETECTOR_NOTE)}"))
    return written


def readme_table(records: Sequence[Record], config: Mapping[str, Any]) -> str:
    """The matrix as a Markdown table."""
    del config
    return page.markdown(*_table(records))


_CAPTION = (
    "Accuracy in percent: the share of test images on which the defended network is right, or its detector warns, "
    "whatever the attack tried within the budget. Unaware: images made on the bare network; aware: by the same attack "
    "with knowledge of the defense. Worst: against all attacks at once; aware, against the images of both kinds, since "
    "who knows the defense can still attack as if it were not there."
)
_ROC_CAPTION = "Detectors: clean test images against images that deceive the bare network within the budget."
_GALLERY_CAPTION = (
    "The first image that each attack broke, before and after, and as the defended network or its detector's first "
    "squeezer shows it; random defenses by one draw."
)
_NOTE = "Accuracy under attack, unaware / aware of the defense; all numbers with their intervals are in table.csv."
_DETECTOR_NOTE = (
    "Detected: of the images that deceive the network without its detector, within the budget. AUC against clean test "
    "images, none of which was used for the threshold."
)


def _titles(records: Sequence[Record]) -> dict[str, str]:
    """Networks by what a reader calls them; the name in the results where two share a title."""
    titles = {r["network"]: r["title"] for r in records if r.get("measure") == "network"}
    return {n: title if list(titles.values()).count(title) == 1 else n for n, title in titles.items()}


def _short(attacks: Sequence[str]) -> dict[str, str]:
    """Attacks by their names; with their settings where two share a name."""
    names = [attack.partition(":")[0] for attack in attacks]
    return {attack: name if names.count(name) == 1 else attack for attack, name in zip(attacks, names, strict=True)}


def _rows(records: Sequence[Record]) -> list[Row]:
    """The matrix, a row for each network and defense: accuracy on clean images, under attacks, in the worst case."""
    titles = _titles(records)
    found: dict[tuple[str, str], Row] = {}
    for record in records:
        if record.get("measure") not in ("clean", "evaluate", "worst"):
            continue
        key = (record["network"], record["defense"])
        row = found.setdefault(key, {"network": titles.get(key[0], key[0]), "defense": key[1]})
        if record["measure"] == "clean":
            row["clean"] = record["accuracy"]
        elif record["measure"] == "evaluate":
            row[f"{record['attack']} {_KNOWLEDGE[record['aware']]}"] = record["accuracy"]
        else:
            # The latest is over the most attacks; behind all others.
            name = f"worst {_KNOWLEDGE[record['aware']]}"
            row.pop(name, None)
            row[name] = record["accuracy"]
    return list(found.values())


def _lights(records: Sequence[Record], row: Row) -> str:
    titles = _titles(records)
    where = (row["network"], row["defense"])
    lights = [record for record in records if record.get("measure") == "light"]
    return light_row([light for light in lights if (titles[light["network"]], light["defense"]) == where])


def _flat(record: Record) -> Row:
    return {key: value for key, value in page.without_seconds(record).items() if key not in ("file", "judged")}


def _table(records: Sequence[Record]) -> tuple[list[str], list[list[str]]]:
    """Header and cells, an attack a column with both kinds of knowledge, and the lights of masked gradients."""
    rows = _rows(records)
    attacks = list(
        dict.fromkeys(name.rsplit(" ", 1)[0] for row in rows for name in row if name.endswith((" unaware", " aware")))
    )
    attacks.sort(key=lambda name: name == "worst")
    shown = lambda share: "" if share is None else percent(share)
    cells = []
    for row in rows:
        both = (" / ".join(shown(row.get(f"{attack} {word}")) for word in _KNOWLEDGE.values()) for attack in attacks)
        cells.append([row["network"], row["defense"], shown(row.get("clean")), *both])
    header = ["network", "defense", "clean", *_short(attacks).values()]
    lights = [_lights(records, row) for row in rows]
    if any(lights):
        header.append("lights")
        cells = [[*line, shown] for line, shown in zip(cells, lights, strict=True)]
    return header, cells


def _detectors(records: Sequence[Record]) -> list[list[str]]:
    titles = _titles(records)
    clean = {(r["network"], r["defense"]): r for r in records if r.get("measure") == "clean" and "threshold" in r}
    lines = []
    for record in records:
        of = clean.get((record.get("network"), record.get("defense")))
        if record.get("measure") != "evaluate" or of is None:
            continue
        auc = "" if record.get("auc") is None else f"{record['auc']:.3f}"
        lines.append(
            [
                titles.get(record["network"], record["network"]),
                record["defense"],
                f"{of['threshold']:.4g}",
                page.rate_cell(of, "false_positive", "false_positive_n"),
                record["attack"],
                _KNOWLEDGE[record["aware"]],
                page.rate_cell(record, "detection", "detection_n"),
                auc,
            ]
        )
    return lines


def _curves(records: Sequence[Record], workdir: Path) -> dict[str, list[tuple[str, bool, np.ndarray, np.ndarray]]]:
    """What `figures.roc_curves` draws."""
    titles = _titles(records)
    clean = {(r["network"], r["defense"]): r for r in records if r.get("measure") == "clean" and "scores" in r}
    short = _short(list(dict.fromkeys(r["attack"] for r in records if r.get("measure") == "evaluate")))
    panels: dict[str, list[tuple[str, bool, np.ndarray, np.ndarray]]] = {}
    for record in records:
        key = (record.get("network"), record.get("defense"))
        if record.get("measure") != "evaluate" or key not in clean:
            continue
        kept, judged = page.load_arrays(workdir / clean[key]["scores"]), page.load_arrays(workdir / record["judged"])
        if not kept or "fooled" not in judged or not judged["fooled"].any():
            continue
        from sklearn.metrics import roc_curve  # lazily: it takes a second, and most pages have no detector

        scores = np.concatenate([kept["scores"], judged["scores"][judged["fooled"]]])
        truth = np.arange(len(scores)) >= len(kept["scores"])
        false_positives, detected, _ = roc_curve(truth, scores)
        name = f"{titles.get(record['network'], record['network'])}, {_in_a_title(record['defense'])}"
        panels.setdefault(name, []).append((short[record["attack"]], record["aware"], false_positives, detected))
    return panels


def _in_a_title(defense: str) -> str:
    """A defense in words that fit, with the last part alone of the path to its model."""
    return re.sub(r"model=[^,]*/(?=[^,/])", "model=", defense)


def _gallery(records: Sequence[Record], workdir: Path) -> Any:
    """Clean, adversarial and squeezed, for the first image that each attack broke behind a transform or a detector."""
    clean = page.load_arrays(workdir / "images" / "clean.npz")
    lines = []
    for record in records:
        if record.get("measure") != "evaluate" or not record.get("views"):
            continue
        shown = page.load_arrays(workdir / record["views"])
        if clean and shown:
            knows, defense = _KNOWLEDGE[record["aware"]], _in_a_title(record["defense"])
            title = f"{record['attack'].partition(':')[0]},\n{knows}, {defense}"
            lines.append((title, [clean["images"][int(shown["row"])] / 255, shown["adversarial"], shown["defended"]]))
    return figures.squeezed_gallery(("clean", "adversarial", "as defended"), lines[:8])


def conclude(records: Sequence[Record]) -> str:
    """Says in a paragraph what each defense kept, and what of it an attack that knows it left.

    Args:
      records: the records of `results.jsonl`.

    Returns:
      Plain text.
    """
    said = []
    for row in _rows(records):
        if any(row.get(name) is None for name in ("clean", "worst unaware", "worst aware")):
            continue
        said.append(
            f"{row['network']}, {row['defense']}: right on {percent(row['clean'])} of clean images, on "
            f"{percent(row['worst unaware'])} under the worst attack that does not know it, on "
            f"{percent(row['worst aware'])} under the worst that does."
        )
    caught = [
        r for r in records if r.get("measure") == "evaluate" and not r["aware"] and r.get("detection") is not None
    ]
    if caught:
        rates = [f"{percent(r['detection'])} ({r['attack']})" for r in caught]
        said.append(f"Detected of what deceives the network without knowing of the detector: {listed(rates)}.")
    return " ".join(said) or "Nothing has been measured yet."
