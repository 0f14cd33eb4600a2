"""The figures of a sweep over distillation temperatures."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullLocator

from ddjax.figures.pictures import class_grid, class_name, pixels
from ddjax.figures.style import BLUE, GRAY, GREEN, PURPLE, RED, row_of_axes, styled, temperature_name

Row = Mapping[str, Any]

# Upper ends (log10) of the ranges of gradient amplitude: ten, as in the paper's Fig. 9, the first of them open below.
RANGE_TOPS = (-30, -25, -20, -15, -10, -8, -6, -4, -2, 0)
# Ten colors for the ten ranges: viridis, dark where the gradient is small.
RANGE_COLORS = (
    "#440154",
    "#482878",
    "#3E4A89",
    "#31688E",
    "#26828E",
    "#1F9E89",
    "#35B779",
    "#6DCD59",
    "#B4DE2C",
    "#FDE725",
)

# What each figure shows, in the order of the page.
CAPTIONS = {
    "success": "Attack success against the distillation temperature, after Fig. 7 of Papernot et al. Left: JSMA on the "
    "probabilities at T = 1, the attack of the paper, and tempered JSMA on softmax(Z/T) of the same networks. Where "
    "the second stays up while the first falls, the first falls for want of a gradient. Right: FGSM on the network "
    "itself and with images made on the undistilled network. Bars and gray band: 95 % Wilson intervals.",
    "accuracy_variation": "Test accuracy minus that of the undistilled network, after Fig. 8 of Papernot et al. Bars: "
    "95 % interval of each network's own accuracy. Band: that of the undistilled network.",
    "gradients": "Mean absolute entry of the Jacobian of the T=1 probabilities, a value per test image, computed in "
    "log space so that it does not underflow; after Fig. 9 of Papernot et al. Diamonds: share of the images whose "
    "whole Jacobian is exactly zero in float32 arithmetic, which leaves an attack that follows it nothing to follow.",
    "robustness": "Smallest share of the features that turns an image into some other class, averaged over images, "
    "after Fig. 10 of Papernot et al. An image on which every attempt failed counts with the largest share allowed, so "
    "an attack that fails for want of a gradient raises this number too.",
    "jsma_grid": "JSMA on the T=1 probabilities of the undistilled network, from each source class (row) to each "
    "target class (column), one test image per source. Solid green: target reached. Dashed red: not reached. Thin "
    "gray: the clean image.",
    "jsma_grid_distilled": "The same attack, still on T=1 probabilities, on the network distilled at the highest "
    "temperature.",
    "fgsm": "An FGSM image made on the undistilled network, and what each network says of the clean and of the "
    "adversarial image. Where a distilled network is fooled too, its own gradients were not needed to fool it.",
}


@styled()
def success(rows: Sequence[Row]) -> Figure | None:
    """Attack success against the distillation temperature (the paper's Fig. 7): JSMA and, beside it, FGSM.

    Args:
      rows: the rows of `report.summarize`.

    Returns:
      The figure; None if no attack on a distilled network has been measured.
    """
    panels = [
        (
            "JSMA",
            "jsma_success",
            [
                ("jsma_success", "on T=1 probabilities", BLUE, "o", "-"),
                ("jsma_tempered_success", "tempered: on softmax(Z/T)", RED, "s", "-"),
                ("published_jsma_success", "published, T=1 probabilities", "black", "D", ":"),
            ],
        ),
        (
            "FGSM",
            "fgsm_success",
            [
                ("fgsm_success", "on the network itself", GREEN, "^", "-"),
                ("fgsm_transfer_success", "transferred from the undistilled network", PURPLE, "v", "-"),
            ],
        ),
    ]
    panels = [panel for panel in panels if any(_points(rows, column)[0] for column, *_ in panel[2][:2])]
    if not panels:
        return None
    figure = Figure(figsize=(5.3 * len(panels) + 0.3, 4.5), layout="constrained")
    for axes, (title, reference, series) in zip(row_of_axes(figure, len(panels)), panels, strict=True):
        _temperature_axis(axes, rows)
        _reference_line(axes, rows, reference)
        for position, (column, label, color, marker, line) in enumerate(series):
            published = column == "published_jsma_success"
            # Nudged sideways, so that intervals at the same temperature do not hide one another.
            nudge = 0.0 if published else 0.008 * (2 * position - 1)
            _series(axes, rows, column, nudge, label, color, marker, line, hollow=published)
        axes.set(title=title, ylabel="success (%)", ylim=(-3, 103))
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=1, alignment="left")
    return figure


@styled()
def accuracy_variation(rows: Sequence[Row]) -> Figure | None:
    """What distillation does to test accuracy, in percentage points (the paper's Fig. 8).

    Args:
      rows: the rows of `report.summarize`.

    Returns:
      The figure; None if no distilled accuracy can be compared with the undistilled one.
    """
    if not _points(rows, "accuracy_variation")[0]:
        return None
    figure = Figure(figsize=(6.4, 3.7), layout="constrained")
    (axes,) = row_of_axes(figure, 1)
    _temperature_axis(axes, rows)
    base = rows[0]
    if base.get("accuracy_low") is not None:
        low, high = (100 * (base[f"accuracy_{end}"] - base["accuracy"]) for end in ("low", "high"))
        axes.axhspan(low, high, color=GRAY, alpha=0.15, linewidth=0, label="undistilled network, 95 % interval")
    axes.axhline(0, color=GRAY, linewidth=1.2, linestyle="--")
    _series(axes, rows, "accuracy_variation", 0.0, "distilled network", BLUE, "o", "-", interval_of="accuracy")
    axes.set(title="Test accuracy against the undistilled network", ylabel="difference (percentage points)")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2)
    return figure


@styled()
def gradients(rows: Sequence[Row], decades: Mapping[float | None, Mapping[int, int]]) -> Figure | None:
    """How large the gradients of the T=1 probabilities are, image by image (the paper's Fig. 9).

    Args:
      rows: the rows of `report.summarize`.
      decades: temperature (None: undistilled) to floor(log10 amplitude) to number of images.

    Returns:
      The figure, a stacked bar a temperature and a mark at the share of images with an all-zero float32 Jacobian;
      None if no gradient has been measured.
    """
    bars = [row for row in rows if sum(decades.get(row["temperature"], {}).values())]
    if not bars:
        return None
    shares = np.array([_range_shares(decades[row["temperature"]]) for row in bars])
    figure = Figure(figsize=(max(5.5, 0.62 * len(bars) + 2.9), 4.2), layout="constrained")
    (axes,) = row_of_axes(figure, 1)
    places = np.arange(len(bars))
    bottoms = np.cumsum(shares, axis=1) - shares
    for k, color in enumerate(RANGE_COLORS):
        axes.bar(places, shares[:, k], 0.74, bottoms[:, k], color=color, edgecolor="white", linewidth=0.4)
    zeros = [(place, row["zero_gradient_share"]) for place, row in zip(places, bars, strict=True)]
    zeros = [(place, 100 * share) for place, share in zeros if share is not None]
    dead = Line2D(
        *np.array(zeros or np.empty((0, 2))).T,
        linestyle="none", marker="D", markersize=7, color=RED, markeredgecolor="white", clip_on=False, zorder=4,
    )  # fmt: skip
    axes.add_line(dead)
    labels = [f"below $10^{{{RANGE_TOPS[0]}}}$"]
    labels += [f"$10^{{{low}}}$ to $10^{{{high}}}$" for low, high in itertools.pairwise(RANGE_TOPS)]
    # Top to bottom in the order of the stack.
    handles: list[Any] = [Patch(color=color) for color in RANGE_COLORS[::-1]]
    axes.legend(
        [dead, *handles], ["exactly 0 in float32", *labels[::-1]],
        loc="center left", bbox_to_anchor=(1.01, 0.5), title="amplitude", alignment="left",
    )  # fmt: skip
    axes.set(title="Gradients of the T=1 probabilities", xlabel="distillation temperature", ylim=(0, 100))
    axes.set(ylabel="share of test images (%)", xlim=(-0.6, len(bars) - 0.4))
    axes.set_xticks(places, [temperature_name(row["temperature"]) for row in bars])
    axes.tick_params(axis="x", length=0, pad=8)  # room for a diamond at zero
    return figure


@styled()
def robustness(rows: Sequence[Row]) -> Figure | None:
    """Share of the features JSMA has to change, averaged over images, against the temperature (the paper's Fig. 10).

    Args:
      rows: the rows of `report.summarize`.

    Returns:
      The figure; None if it has not been measured on a distilled network.
    """
    if not _points(rows, "robustness")[0] and not _points(rows, "robustness_tempered")[0]:
        return None
    figure = Figure(figsize=(6.4, 3.7), layout="constrained")
    (axes,) = row_of_axes(figure, 1)
    _temperature_axis(axes, rows)
    _reference_line(axes, rows, "robustness")
    _series(axes, rows, "robustness", -0.008, "JSMA on T=1 probabilities", BLUE, "o", "-")
    _series(axes, rows, "robustness_tempered", 0.008, "tempered JSMA", RED, "s", "-")
    axes.set(title="Robustness as each attack measures it", ylabel="features to change (%)")
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=3)
    return figure


def jsma_grid(examples: Mapping[str, np.ndarray], class_names: Sequence[str], title: str) -> Figure | None:
    """Adversarial examples from every source class (row) towards every target class (column).

    Args:
      examples: of a sweep's examples file, `jsma_images` [K, K, H, W, C], `jsma_success` [K, K], `jsma_present` [K].
      class_names: the names of the K classes.
      title: what the figure is called; the number of successes is put behind it.

    Returns:
      The figure; None if there is no example.
    """
    if "jsma_images" not in examples:
        return None
    images, reached, present = (examples[f"jsma_{name}"] for name in ("images", "success", "present"))
    return class_grid(images, reached, np.broadcast_to(present[:, None], reached.shape), class_names, title)


@styled()
def fgsm(examples: Mapping[float | None, Mapping[str, np.ndarray]], class_names: Sequence[str]) -> Figure | None:
    """One FGSM example made on the undistilled network, and what every network says of it.

    Args:
      examples: temperature (None: undistilled) to the contents of that network's examples file.
      class_names: the names of the classes.

    Returns:
      The figure: clean image, perturbation, adversarial image and a list of predictions; None without examples.
    """
    usable = {t: data for t, data in examples.items() if "fgsm_clean" in data and "fgsm_adversarial" in data}
    if not usable:
        return None
    first = next(iter(usable.values()))
    clean, adversarial, label = first["fgsm_clean"], first["fgsm_adversarial"], int(first["fgsm_label"])
    lines = [
        ("undistilled", int(usable[None]["fgsm_clean_prediction"]) if None in usable else None,
         int(first["fgsm_baseline_prediction"]))
    ]  # fmt: skip
    for temperature in sorted(t for t in usable if t is not None):
        data = usable[temperature]
        predictions = int(data["fgsm_clean_prediction"]), int(data["fgsm_prediction"])
        lines.append((f"distilled, T = {temperature_name(temperature)}", *predictions))
    height = max(2.7, 0.25 * (len(lines) + 2))
    figure = Figure(figsize=(10.2, height), layout="constrained")
    *panels, words = row_of_axes(figure, 4, width_ratios=[1, 1, 1, 2])
    change = np.asarray(adversarial, float) - np.asarray(clean, float)
    largest = float(np.max(np.abs(change)))
    # Gray is no change; a perturbation of either sign would otherwise be cut off at black.
    titles = ("clean", f"perturbation (at most {largest:.2g})", "adversarial")
    for axes, title, image in zip(panels, titles, (clean, 0.5 + change / (2 * largest or 1), adversarial), strict=True):
        axes.imshow(pixels(image), interpolation="nearest")
        axes.grid(False)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(visible=True, color=GRAY)
        axes.set_title(title, loc="center", fontweight="normal")
    words.set_axis_off()
    words.set(xlim=(0, 1), ylim=(max(len(lines), 7) + 0.5, -1.5))
    columns = (0.02, 0.46, 0.73)
    words.text(columns[0], -0.9, f"true class: {class_name(label, class_names)}", weight="bold", va="center")
    for x, text in zip(columns, ("network", "clean", "adversarial"), strict=True):
        words.text(x, 0, text, color=GRAY, va="center")
    for y, (network, *predictions) in enumerate(lines, start=1):
        words.text(columns[0], y, network, va="center")
        for x, prediction in zip(columns[1:], predictions, strict=True):
            if prediction is not None:
                right = prediction == label
                text = f"{'✓' if right else '✗'} {class_name(prediction, class_names)}"
                words.text(x, y, text, color=GREEN if right else RED, va="center")
    return figure


def _range_shares(counts: Mapping[int, int]) -> np.ndarray:
    """Percent of the images in each range of amplitude."""
    shares = np.zeros(len(RANGE_TOPS))
    for decade, count in counts.items():
        # A decade d holds amplitudes in [10^d, 10^(d+1)); what reaches 1 is counted with the last range.
        shares[min(np.searchsorted(RANGE_TOPS, decade, side="right"), len(RANGE_TOPS) - 1)] += count
    return 100 * shares / shares.sum()


def _points(rows: Sequence[Row], column: str) -> tuple[list[float], list[float]]:
    """Temperatures and values of the distilled networks that have this column."""
    found = [(row["temperature"], row[column]) for row in rows[1:] if row.get(column) is not None]
    return [temperature for temperature, _ in found], [value for _, value in found]


def _span(rows: Sequence[Row]) -> tuple[float, float]:
    """Ends of the temperature axis (log10), with room at both sides."""
    logs = [math.log10(row["temperature"]) for row in rows[1:]]
    room = max(0.06 * (max(logs) - min(logs)), 0.1)
    return min(logs) - room, max(logs) + room


def _temperature_axis(axes: Axes, rows: Sequence[Row]) -> None:
    low, high = _span(rows)
    axes.set_xscale("log")
    axes.set_xlim(10**low, 10**high)
    axes.xaxis.set_minor_locator(NullLocator())
    temperatures = [row["temperature"] for row in rows[1:]]
    labels: list[str] = []
    nearest = math.inf
    # Every temperature has its tick; one too close to its right neighbor goes without a number.
    for temperature in reversed(temperatures):
        clear = nearest - math.log10(temperature) > 0.04 * (high - low)
        labels.insert(0, temperature_name(temperature) if clear else "")
        nearest = math.log10(temperature) if clear else nearest
    axes.set_xticks(temperatures, labels, fontsize=8.5)
    axes.set_xlabel("distillation temperature")


def _reference_line(axes: Axes, rows: Sequence[Row], column: str) -> None:
    """The undistilled network's value as a dashed line, its interval as a band."""
    base = rows[0]
    if base.get(column) is None:
        return
    axes.axhline(100 * base[column], color=GRAY, linewidth=1.2, linestyle="--", label="undistilled network")
    if base.get(f"{column}_low") is not None:
        low, high = 100 * base[f"{column}_low"], 100 * base[f"{column}_high"]
        axes.axhspan(low, high, color=GRAY, alpha=0.15, linewidth=0)


def _series(
    axes: Axes,
    rows: Sequence[Row],
    column: str,
    nudge: float,
    label: str,
    color: str,
    marker: str,
    line: Any,
    *,
    hollow: bool = False,
    interval_of: str | None = None,
) -> None:
    """One line over the temperatures, in percent, with the Wilson intervals of `interval_of` (default: `column`)."""
    low, high = _span(rows)
    kept = [row for row in rows[1:] if row.get(column) is not None]
    if not kept:
        return
    rate, ends = interval_of or column, [f"{interval_of or column}_{end}" for end in ("low", "high")]
    bars = None
    if ends[0] in kept[0]:
        bars = [[100 * abs(row[end] - row[rate]) for row in kept] for end in ends]
    axes.errorbar(
        [row["temperature"] * 10 ** (nudge * (high - low)) for row in kept],
        [100 * row[column] for row in kept],
        yerr=bars, label=label, color=color, marker=marker, linestyle=line, capsize=2, elinewidth=1,
        markerfacecolor="white" if hollow else color, linewidth=1 if hollow else 1.6,
    )  # fmt: skip
