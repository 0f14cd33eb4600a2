"""The figures of attacks on one network."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from ddjax.figures.pictures import FRAMES, class_name, pixels
from ddjax.figures.style import BLUE, GREEN, RED, label_log_axis, row_of_axes, styled


@styled()
def strip(examples: Mapping[str, np.ndarray], class_names: Sequence[str], title: str) -> Figure | None:
    """Examples of an attack side by side: the clean image, the adversarial one, and what changed.

    Args:
      examples: `clean` and `adversarial` [N, H, W, C], `labels`, `predictions` and `success` [N], `targets` [N] if any.
      class_names: the names of the classes.
      title: what the figure is called.

    Returns:
      The figure; None if there is no example.
    """
    clean, adversarial = (np.asarray(examples[name], float) for name in ("clean", "adversarial"))
    count, height, width, _ = clean.shape
    if not count:
        return None
    gap = max(2, round(0.12 * max(height, width)))
    pitch = np.array((height + gap, width + gap))
    mosaic = np.ones((3 * pitch[0], count * pitch[1], 3))
    change = adversarial - clean
    # Gray is no change; each image's own largest change takes the whole scale.
    largest = np.abs(change).max((1, 2, 3), keepdims=True)
    rows = (clean, adversarial, 0.5 + change / np.where(largest > 0, 2 * largest, 1))
    titles = [_course(examples, place, class_names) for place in range(count)]
    lines = max(words.count("\n") + 1 for words in titles)
    inches = (1.02 * count, 1.02 * 3 * pitch[0] / pitch[1])
    figure = Figure(figsize=(max(inches[0], 4) + 1.1, inches[1] + 0.55 + 0.14 * lines), layout="constrained")
    (axes,) = row_of_axes(figure, 1)
    for place, won in enumerate(examples["success"]):
        for row, images in enumerate(rows):
            top, left = pitch * (row, place) + gap // 2
            mosaic[top : top + height, left : left + width] = pixels(images[place])
        _, color, line, thickness = FRAMES[0 if won else 1]
        top, left = pitch * (1, place) + gap // 2
        margin = gap / 4
        corner = (left - 0.5 - margin, top - 0.5 - margin)
        axes.add_patch(
            Rectangle(
                corner, width + 2 * margin, height + 2 * margin,
                fill=False, edgecolor=color, linestyle=line, linewidth=thickness,
            )
        )  # fmt: skip
        color = "black" if won else RED
        axes.text(left + (width - 1) / 2, -gap / 4, titles[place], ha="center", va="bottom", fontsize=8, color=color)
    axes.imshow(mosaic, interpolation="nearest")
    axes.set_xticks([])
    middles = [pitch[0] * row + gap // 2 + (height - 1) / 2 for row in range(3)]
    axes.set_yticks(middles, ["clean", "adversarial", "difference"])
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    # Over the whole width, which the title of the axes would start in the middle of.
    title = textwrap.fill(title, int(10 * figure.get_figwidth())).replace("$", r"\$")
    figure.suptitle(title, x=0.01, ha="left", fontsize=10.5, fontweight="bold")
    return figure


def _course(examples: Mapping[str, np.ndarray], place: int, class_names: Sequence[str]) -> str:
    """Where an attack led: "7 to 3", or a failure's "✗ 7 to 7", with the target it missed."""
    label, prediction = (class_name(int(examples[name][place]), class_names) for name in ("labels", "predictions"))
    won = bool(examples["success"][place])
    long = max(len(label), len(prediction)) > 3
    words = f"{'' if won else '✗ '}{label}{chr(10) if long else ' '}to {prediction}"
    if not won and "targets" in examples:
        words += f"\nnot {class_name(int(examples['targets'][place]), class_names)}"
    return words


@styled()
def brackets(proved: np.ndarray, attacked: np.ndarray, norm: str) -> Figure | None:
    """For each image the interval its nearest adversarial example lies in: proof below, attack above.

    Args:
      proved: [N], the distance within which there is none; 0 where nothing was proved.
      attacked: [N], the distance of the nearest one found; inf where no attack succeeded.
      norm: the name of the distance.

    Returns:
      The figure, on a logarithmic scale, sorted by the proof; None without a finite positive number.
    """
    proved, attacked = np.asarray(proved, float), np.asarray(attacked, float)
    known = np.concatenate([proved, attacked])
    known = known[np.isfinite(known) & (known > 0)]
    if not len(known):
        return None
    # What was not proved, or not reached, starts or ends at the edge.
    floor, ceiling = known.min() / 2, known.max() * 2
    order = np.lexsort((attacked, proved))
    low, high = proved[order], attacked[order]
    bottom, top = np.clip(low, floor, ceiling), np.clip(high, floor, ceiling)
    places = np.arange(1, len(order) + 1)
    figure = Figure(figsize=(7.6, 4.2), layout="constrained")
    (axes,) = row_of_axes(figure, 1)
    axes.set_yscale("log")
    label_log_axis(axes.yaxis)
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
    axes.set(title=f"Where the nearest adversarial example lies, {norm}", ylim=(floor / 1.2, ceiling * 1.2))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=3)
    return figure
