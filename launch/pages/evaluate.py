"""The page of `launch.evaluate`: attacks against defenses."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from . import _lights, _page, _style
from ._page import Record, Row, number, percent
from ._style import BLUE, GREEN, PURPLE, RED, row_of_axes, styled

HEADING = "Attacks against defenses"

# Whether the attack knows the defense, to the word for it.
_KNOWLEDGE = {False: "unaware", True: "aware"}
_MAX_GALLERY = 8
# A detector's curve: attack, whether it knows the detector, false-positive rates and detection rates.
Curve = tuple[str, bool, np.ndarray, np.ndarray]

_CAPTION = (
    "Accuracy in percent: share of the test images that the defended network classifies correctly, or its detector "
    "finds, under attack within the budget. Unaware: the images were made on the bare network. Aware: the same attack "
    "knows the defense. Worst: an image counts only if it withstands all attacks; aware includes the unaware images."
)
_ROC_CAPTION = "Detectors: clean test images against images that fool the bare network within the budget."
_GALLERY_CAPTION = (
    "The first image that each attack broke: clean, adversarial, and as the defended network or its detector's first "
    "squeezer sees it. Random defenses are shown by one draw."
)
_MATRIX_NOTE = "Accuracy under attack, unaware / aware of the defense; intervals stand in the next table."
_ACCURACY_NOTE = (
    "Accuracy with its 95 % Wilson interval and the number of images. Distances: means over the adversarial images. "
    "Zero gradients: share of the attack's gradients that were exactly zero; an attack cannot follow such a gradient, "
    "and its failure is no sign of robustness. All columns are in table.csv."
)
_DETECTOR_NOTE = (
    "Detected: share of the images that fool the network without its detector, within the budget. AUC: against clean "
    "test images that were not used for the threshold."
)


def sections(run: _page.Run) -> list[_page.Section]:
    """The matrix, accuracies with intervals, signs of masked gradients, detectors and figures."""
    drawn = {
        "matrix": (_matrix(run), _CAPTION),
        "roc": (roc_figure(_curves(run)), _ROC_CAPTION),
        "gallery": (_gallery(run), _GALLERY_CAPTION),
    }
    return [
        _page.Section("Matrix", table(run), _MATRIX_NOTE),
        _page.Section("Figures", figures=drawn),
        _page.Section("Accuracy", _accuracies(run), _ACCURACY_NOTE),
        _lights.section(run.of("light"), "network", "defense"),
        _page.Section("Detectors", _detectors(run), _DETECTOR_NOTE),
    ]


def table(run: _page.Run) -> _page.Table:
    """The matrix: an attack a column with both kinds of knowledge, and the lights of masked gradients."""
    rows, short = _rows(run), _short(run)
    names = [*short, "worst"]
    header = ["network", "defense", "clean", *short.values(), "worst", "lights"]
    cells = []
    for (network, defense), row in rows.items():
        clean = [r for r in run.of("clean") if (r["network"], r["defense"]) == (network, defense)]
        line = [_titles(run).get(network, network), defense]
        line.append(_page.rate_of(clean[-1], "accuracy", "accuracy_n") if clean else "")
        for name in names:
            both = [percent(row.get(f"{name} {word}")) for word in _KNOWLEDGE.values()]
            line.append(" / ".join(both) if any(both) else "")
        lights = [r for r in run.of("light") if (r["network"], r["defense"]) == (network, defense)]
        cells.append([*line, _lights.row(lights)])
    return _page.Table(header, cells).without_empty_columns(3)


def files(run: _page.Run) -> dict[str, list[Row]]:
    """The matrix, and all records without their times and files."""
    titles = _titles(run)
    matrix = [{"network": titles.get(key[0], key[0]), "defense": key[1]} | row for key, row in _rows(run).items()]
    flat = [_page.without_seconds(record) for record in run.records]
    hidden = ("file", "judged")
    return {"matrix.csv": matrix, "table.csv": [{k: v for k, v in row.items() if k not in hidden} for row in flat]}


def _titles(run: _page.Run) -> dict[str, str]:
    """Networks to their titles; to their names in the results where two share a title."""
    titles = {record["network"]: record["title"] for record in run.of("network")}
    return {name: title if list(titles.values()).count(title) == 1 else name for name, title in titles.items()}


def _short(run: _page.Run) -> dict[str, str]:
    """Attacks to their names; with their settings where two share a name."""
    attacks = list(dict.fromkeys(record["attack"] for record in run.of("evaluate")))
    names = [attack.partition(":")[0] for attack in attacks]
    return {attack: name if names.count(name) == 1 else attack for attack, name in zip(attacks, names, strict=True)}


def _rows(run: _page.Run) -> dict[tuple[str, str], Row]:
    """(network, defense) to accuracies: on clean images, under each attack, in the worst case."""
    found: dict[tuple[str, str], Row] = {}
    for record in run.of("clean", "evaluate", "worst"):
        row = found.setdefault((record["network"], record["defense"]), {})
        attack = record.get("attack", record["measure"])
        name = attack if attack == "clean" else f"{attack} {_KNOWLEDGE[record['aware']]}"
        # The latest worst case is over the most attacks; it stands behind them.
        row.pop(name, None)
        row[name] = record["accuracy"]
    return found


def _accuracies(run: _page.Run) -> _page.Table:
    rows = []
    for record in run.of("clean", "evaluate", "worst"):
        row = [_titles(run).get(record["network"], record["network"]), record["defense"]]
        row.append(record.get("attack", record["measure"]).replace(":", "\n").replace(",", "\n"))
        row.append(_KNOWLEDGE[record["aware"]] if "aware" in record else "")
        row.append(_page.rate_of(record, "accuracy", "accuracy_n"))
        row += [number(record.get(f"mean_{norm}")) for norm in ("l2", "linf")]
        rows.append([*row, percent(record.get("zero_gradient_share"))])
    header = ["network", "defense", "attack", "knowledge", "accuracy", "L2", "Linf", "zero gradients"]
    return _page.Table(header, rows).without_empty_columns(5)


def _scored(run: _page.Run) -> list[tuple[Record, Record]]:
    """The attacks on networks with a detector, each with the record of the detector on clean images."""
    clean = {(r["network"], r["defense"]): r for r in run.of("clean") if "threshold" in r}
    pairs = [(record, clean.get((record["network"], record["defense"]))) for record in run.of("evaluate")]
    return [(record, of) for record, of in pairs if of is not None]


def _detectors(run: _page.Run) -> _page.Table:
    rows = []
    for record, clean in _scored(run):
        row = [_titles(run).get(record["network"], record["network"]), record["defense"], f"{clean['threshold']:.4g}"]
        row += [_page.rate_of(clean, "false_positive", "false_positive_n"), record["attack"]]
        row += [_KNOWLEDGE[record["aware"]], _page.rate_of(record, "detection", "detection_n")]
        rows.append([*row, "" if record.get("auc") is None else f"{record['auc']:.3f}"])
    header = ["network", "detector", "threshold", "false positives", "attack", "knowledge", "detected", "AUC"]
    return _page.Table(header, rows)


def _curves(run: _page.Run) -> dict[str, list[Curve]]:
    """The curves of `roc_figure`."""
    short = _short(run)
    panels: dict[str, list[Curve]] = {}
    for record, clean in _scored(run):
        kept, judged = run.arrays(clean.get("scores", "")), run.arrays(record["judged"])
        if not kept or "fooled" not in judged or not judged["fooled"].any():
            continue
        # Imported here, since it takes a second and most pages have no detector.
        from sklearn.metrics import roc_curve

        scores = np.concatenate([kept["scores"], judged["scores"][judged["fooled"]]])
        false_positives, detected, _ = roc_curve(np.arange(len(scores)) >= len(kept["scores"]), scores)
        panel = panels.setdefault(_title(run, record), [])
        panel.append((short[record["attack"]], record["aware"], false_positives, detected))
    return panels


def _title(run: _page.Run, record: Record) -> str:
    return f"{_titles(run).get(record['network'], record['network'])}, {without_directory(record['defense'])}"


def without_directory(defense: str) -> str:
    """A defense without the directories of its model's path, as `pixel_defend:epsilon=0.1,model=density`."""
    name, colon, settings = defense.partition(":")
    pairs = [setting.partition("=") for setting in settings.split(",")]
    short = [f"{key}{sign}{value.rpartition('/')[2] if key == 'model' else value}" for key, sign, value in pairs]
    return f"{name}{colon}{','.join(short)}"


def _gallery(run: _page.Run) -> Figure | None:
    """The first image that each attack broke behind a transform or a detector."""
    clean, lines = run.arrays("images/clean.npz"), []
    for record in run.of("evaluate"):
        shown = run.arrays(record["views"]) if clean and record.get("views") else {}
        if shown:
            attack, defense = record["attack"].partition(":")[0], without_directory(record["defense"])
            images = [clean["images"][int(shown["row"])] / 255, shown["adversarial"], shown["defended"]]
            lines.append((f"{attack},\n{_KNOWLEDGE[record['aware']]}, {defense}", images))
    return _style.gallery(lines[:_MAX_GALLERY])


def _matrix(run: _page.Run) -> Figure | None:
    rows, titles, short = _rows(run), _titles(run), _short(run)
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    shares = np.array([[row.get(name, np.nan) for name in names] for row in rows.values()], float)
    labels = [f"{titles.get(network, network)}, {without_directory(defense)}" for network, defense in rows]
    split = [name.rpartition(" ") for name in names]
    columns = [f"{short.get(attack, attack)}{space}{word}" for attack, space, word in split]
    return matrix_figure(labels, columns, shares.reshape(len(rows), len(names)))


@styled()
def matrix_figure(rows: Sequence[str], columns: Sequence[str], shares: np.ndarray) -> Figure | None:
    """A heat map of `shares` [rows, columns] in [0, 1], NaN where nothing was measured; None if nothing was at all."""
    if not np.isfinite(shares).any():
        return None
    figure = Figure(figsize=(2.6 + 0.72 * len(columns), 1.9 + 0.34 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.grid(visible=False)
    image = axes.imshow(100 * shares, cmap="viridis", vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(range(len(columns)), map(_style.plain, columns), rotation=40, ha="left", rotation_mode="anchor")
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(rows)), map(_style.plain, rows))
    for (row, column), share in np.ndenumerate(shares):
        if np.isfinite(share):
            color = "black" if share > 0.6 else "white"
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=color, fontsize=8)
    figure.colorbar(image, ax=axes, label="accuracy (%)", shrink=0.9)
    return figure


@styled()
def roc_figure(panels: Mapping[str, Sequence[Curve]]) -> Figure | None:
    """Detection rate against false-positive rate, a panel for each detector; None without a curve."""
    if not panels:
        return None
    figure = Figure(figsize=(1.6 + 4.2 * len(panels), 4.2), layout="constrained")
    colors = (BLUE, RED, GREEN, PURPLE)
    for axes, (name, curves) in zip(row_of_axes(figure, len(panels)), panels.items(), strict=True):
        attacks = list(dict.fromkeys(attack for attack, *_ in curves))
        for attack, aware, false_positives, detected in curves:
            color = colors[attacks.index(attack) % len(colors)]
            label = f"{_style.plain(attack)}{', aware' if aware else ''}"
            line = "--" if aware else "-"
            axes.plot(100 * false_positives, 100 * detected, color=color, linestyle=line, label=label)
        axes.set(xlabel="false positives (%)", ylabel="detected (%)", xlim=(-2, 102), ylim=(-2, 102))
        axes.set_title(_style.plain(name))
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, fontsize=7)
    return figure
