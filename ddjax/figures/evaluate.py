"""The figures of attacks against defenses: the matrix, the detectors' ROC curves, and what squeezing does to images."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from ddjax.figures.pictures import pixels
from ddjax.figures.style import BLUE, GREEN, PURPLE, RED, row_of_axes, styled


@styled()
def matrix(rows: Sequence[str], columns: Sequence[str], shares: np.ndarray) -> Figure | None:
    """Accuracy of each defended network under each attack, as a heat map.

    Args:
      rows: the defended networks.
      columns: the attacks.
      shares: `[rows, columns]` in [0, 1]; NaN where nothing was measured.

    Returns:
      The figure; None if nothing was measured.
    """
    if not np.isfinite(shares).any():
        return None
    figure = Figure(figsize=(2.6 + 0.72 * len(columns), 1.9 + 0.34 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.grid(visible=False)
    image = axes.imshow(100 * shares, cmap="viridis", vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=40, ha="left", rotation_mode="anchor")
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(rows)), rows)
    for (row, column), share in np.ndenumerate(shares):
        if np.isfinite(share):
            color = "black" if share > 0.6 else "white"
            axes.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=color, fontsize=8)
    figure.colorbar(image, ax=axes, label="accuracy (%)", shrink=0.9)
    return figure


@styled()
def roc_curves(panels: Mapping[str, Sequence[tuple[str, bool, np.ndarray, np.ndarray]]]) -> Figure | None:
    """How many adversarial examples detectors find, against how many clean images they take for one.

    Args:
      panels: for each detector its curves: attack, whether it knows the detector, false-positive and detection rates.

    Returns:
      The figure; None without a curve.
    """
    panels = {name: curves for name, curves in panels.items() if curves}
    if not panels:
        return None
    figure = Figure(figsize=(1.6 + 4.2 * len(panels), 4.2), layout="constrained")
    colors = (BLUE, RED, GREEN, PURPLE)
    for axes, (name, curves) in zip(row_of_axes(figure, len(panels)), panels.items(), strict=True):
        attacks = list(dict.fromkeys(attack for attack, *_ in curves))
        for attack, aware, false_positives, detected in curves:
            axes.plot(
                100 * false_positives, 100 * detected, color=colors[attacks.index(attack) % len(colors)],
                linestyle="--" if aware else "-", label=f"{attack}{', aware' if aware else ''}",
            )  # fmt: skip
        axes.set(xlabel="false positives (%)", ylabel="detected (%)", xlim=(-2, 102), ylim=(-2, 102), title=name)
        axes.legend(loc="lower right", fontsize=7)
    return figure


@styled()
def squeezed_gallery(columns: Sequence[str], lines: Sequence[tuple[str, Sequence[np.ndarray]]]) -> Figure | None:
    """A clean image, what attacks make of it, and what the defenses make of these.

    Args:
      columns: what the images of a line are.
      lines: for each line its name and its images, `[H, W, C]` in [0, 1].

    Returns:
      The figure; None without lines.
    """
    if not lines:
        return None
    figure = Figure(figsize=(1.6 + 1.2 * len(columns), 0.5 + 1.2 * len(lines)), layout="constrained")
    grid = figure.subplots(len(lines), len(columns), squeeze=False)
    for line, (name, images) in enumerate(lines):
        for place, image in enumerate(images):
            axes = grid[line][place]
            axes.imshow(pixels(image), interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.grid(visible=False)
            if line == 0:
                axes.set_title(columns[place], fontsize=8)
            if place == 0:
                axes.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    return figure
