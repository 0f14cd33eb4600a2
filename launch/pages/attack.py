"""The page of `launch.attack`: attacks on one network."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from . import _page, _style
from ._page import Record, number, percent
from ._style import BLUE, GREEN, RED, class_name, row_of_axes, styled

HEADING = "Attacks on one network"

# Prefix of the fields to the name of the distance.
_NORMS = {"l0_pixels": "L0, pixels", "l0_values": "L0, values", "l1": "L1", "l2": "L2", "linf": "Linf"}
# The norms of the best, average and worst case.
_COMPARED = ("l0_pixels", "l2", "linf")
_CASES = ("best", "average", "worst")
_TARGETS = {
    "none": "untargeted",
    "all": "all targets",
    "random": "a random target",
    "next": "the next class",
    "least_likely": "the least likely class",
}
_NUM_EXAMPLES = 10
_NOTE = (
    "Success: share of the attempts on correctly classified images, with its 95 % Wilson interval. After 8-bit "
    "rounding: success with pixels rounded to the values that an image file can hold. Claimed: success as an attack "
    "judges it that sees the classifier in a lower precision. Zero gradients: share of the attack's gradients that "
    "were exactly zero; an attack cannot follow such a gradient, and its failure is no sign of robustness. Distances: "
    "mean, median and largest over the successes. Means of attacks that reach different shares of the images cannot "
    "be compared. Steps, gradients and seconds: mean for one attempt. All columns but seconds are in table.csv."
)
_CASES_NOTE = (
    "Every other class was a target of each image. Best case: the nearest target that was reached. Average case: all "
    "targets. Worst case: the farthest target; it is a success only if all targets were reached. Misclassified images "
    "count, too, as in Carlini and Wagner 2017. Distances: means over the case's successes."
)
_PROOFS_NOTE = (
    "Proved: images with a positive distance within which no adversarial example exists. Mean and median are over all "
    "correctly classified images; an image without a proof counts as 0. Attacked: images on which an attack of this "
    "page succeeded, and the mean distance of the nearest success. Violations: images whose nearest success is nearer "
    "than the proof; any number but 0 means that the proofs or the attacks are wrong."
)
_BRACKETS_CAPTION = (
    "Each image is a line, from the distance within which no adversarial example exists to the nearest one that an "
    "attack found. Hollow marks stand at the edge where nothing was proved or found."
)
_GALLERY_CAPTION = (
    "From the top: clean image, adversarial image, and their difference. Gray is no change; each image's largest "
    "change takes the whole scale. Solid green: success. Dashed red, with ✗: failure. The images are correctly "
    "classified; they are chosen by class, not by outcome."
)


def sections(run: _page.Run) -> list[_page.Section]:
    """Attacks, cases over targets, proofs, and examples."""
    proofs = list({record["norm"]: record for record in run.of("certify")}.values())
    return [
        _page.Section("Attacks", table(run), _NOTE),
        _page.Section("Best, average and worst case", _cases_table(run), _CASES_NOTE),
        _page.Section("Certified distances", _proofs_table(proofs), _PROOFS_NOTE, _brackets(run, proofs)),
        _page.Section("Examples", figures=_gallery(run)),
    ]


def table(run: _page.Run) -> _page.Table:
    """A row for each attack."""
    attacks = run.of("attack")
    norms = dict(_NORMS)
    # Where a pixel is one value, the two counts are the same.
    if all(record.get("l0_values_mean") == record.get("l0_pixels_mean") for record in attacks):
        del norms["l0_values"]
    header = ["attack", "targets", "success", "after 8-bit rounding", "claimed", "zero gradients", *norms.values()]
    rows = []
    for record in attacks:
        # The settings in small print, a line each, keep the column narrow.
        row = [record["attack"].replace(":", "\n").replace(",", "\n"), _targets(record)]
        row += [_page.rate_of(record, "success"), percent(record["success_8_bits"]) if record["n"] else ""]
        lower = record["n"] and record.get("forward", "float32") != "float32"
        row += [f"{percent(record['claimed'])}\n{record['forward']}" if lower else ""]
        row += [percent(record.get("zero_gradient_share"))]
        for norm in norms:
            mean, median, worst = (number(record.get(f"{norm}_{name}")) for name in ("mean", "median", "worst"))
            row.append(f"{mean}\nmedian {median}\nworst {worst}" if mean else "")
        rows.append(row + [number(record.get(f)) for f in ("mean_steps", "mean_gradients", "seconds_per_example")])
    return _page.Table([*header, "steps", "gradients", "seconds"], rows).without_empty_columns(4)


def _targets(record: Record) -> str:
    return _TARGETS.get(record["targets"], str(record["targets"]))


def _cases_table(run: _page.Run) -> _page.Table:
    header, rows = ["attack"], []
    for _ in _CASES:
        header += ["success", *(_NORMS[norm] for norm in _COMPARED)]
    for record in run.of("attack"):
        if record.get("best_n"):
            row = [record["attack"]]
            for case in _CASES:
                row.append(_page.count_rate(record, f"{case}_successes", f"{case}_n"))
                row += [number(record.get(f"{case}_{norm}")) for norm in _COMPARED]
            rows.append(row)
    return _page.Table(header, rows, [("", 1), *((f"{case} case", 1 + len(_COMPARED)) for case in _CASES)])


def _proofs_table(proofs: Sequence[Record]) -> _page.Table:
    header = ["norm", "method", "images", "proved", "mean", "median", "attacked", "mean", "violations", "seconds"]
    rows = []
    for record in proofs:
        row = [_NORMS.get(record["norm"], record["norm"]), record["method"], str(record["n"])]
        row += [_page.count_rate(record, "proved"), *(number(record.get(f)) for f in ("mean_proved", "median_proved"))]
        row += [_page.count_rate(record, "attacked"), number(record.get("mean_attacked"))]
        rows.append([*row, str(record["violations"]), number(record.get("seconds_per_example"))])
    return _page.Table(header, rows)


def _brackets(run: _page.Run, proofs: Sequence[Record]) -> dict[str, _page.Picture]:
    drawn = {}
    for record in proofs:
        arrays, figure = run.arrays(f"images/certify_{record['norm']}.npz"), None
        if arrays:
            # At distance zero an image is misclassified without an attack, and there is nothing to show.
            right = arrays["attacked"] > 0
            name = _NORMS.get(record["norm"], str(record["norm"]))
            figure = brackets(arrays["proved"][right], arrays["attacked"][right], name)
        drawn[f"certify_{record['norm']}"] = (figure, _BRACKETS_CAPTION)
    return drawn


def _gallery(run: _page.Run) -> dict[str, _page.Picture]:
    """A strip of examples for each attack whose images are there."""
    clean, drawn = run.arrays("images/clean.npz"), {}
    for record in run.of("attack") if clean else ():
        arrays = run.arrays(record["file"])
        if not arrays:
            continue
        chosen = choose(arrays["labels"], arrays["rows"], clean["predictions"] == clean["labels"])
        examples = {"clean": clean["images"][arrays["rows"][chosen]] / 255, "adversarial": arrays["images"][chosen]}
        known = [name for name in ("labels", "predictions", "success", "targets") if name in arrays]
        examples |= {name: arrays[name][chosen] for name in known}
        figure = strip(examples, run.class_names, f"{record['attack']}, {_targets(record)}")
        name = record["file"].rpartition("/")[2].removesuffix(".npz")
        drawn[f"gallery_{name}"] = (figure, _GALLERY_CAPTION)
    return drawn


def choose(labels: np.ndarray, rows: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """The attempts to show: correctly classified images of many classes, each with a different one of its targets.

    Args:
      labels: [N], the true class of each attempt.
      rows: [N], the image of each attempt.
      correct: [M], whether each image is classified correctly.

    Returns:
      At most ten places in [0, N).
    """
    attempts: dict[int, list[int]] = {}
    for attempt in np.flatnonzero(correct[rows]):
        attempts.setdefault(int(rows[attempt]), []).append(int(attempt))
    seen: dict[int, int] = {}
    order = []
    for row, found in attempts.items():
        label = int(labels[found[0]])
        seen[label] = seen.get(label, 0) + 1
        order.append((seen[label], label, row))
    images = [row for *_, row in sorted(order)[:_NUM_EXAMPLES]]
    # In steps of seven, since in steps of one each image would get the class after its own.
    return np.array([attempts[row][7 * place % len(attempts[row])] for place, row in enumerate(images)], int)


@styled()
def strip(examples: Mapping[str, np.ndarray], class_names: Sequence[str], title: str) -> Figure | None:
    """Clean images, adversarial images and their differences, an example a column.

    Args:
      examples: `clean` and `adversarial` [N, H, W, C], `labels`, `predictions` and `success` [N]; `targets` [N] if any.
      class_names: the names of the classes.
      title: the title of the figure.
    """
    clean, adversarial = (np.asarray(examples[name], float) for name in ("clean", "adversarial"))
    count, height, width, _ = clean.shape
    if not count:
        return None
    change = adversarial - clean
    largest = np.abs(change).max((1, 2, 3), keepdims=True)
    rows = (clean, adversarial, 0.5 + change / np.where(largest > 0, 2 * largest, 1))
    titles = [_outcome(examples, place, class_names) for place in range(count)]
    lines = max(words.count("\n") + 1 for words in titles)
    mosaic = _style.Mosaic(3, count, (height, width), max(2, round(0.12 * max(height, width))))
    inches = (1.02 * count, 1.02 * 3 * mosaic.pitch[0] / mosaic.pitch[1])
    figure = Figure(figsize=(max(inches[0], 4) + 1.1, inches[1] + 0.55 + 0.14 * lines), layout="constrained")
    (axes,) = row_of_axes(figure, 1)
    for place, won in enumerate(examples["success"]):
        for row, images in enumerate(rows):
            frame = (_style.REACHED if won else _style.MISSED) if row == 1 else None
            mosaic.put(row, place, images[place], frame)
        middle, color = mosaic.centers(1, count)[place], "black" if won else RED
        axes.text(middle, -mosaic.gap / 4, titles[place], ha="center", va="bottom", fontsize=8, color=color)
    mosaic.draw(axes)
    axes.set_yticks(mosaic.centers(0, 3), ["clean", "adversarial", "difference"])
    # The title of the axes would start in the middle of the figure.
    title = _style.plain(textwrap.fill(title, int(10 * figure.get_figwidth())))
    figure.suptitle(title, x=0.01, ha="left", fontsize=10.5, fontweight="bold")
    return figure


def _outcome(examples: Mapping[str, np.ndarray], place: int, class_names: Sequence[str]) -> str:
    """The outcome of an attack: "7 to 3", or of a failure "✗ 7 to 7", with the target that was missed."""
    label, prediction = (class_name(int(examples[name][place]), class_names) for name in ("labels", "predictions"))
    won = bool(examples["success"][place])
    long = max(len(label), len(prediction)) > 3
    words = f"{'' if won else '✗ '}{label}{chr(10) if long else ' '}to {prediction}"
    if not won and "targets" in examples:
        words += f"\nnot {class_name(int(examples['targets'][place]), class_names)}"
    return words


@styled()
def brackets(proved: np.ndarray, attacked: np.ndarray, norm: str) -> Figure | None:
    """For each image the interval of the nearest adversarial example's distance, from the proof to the attack.

    Args:
      proved: [N], the distance within which there is none; 0 where nothing was proved.
      attacked: [N], the distance of the nearest one found; inf where no attack succeeded.
      norm: the name of the distance.
    """
    proved, attacked = np.asarray(proved, float), np.asarray(attacked, float)
    known = np.concatenate([proved, attacked])
    known = known[np.isfinite(known) & (known > 0)]
    if not len(known):
        return None
    floor, ceiling = known.min() / 2, known.max() * 2
    order = np.lexsort((attacked, proved))
    low, high = proved[order], attacked[order]
    bottom, top = np.clip(low, floor, ceiling), np.clip(high, floor, ceiling)
    places = np.arange(1, len(order) + 1)
    figure = Figure(figsize=(7.6, 4.2), layout="constrained")
    (axes,) = row_of_axes(figure, 1)
    axes.set_yscale("log")
    _style.label_log_axis(axes.yaxis)
    wrong = high < low
    size = float(np.clip(900 / len(order), 3, 30))
    thickness = float(np.clip(150 / len(order), 0.5, 3))
    for chosen, color in ((~wrong, "#BBBBBB"), (wrong, RED)):
        axes.vlines(places[chosen], bottom[chosen], top[chosen], colors=color, linewidths=thickness)
    marks = (
        ("proved: none is nearer", bottom, low > 0, BLUE, "o", True),
        ("nothing proved", bottom, low <= 0, BLUE, "v", False),
        ("nearest found by an attack", top, np.isfinite(high), GREEN, "s", True),
        ("no attack succeeded", top, ~np.isfinite(high), GREEN, "^", False),
        ("attack nearer than the proof", top, wrong, RED, "x", True),
    )
    for label, heights, chosen, color, marker, filled in marks:
        if chosen.any():
            looks: dict[str, Any] = {"color": color} if filled else {"facecolor": "white", "edgecolor": color}
            area = 4 * size if marker == "x" else size
            axes.scatter(places[chosen], heights[chosen], area, marker=marker, label=label, zorder=3, **looks)
    margin = max(1.0, 0.02 * len(order))
    axes.set(xlabel="images, sorted by the proof", ylabel=f"{norm} distance", xlim=(1 - margin, len(order) + margin))
    axes.set(title=f"Distance of the nearest adversarial example, {norm}", ylim=(floor / 1.2, ceiling * 1.2))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3)
    return figure
